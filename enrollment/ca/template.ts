import { hash } from 'node:crypto'
import { bitsOf, fields, readDer } from '#shared/pki/der'
import { bitString, explicit, integer, sequence, unsigned } from '#shared/pki/der-write'
import { encodeTime } from '#shared/pki/time'

export interface TbsContents {
  /** Hex. */
  readonly serial: string
  /** DER of the AlgorithmIdentifier of the signature. */
  readonly algorithm: Uint8Array
  /** DER of the names. */
  readonly issuer: Uint8Array
  readonly subject: Uint8Array
  /** Ms since 1970, whole seconds. */
  readonly notBefore: number
  readonly notAfter: number
  /** DER of the SubjectPublicKeyInfo. */
  readonly spki: Uint8Array
  /** DER of each extension. */
  readonly extensions: readonly Uint8Array[]
}

/** DER of a version 3 TBSCertificate (RFC 5280 section 4.1). */
export function encodeTbs(contents: TbsContents): Buffer {
  return sequence(
    explicit(0, integer(2)),
    unsigned(Buffer.from(contents.serial, 'hex')),
    contents.algorithm,
    contents.issuer,
    sequence(encodeTime(contents.notBefore), encodeTime(contents.notAfter)),
    contents.subject,
    contents.spki,
    explicit(3, sequence(...contents.extensions)),
  )
}

/** Signed part, algorithm and signature as one: a Certificate or a CertificateList. */
export function assemble(signed: { tbs: Uint8Array; algorithm: Uint8Array; signature: Uint8Array }): Buffer {
  return sequence(signed.tbs, signed.algorithm, bitString(signed.signature))
}

/** Key identifier: the first 160 bits of the SHA-256 of the key's bits (RFC 7093 section 2, method 1). */
export function keyIdentifier(spki: Uint8Array): Buffer {
  const [, key] = fields(readDer(spki), 'public key', [2, 2])
  return hash('sha256', bitsOf(key), 'buffer').subarray(0, 20)
}
