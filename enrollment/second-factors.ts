import { randomUUID, type ScryptOptions, scrypt } from 'node:crypto'
import { promisify } from 'node:util'
import type { FactorReply, FactorRequest, FactorScope, FactorView } from '#shared/api/second-factors'
import { MusterError } from '#shared/errors'
import { SCRYPT, type SecondFactor, scryptMemory, type TokenRules } from '#shared/second-factor'
import type { Deps } from './deps.ts'
import type { Actor } from './registry/registry.ts'

const derive = promisify<string, Uint8Array, number, ScryptOptions, Buffer>(scrypt)

/** scrypt's N: 16 MiB a derivation. The password has 256 random bits, so what this costs a thief does not matter. */
const COST = 16_384
const PASSWORD_BYTES = 32
const SALT_BYTES = 16
/** A key may be named, and must be asymmetric. */
const KEY_TYPES: readonly unknown[] = ['EC', 'OKP', 'RSA']

export interface NewFactor {
  readonly scope: FactorScope
  readonly request: FactorRequest
  readonly by: Actor
}

/**
 * Asks a service or the devices of a fleet for a second factor; the one before it ends at once, with its sessions.
 * @throws MusterError not_found, invalid_request (keys that cannot be used)
 */
export async function setFactor(deps: Deps, { scope, request, by }: NewFactor): Promise<FactorReply> {
  const act = { by, now: deps.now() }
  const id = randomUUID()
  if (request.kind === 'jwt') {
    checkRules(request.rules)
    const factor = { ...request.rules, id, kind: 'jwt' } as const
    await deps.registry.setFactor(scope, factor, act)
    return viewOf(scope, factor)
  }
  const password = Buffer.from(deps.random(PASSWORD_BYTES)).toString('base64url')
  const salt = Buffer.from(deps.random(SALT_BYTES))
  const { r, p, octets } = SCRYPT
  const hash = await derive(password, salt, octets, { N: COST, r, p, maxmem: scryptMemory(COST) })
  const verifier = { salt: salt.toString('base64url'), hash: hash.toString('base64url'), cost: COST }
  const factor = { id, kind: 'password', ...verifier } as const
  await deps.registry.setFactor(scope, factor, act)
  return { ...viewOf(scope, factor), password }
}

/** @throws MusterError not_found */
export async function clearFactor(
  deps: Deps,
  { scope, by }: Pick<NewFactor, 'scope' | 'by'>,
): Promise<FactorView> {
  await deps.registry.setFactor(scope, null, { by, now: deps.now() })
  return viewOf(scope, null)
}

/** @throws MusterError not_found */
export async function showFactor(deps: Deps, scope: FactorScope): Promise<FactorView> {
  return viewOf(scope, await deps.registry.factorOf(scope))
}

function viewOf({ kind: scope, id }: FactorScope, factor: SecondFactor | null): FactorView {
  if (factor?.kind !== 'jwt') return { scope, id, kind: factor?.kind ?? 'none' }
  const { kind, id: _, ...rules } = factor
  return { scope, id, kind, rules }
}

function checkRules({ jwks, url }: TokenRules): void {
  if ((jwks === undefined) === (url === undefined)) throw refused('name either the keys or their URL')
  if (url !== undefined) checkUrl(url)
  if (jwks === undefined) return
  let keys: unknown
  try {
    keys = JSON.parse(jwks).keys
  } catch {
    throw refused('the key set is no JSON')
  }
  const isUsable = (key: unknown) =>
    typeof key === 'object' &&
    key !== null &&
    'kid' in key &&
    'kty' in key &&
    KEY_TYPES.includes(key.kty) &&
    !('d' in key)
  if (!Array.isArray(keys) || keys.length === 0 || !keys.every(isUsable)) {
    throw refused('each key of the set needs a kid, and must be public and asymmetric')
  }
}

/** Everybody who may ask for the factor sees its URL, and each broker has a copy. */
function checkUrl(text: string): void {
  const url = URL.parse(text)
  if (url === null) throw refused('the URL of its keys is none')
  if (url.username !== '' || url.password !== '')
    throw refused('the URL of its keys has a name or a password in it, and brokers fetch keys without')
}

function refused(why: string): MusterError {
  return new MusterError('invalid_request', `Cannot ask for this token: ${why}`)
}
