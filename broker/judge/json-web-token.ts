/** The only importer of `jose`: tokens in CONNECT, and the keys that vouch for them. */
import { createLocalJWKSet, errors, type JSONWebKeySet, type JWTVerifyGetKey, jwtVerify } from 'jose'
import type { TokenFactor } from '#shared/second-factor'

/** Keys are fetched anew after this time, or earlier when a token names one that is not known, ms. */
const FRESH_MS = 600_000
/** Least time between two fetches, whoever asks, ms. */
const PAUSE_MS = 30_000
/** Keys that could not be fetched anew for so long admit nobody, ms. */
const STALE_MS = 24 * 3_600_000
const FETCH_MS = 5_000
const KEYS_BYTES = 65_536

export interface TokenDeps {
  now(): number
  /** Hears why keys could not be fetched: twice a minute at most for each URL. */
  readonly log?: { warn(details: object, event: string): void }
  /** `fetch`, but for tests. */
  fetch?(url: string, init: RequestInit): Promise<Response>
}

export interface TokenJudge {
  /** When the token ends, ms since 1970. @throws TokenFault */
  judge(token: string, of: { readonly factor: TokenFactor; readonly device: string }): Promise<number>
}

/** What is wrong with a token, in one word; `why` when the fault is not the token's. */
export class TokenFault extends Error {
  readonly why: string | null

  constructor(fault: string, why: string | null = null) {
    super(fault)
    this.why = why
  }
}

interface Keys {
  readonly get: JWTVerifyGetKey
  readonly fetchedAt: number
}

export function openTokenJudge(deps: TokenDeps): TokenJudge {
  const sources = new Map<string, KeySource>()
  const keysOf = (factor: TokenFactor): JWTVerifyGetKey => {
    if (factor.jwks !== undefined) return createLocalJWKSet(JSON.parse(factor.jwks) as JSONWebKeySet) // checked when it was set
    const { url = '' } = factor
    const source = sources.get(url) ?? new KeySource(url, deps)
    sources.set(url, source)
    return source.get
  }
  return {
    async judge(token, { factor, device }) {
      const keys = keysOf(factor)
      try {
        const { payload } = await jwtVerify(
          token,
          (header, jws) => {
            if (typeof header.kid !== 'string') throw new TokenFault('kid')
            return keys(header, jws)
          },
          {
            algorithms: [...factor.algorithms],
            issuer: factor.issuer,
            audience: factor.audience,
            subject: device,
            requiredClaims: ['exp'],
            currentDate: new Date(deps.now()),
          },
        )
        return (payload.exp ?? 0) * 1000
      } catch (error) {
        throw error instanceof TokenFault ? error : new TokenFault(faultOf(error))
      }
    },
  }
}

function faultOf(error: unknown): string {
  if (error instanceof errors.JWTExpired) return 'expired'
  if (error instanceof errors.JWTClaimValidationFailed) return error.claim
  if (error instanceof errors.JOSEAlgNotAllowed) return 'alg'
  if (error instanceof errors.JWSSignatureVerificationFailed) return 'signature'
  if (error instanceof errors.JWKSNoMatchingKey || error instanceof errors.JWKSMultipleMatchingKeys)
    return 'kid'
  return 'malformed'
}

/** Keys of one URL: one fetch at a time, none within {@link PAUSE_MS} of another, none used after {@link STALE_MS}. */
class KeySource {
  readonly #url: string
  readonly #deps: TokenDeps
  #keys: Keys | null = null
  #triedAt = Number.NEGATIVE_INFINITY
  #fetching: Promise<void> | null = null
  /** Why the last fetch failed. */
  #failure: string | null = null

  constructor(url: string, deps: TokenDeps) {
    this.#url = url
    this.#deps = deps
  }

  readonly get: JWTVerifyGetKey = async (header, jws) => {
    if (this.#age() > FRESH_MS) await this.#refresh()
    try {
      return await this.#current()(header, jws)
    } catch (error) {
      if (!(error instanceof errors.JWKSNoMatchingKey)) throw error
      await this.#refresh()
      return this.#current()(header, jws)
    }
  }

  /** A clock that was set back says nothing of how old they are: old enough to be fetched anew, and their time runs from now. */
  #age(): number {
    if (this.#keys === null) return Number.POSITIVE_INFINITY
    const now = this.#deps.now()
    if (now < this.#keys.fetchedAt) this.#keys = { ...this.#keys, fetchedAt: now - FRESH_MS - 1 }
    return now - this.#keys.fetchedAt
  }

  #current(): JWTVerifyGetKey {
    if (this.#keys === null || this.#age() > STALE_MS) throw new TokenFault('keys', this.#failure)
    return this.#keys.get
  }

  /** Never throws: what there is already goes on, until it is stale. */
  #refresh(): Promise<void> {
    if (this.#fetching !== null) return this.#fetching
    if (Math.abs(this.#deps.now() - this.#triedAt) < PAUSE_MS) return Promise.resolve()
    this.#triedAt = this.#deps.now()
    this.#fetching = this.#fetch()
      .catch((error: unknown) => this.#failed(error))
      .finally(() => {
        this.#fetching = null
      })
    return this.#fetching
  }

  #failed(error: unknown): void {
    const { message, cause } = error instanceof Error ? error : new Error(String(error))
    const { code } = (cause ?? {}) as { code?: unknown } // of the network or TLS, behind the "fetch failed" of fetch
    this.#failure = typeof code === 'string' ? code : message
    this.#deps.log?.warn({ url: this.#url, why: this.#failure }, 'keys of tokens could not be fetched')
  }

  async #fetch(): Promise<void> {
    const request = this.#deps.fetch ?? fetch
    const response = await request(this.#url, { redirect: 'error', signal: AbortSignal.timeout(FETCH_MS) })
    if (!response.ok || response.body === null) {
      await response.body?.cancel()
      throw new Error(`status ${response.status}`)
    }
    const chunks: Uint8Array[] = []
    let octets = 0
    for await (const chunk of response.body as AsyncIterable<Uint8Array>) {
      octets += chunk.length
      if (octets > KEYS_BYTES) throw new Error('too long')
      chunks.push(chunk)
    }
    const jwks: unknown = JSON.parse(Buffer.concat(chunks).toString('utf8'))
    this.#keys = { get: createLocalJWKSet(jwks as JSONWebKeySet), fetchedAt: this.#deps.now() } // it throws for anything else
    this.#failure = null
  }
}
