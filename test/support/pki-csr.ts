/** Requests made by hand, for tests of what nobody's tools would make. */
import { generateKeyPairSync, type KeyObject, sign } from 'node:crypto'
import { bitString, explicit, integer, NULL, oid, sequence, setOf } from '#shared/pki/der-write'
import { generateKey, spkiDer } from '#shared/pki/keys'
import { encodeName } from '#shared/pki/name'
import { OID } from '#shared/pki/oid'
import type { KeyType } from '#shared/pki/spki'

const DEFAULT_KEY = generateKey()

/** A request made by hand, whose every part can be replaced; signed over what it says. */
export interface CraftedCsr {
  readonly key?: KeyObject
  readonly version?: Buffer
  readonly subject?: Buffer
  readonly spki?: Buffer
  readonly extensions?: readonly Buffer[]
  readonly attributes?: Buffer | null
  readonly algorithm?: Buffer
  readonly hash?: string
  readonly signature?: Buffer
}

export function craftCsr(parts: CraftedCsr = {}): Buffer {
  const signer = parts.key ?? DEFAULT_KEY
  const requested = sequence(oid(OID.extensionRequest), setOf(sequence(...(parts.extensions ?? []))))
  const attributes = parts.attributes === undefined ? explicit(0, requested) : parts.attributes
  const info = sequence(
    parts.version ?? integer(0),
    parts.subject ?? encodeName({ commonName: 'dev-1' }),
    parts.spki ?? spkiDer(signer),
    ...(attributes === null ? [] : [attributes]),
  )
  const usual = usualSignature(signer)
  const algorithm = parts.algorithm ?? usual.algorithm
  const signature = parts.signature ?? sign(parts.hash ?? usual.hash, info, signer)
  return sequence(info, algorithm, bitString(signature))
}

function usualSignature(key: KeyObject): { algorithm: Buffer; hash: string | null } {
  const own: Partial<Record<string, string>> = {
    ed25519: OID.ed25519,
    'ml-dsa-44': OID.mlDsa44,
    'ml-dsa-65': OID.mlDsa65,
  }
  const scheme = own[String(key.asymmetricKeyType)]
  if (scheme !== undefined) return { algorithm: sequence(oid(scheme)), hash: null }
  if (key.asymmetricKeyType === 'rsa')
    return { algorithm: sequence(oid(OID.sha256WithRsa), NULL), hash: 'sha256' }
  return { algorithm: sequence(oid(OID.ecdsaWithSha256)), hash: 'sha256' }
}

/** A new private key of each type that a device can have. */
export const KEY_MAKERS = {
  'P-256': () => generateKey(),
  'P-384': () => generateKeyPairSync('ec', { namedCurve: 'P-384' }).privateKey,
  Ed25519: () => generateKeyPairSync('ed25519').privateKey,
  'ML-DSA-44': () => generateKeyPairSync('ml-dsa-44').privateKey,
  'ML-DSA-65': () => generateKeyPairSync('ml-dsa-65').privateKey,
  RSA: () => generateKeyPairSync('rsa', { modulusLength: 2048 }).privateKey,
} as const satisfies Record<KeyType, () => KeyObject>
