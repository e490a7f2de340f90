import { createHash, createPublicKey, type KeyObject, verify } from 'node:crypto'
import { MusterError } from '#shared/errors'
import { readDer } from '#shared/pki/der'
import { NULL, octetString, oid, sequence, unsigned } from '#shared/pki/der-write'
import { OID } from '#shared/pki/oid'
import { certifiableType, keyKind, keyName } from '#shared/pki/spki'
import { CKM } from './cryptoki.ts'

/** How a key of a token signs: what the token does, and what is done here before and after. */
export interface Scheme {
  /** DER of the AlgorithmIdentifier. */
  readonly algorithm: Buffer
  readonly mechanism: number
  /** What the token gets: it never sees more than a hash. */
  prepare(tbs: Uint8Array): Buffer
  /** The signature as certificates carry it; null when it cannot be one of this key. */
  finish(signature: Buffer): Buffer | null
  /** Whether a finished signature is this key's. */
  isGood(tbs: Uint8Array, signature: Buffer): boolean
}

/** By the public key. @throws MusterError unsupported */
export function schemeOf(spki: Buffer): Scheme {
  const kind = keyKind(readDer(spki))
  const key = createPublicKey({ key: spki, format: 'der', type: 'spki' })
  switch (certifiableType(kind)) {
    case 'P-256':
      return ecdsa({ key, hash: 'sha256', algorithm: OID.ecdsaWithSha256, octets: 32 })
    case 'P-384':
      return ecdsa({ key, hash: 'sha384', algorithm: OID.ecdsaWithSha384, octets: 48 })
    case 'RSA':
      return rsa(key)
    default:
      throw new MusterError(
        'unsupported',
        `Cannot use a key of a token: it is ${keyName(kind)}, and CAs sign with P-256, P-384 or RSA from 2048 to 4096 bits`,
      )
  }
}

interface Curve {
  readonly key: KeyObject
  readonly hash: 'sha256' | 'sha384'
  readonly algorithm: string
  /** Of r and of s. */
  readonly octets: number
}

/** RFC 5758 section 3.2: no parameters, not even NULL. The token answers r and s side by side (CKM_ECDSA). */
function ecdsa({ key, hash, algorithm, octets }: Curve): Scheme {
  return {
    algorithm: sequence(oid(algorithm)),
    mechanism: CKM.ecdsa,
    prepare: (tbs) => createHash(hash).update(tbs).digest(),
    finish: (signature) => {
      if (signature.length !== 2 * octets) return null
      return sequence(unsigned(signature.subarray(0, octets)), unsigned(signature.subarray(octets)))
    },
    isGood: (tbs, signature) => verify(hash, tbs, key, signature),
  }
}

/** PKCS#1 v1.5 with SHA-256: the token pads a DigestInfo (RFC 8017 section 9.2; CKM_RSA_PKCS). */
function rsa(key: KeyObject): Scheme {
  const digest = sequence(oid(OID.sha256), NULL)
  return {
    algorithm: sequence(oid(OID.sha256WithRsa), NULL),
    mechanism: CKM.rsaPkcs,
    prepare: (tbs) => sequence(digest, octetString(createHash('sha256').update(tbs).digest())),
    finish: (signature) => signature,
    isGood: (tbs, signature) => verify('sha256', tbs, key, signature),
  }
}
