/** The second factor: what CONNECT brings as its password, beside the certificate, where a service or fleet asks for it. */
import { createHmac, randomBytes, type ScryptOptions, scrypt, timingSafeEqual } from 'node:crypto'
import { promisify } from 'node:util'
import { type PasswordFactor, SCRYPT, type SecondFactor, scryptMemory } from '#shared/second-factor'
import { openTokenJudge, type TokenDeps, TokenFault } from './json-web-token.ts'

const derive = promisify<Buffer, Buffer, number, ScryptOptions, Buffer>(scrypt)

/** Longest password, octets: ours have 43. What is longer is wrong, and costs nothing. */
const PASSWORD_BYTES = 256
/** Passwords that are derived at once, and that wait; each takes some 16 MiB and 40 ms of a thread. */
const AT_ONCE = 2
const WAITING = 256

/** Proved until then, ms since 1970, or in one word why not, and what is behind it. */
export type Proof = { readonly until: number } | { readonly fault: string; readonly why?: string }

export interface Claim {
  readonly factor: SecondFactor
  readonly device: string
  /** As it came in CONNECT; a user name is not looked at. */
  readonly password: Uint8Array | null | undefined
}

export interface SecondFactors {
  /** Never throws; whatever cannot be judged is no proof. */
  prove(claim: Claim): Promise<Proof>
}

export function openSecondFactors(deps: TokenDeps): SecondFactors {
  const tokens = openTokenJudge(deps)
  const passwords = new Passwords()
  return {
    async prove({ factor, device, password }) {
      if (password === null || password === undefined || password.length === 0) return { fault: 'missing' }
      try {
        if (factor.kind === 'password') return await passwords.prove(factor, Buffer.from(password))
        const until = await tokens.judge(Buffer.from(password).toString('utf8'), { factor, device })
        return { until }
      } catch (error) {
        if (!(error instanceof TokenFault)) return { fault: 'unreadable' }
        const { message: fault, why } = error
        return why === null ? { fault } : { fault, why }
      }
    },
  }
}

/**
 * Deriving is slow by design, and a fleet that reconnects has one password: who has proved it once is known again by
 * its HMAC under a key that lives and dies with this process.
 */
class Passwords {
  readonly #key = randomBytes(32)
  /** HMAC of the password by the id of its factor. */
  readonly #proved = new Map<string, Buffer>()
  readonly #waiting: (() => void)[] = []
  #running = 0

  async prove(factor: PasswordFactor, password: Buffer): Promise<Proof> {
    if (password.length > PASSWORD_BYTES) return { fault: 'wrong' }
    const mark = createHmac('sha256', this.#key).update(factor.hash).update(password).digest()
    const known = this.#proved.get(factor.id)
    if (known !== undefined && timingSafeEqual(known, mark)) return { until: Number.POSITIVE_INFINITY }
    if (this.#waiting.length >= WAITING) return { fault: 'busy' }
    const derived = await this.#derived(factor, password)
    const hash = Buffer.from(factor.hash, 'base64url')
    if (hash.length !== derived.length || !timingSafeEqual(hash, derived)) return { fault: 'wrong' }
    this.#proved.set(factor.id, mark)
    return { until: Number.POSITIVE_INFINITY }
  }

  async #derived({ salt, cost }: PasswordFactor, password: Buffer): Promise<Buffer> {
    if (this.#running >= AT_ONCE) await new Promise<void>((resolve) => this.#waiting.push(resolve))
    this.#running++
    try {
      const { r, p, octets } = SCRYPT
      const options = { N: cost, r, p, maxmem: scryptMemory(cost) }
      return await derive(password, Buffer.from(salt, 'base64url'), octets, options)
    } finally {
      this.#running--
      this.#waiting.shift()?.()
    }
  }
}
