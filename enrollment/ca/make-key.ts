import { generateKeyPair, type KeyObject } from 'node:crypto'
import { promisify } from 'node:util'
import { sha256Hex, spkiDer } from '#shared/pki/keys'
import type { KeyType } from '#shared/pki/spki'

/** A key that the plane has made for a device. The private half leaves with the reply and is nowhere else. */
export interface MadeKey {
  /** DER of the SubjectPublicKeyInfo. */
  readonly spki: Buffer
  /** SHA-256 of it, lower-case hex. */
  readonly spkiHash: string
  readonly key: { readonly type: KeyType; readonly name: string }
  /** DER of the PrivateKeyInfo (RFC 5958). */
  readonly privateKey: Buffer
}

const RSA_BITS = 3072

type Pair = { readonly publicKey: KeyObject; readonly privateKey: KeyObject }

/** Off the event loop: an RSA key takes most of a second. */
const make = promisify(generateKeyPair)

const MAKE: Readonly<Record<KeyType, () => Promise<Pair>>> = {
  'P-256': () => make('ec', { namedCurve: 'P-256' }),
  'P-384': () => make('ec', { namedCurve: 'P-384' }),
  Ed25519: () => make('ed25519'),
  'ML-DSA-44': () => make('ml-dsa-44'),
  'ML-DSA-65': () => make('ml-dsa-65'),
  RSA: () => make('rsa', { modulusLength: RSA_BITS }),
}

/** A key of the first of the types; RSA, which is slow to make, only where there is no other. */
export async function makeKey(types: readonly KeyType[]): Promise<MadeKey> {
  const type = types.find((one) => one !== 'RSA') ?? 'RSA'
  const { publicKey, privateKey } = await MAKE[type]()
  const spki = spkiDer(publicKey)
  return {
    spki,
    spkiHash: sha256Hex(spki),
    key: { type, name: type === 'RSA' ? `RSA-${RSA_BITS}` : type },
    privateKey: privateKey.export({ type: 'pkcs8', format: 'der' }),
  }
}
