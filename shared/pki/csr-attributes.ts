import { integer, oid, sequence, setOf } from './der-write.ts'
import { OID } from './oid.ts'
import type { KeyType } from './spki.ts'

/** Modulus of the RSA keys that are asked for, bits. */
const RSA_BITS = 3072

/** Algorithm of a key with its parameters, for those that have one, and the signature that a request with it carries. */
const KEYS: Readonly<Record<KeyType, { algorithm: string; parameter: Buffer | null; signature: string }>> = {
  'P-256': { algorithm: OID.ecPublicKey, parameter: oid(OID.prime256v1), signature: OID.ecdsaWithSha256 },
  'P-384': { algorithm: OID.ecPublicKey, parameter: oid(OID.secp384r1), signature: OID.ecdsaWithSha384 },
  Ed25519: { algorithm: OID.ed25519, parameter: null, signature: OID.ed25519 },
  'ML-DSA-44': { algorithm: OID.mlDsa44, parameter: null, signature: OID.mlDsa44 },
  'ML-DSA-65': { algorithm: OID.mlDsa65, parameter: null, signature: OID.mlDsa65 },
  RSA: { algorithm: OID.rsaEncryption, parameter: integer(RSA_BITS), signature: OID.sha256WithRsa },
}

export interface CsrAttributes {
  /** The key that the server would like best. */
  readonly key: KeyType
  /** Whether the request must carry a challengePassword (RFC 7030 section 3.5). */
  readonly challengePassword: boolean
}

/**
 * DER of a CsrAttrs: what a server wants to see in a request (RFC 8951 section 4). The key is exactly one attribute:
 * its type is the algorithm, its values are one parameter, or none where the algorithm says it all; the signature is
 * a bare identifier (RFC 9908 section 3.2, and its examples in section 5). So one type of key can be asked for, also
 * where others are granted. Templates (section 3.4) are an alternative that a server may offer, and would name nothing
 * more: the names in a certificate come from the profile.
 */
export function encodeCsrAttributes({ key, challengePassword }: CsrAttributes): Buffer {
  const { algorithm, parameter, signature } = KEYS[key]
  return sequence(
    ...(challengePassword ? [oid(OID.challengePassword)] : []),
    sequence(oid(algorithm), setOf(...(parameter ? [parameter] : []))),
    oid(signature),
  )
}
