import { bitsOf, type DerNode, expectTag, fields, oidOf, readDer, TAG } from './der.ts'
import { OID, oidName } from './oid.ts'

/** Keys that a certificate of this plane can be for; which of them a device may have, the profile of its fleet says. */
export const KEY_TYPES = ['P-256', 'P-384', 'Ed25519', 'ML-DSA-44', 'ML-DSA-65', 'RSA'] as const
export type KeyType = (typeof KEY_TYPES)[number]

/** What kind of key a SubjectPublicKeyInfo holds, as far as its encoding tells. */
export type KeyKind =
  | { readonly type: Exclude<KeyType, 'RSA'> }
  | { readonly type: 'RSA'; readonly bits: number; readonly exponent: bigint }
  | { readonly type: 'other'; readonly what: string }

/** Keys without parameters, whose octets are all of one length (RFC 8410 section 4, RFC 9881 section 4). */
const PLAIN = {
  [OID.ed25519]: { type: 'Ed25519', keyOctets: 32 },
  [OID.mlDsa44]: { type: 'ML-DSA-44', keyOctets: 1312 },
  [OID.mlDsa65]: { type: 'ML-DSA-65', keyOctets: 1952 },
} as const

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
  const name = oidOf(type)
  if (name === OID.ecPublicKey) return curveOf(parameters, octets)
  if (name === OID.rsaEncryption) return rsaOf(parameters, octets)
  const plain = Object.entries(PLAIN).find(([dotted]) => dotted === name)?.[1]
  if (plain === undefined) return { type: 'other', what: oidName(name) }
  const isFit = parameters === undefined && octets.length === plain.keyOctets
  return isFit ? { type: plain.type } : { type: 'other', what: `malformed ${plain.type}` }
}

function curveOf(parameters: DerNode | undefined, point: Buffer): KeyKind {
  if (parameters?.tag !== TAG.oid) return { type: 'other', what: 'explicit curve parameters' }
  const name = oidOf(parameters)
  const curve = Object.entries(CURVES).find(([dotted]) => dotted === name)?.[1]
  if (curve === undefined) return { type: 'other', what: `curve ${oidName(name)}` }
  if (point.length !== curve.pointOctets || point[0] !== 4) return { type: 'other', what: 'compressed point' }
  return { type: curve.type }
}

/** RFC 3279 section 2.3.1: the parameters are NULL. */
function rsaOf(parameters: DerNode | undefined, octets: Buffer): KeyKind {
  if (parameters?.tag !== TAG.null) return { type: 'other', what: 'malformed RSA' }
  const [modulus, exponent] = fields(readDer(octets), 'RSA key', [2, 2])
  const bits = unsignedOf(modulus, 'modulus')
  return {
    type: 'RSA',
    bits: bits === 0n ? 0 : bits.toString(2).length,
    exponent: unsignedOf(exponent, 'exponent'),
  }
}

/** Zero for one that is negative: it is no key either way. */
function unsignedOf(node: DerNode | undefined, what: string): bigint {
  const { content } = expectTag(node, TAG.integer, what)
  return (content[0] ?? 0x80) >= 0x80 ? 0n : BigInt(`0x${content.toString('hex')}`)
}

/** The type of a key that may be certified at all: RSA from 2048 to 4096 bits with the exponent 65537; else null. */
export function certifiableType(kind: KeyKind): KeyType | null {
  if (kind.type === 'other') return null
  if (kind.type !== 'RSA') return kind.type
  return kind.bits >= 2048 && kind.bits <= 4096 && kind.exponent === 65_537n ? 'RSA' : null
}

/** For messages and evidence: `P-256`, `RSA-1024`, `curve 1.3.132.0.10`. */
export function keyName(kind: KeyKind): string {
  if (kind.type === 'RSA') {
    return kind.exponent === 65_537n
      ? `RSA-${kind.bits}`
      : `RSA-${kind.bits} with exponent ${kind.exponent}`.slice(0, 100)
  }
  return kind.type === 'other' ? kind.what : kind.type
}
