import { oid, sequence, setOf } from './der-write.ts'
import { OID } from './oid.ts'
import type { KeyType } from './spki.ts'

/** The curve of a key, for those that have one, and the signature that a request with such a key carries. */
const KEYS = {
  'P-256': { curve: OID.prime256v1, signature: OID.ecdsaWithSha256 },
  'P-384': { curve: OID.secp384r1, signature: OID.ecdsaWithSha384 },
  Ed25519: { curve: null, signature: OID.ed25519 },
  'ML-DSA-44': { curve: null, signature: OID.mlDsa44 },
  'ML-DSA-65': { curve: null, signature: OID.mlDsa65 },
  RSA: { curve: null, signature: OID.sha256WithRsa },
} as const satisfies Record<KeyType, { curve: string | null; signature: string }>

export interface CsrAttributes {
  /** Any one of them will do. */
  readonly keys: readonly KeyType[]
  /** Whether the request must carry a challengePassword (RFC 7030 section 3.5). */
  readonly challengePassword: boolean
}

/**
 * DER of a CsrAttrs (RFC 7030 section 4.5.2): what a server wants to see in a request. Curves are values of one
 * attribute `id-ecPublicKey`; signature algorithms, and keys whose algorithm says it all, are bare identifiers.
 */
export function encodeCsrAttributes({ keys, challengePassword }: CsrAttributes): Buffer {
  const curves = keys.flatMap((key) => KEYS[key].curve ?? [])
  return sequence(
    ...(challengePassword ? [oid(OID.challengePassword)] : []),
    ...(curves.length > 0 ? [sequence(oid(OID.ecPublicKey), setOf(...curves.map(oid)))] : []),
    ...(keys.includes('RSA') ? [oid(OID.rsaEncryption)] : []),
    ...keys.map((key) => oid(KEYS[key].signature)),
  )
}
