import { bitsOf, type DerNode, expectTag, fields, oidOf, readDer, TAG } from './der.ts'
import { OID, oidName } from './oid.ts'

/** What kind of key a SubjectPublicKeyInfo holds, as far as its encoding tells. */
export type KeyKind =
  | { readonly type: 'P-256' | 'P-384' | 'Ed25519' }
  | { readonly type: 'RSA'; readonly bits: number }
  | { readonly type: 'other'; readonly what: string }

/** Octets of an uncompressed point: 0x04, x, y. */
const CURVES = {
  [OID.prime256v1]: { type: 'P-256', pointOctets: 65 },
  [OID.secp384r1]: { type: 'P-384', pointOctets: 97 },
} as const

/**
 * Reads algorithm and size; whether a point lies on its curve is for node:crypto to say.
 * Explicit curve parameters and compressed points come out as `other` (RFC 5480 section 2.1.1).
 * @throws SyntaxError
 */
export function keyKind(spki: DerNode): KeyKind {
  const [algorithm, key] = fields(spki, 'public key', [2, 2])
  const [type, parameters] = fields(algorithm, 'key algorithm', [1, 2])
  const octets = bitsOf(key)
  switch (oidOf(type)) {
    case OID.ecPublicKey:
      return curveOf(parameters, octets)
    case OID.ed25519:
      if (parameters !== undefined || octets.length !== 32)
        return { type: 'other', what: 'malformed Ed25519' }
      return { type: 'Ed25519' }
    case OID.rsaEncryption:
      return { type: 'RSA', bits: modulusBits(octets) }
    default:
      return { type: 'other', what: oidName(oidOf(type)) }
  }
}

function curveOf(parameters: DerNode | undefined, point: Buffer): KeyKind {
  if (parameters?.tag !== TAG.oid) return { type: 'other', what: 'explicit curve parameters' }
  const name = oidOf(parameters)
  const curve = Object.entries(CURVES).find(([dotted]) => dotted === name)?.[1]
  if (curve === undefined) return { type: 'other', what: `curve ${oidName(name)}` }
  if (point.length !== curve.pointOctets || point[0] !== 4) return { type: 'other', what: 'compressed point' }
  return { type: curve.type }
}

function modulusBits(octets: Buffer): number {
  const [modulus] = fields(readDer(octets), 'RSA key', [2, 2])
  const digits = expectTag(modulus, TAG.integer, 'modulus')
    .content.toString('hex')
    .replace(/^(00)+/, '')
  return digits === '' ? 0 : BigInt(`0x${digits}`).toString(2).length
}

/** For messages and evidence: `P-256`, `RSA-1024`, `curve 1.3.132.0.10`. */
export function keyName(kind: KeyKind): string {
  if (kind.type === 'RSA') return `RSA-${kind.bits}`
  return kind.type === 'other' ? kind.what : kind.type
}
