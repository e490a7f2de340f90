import { createPublicKey, type KeyObject, verify } from 'node:crypto'
import { MusterError } from '#shared/errors'
import type { DeviceId } from '#shared/identity/device'
import {
  bitsOf,
  contextTag,
  type DerNode,
  expectTag,
  fields,
  oidOf,
  readDer,
  smallIntegerOf,
  TAG,
  textOf,
} from '#shared/pki/der'
import { sha256Hex } from '#shared/pki/keys'
import { nameAttributes } from '#shared/pki/name'
import { OID, oidName } from '#shared/pki/oid'
import { decodeBase64, derToPem, pemToDer } from '#shared/pki/pem'
import { type Extensions, readExtensions } from '#shared/pki/read-extensions'
import { certifiableType, KEY_TYPES, type KeyKind, type KeyType, keyKind, keyName } from '#shared/pki/spki'
import { checkWishes, type Wishes, wishesOf } from './csr-wishes.ts'

/** A request whose form, key and signature are right, and which wishes for nothing that it cannot have. */
export interface CheckedCsr {
  /** DER of the SubjectPublicKeyInfo. */
  readonly spki: Buffer
  /** SHA-256 of it, lower-case hex. */
  readonly spkiHash: string
  readonly commonName: DeviceId | null
  /** SPIFFE ids that it wishes for; whether they are the device's own is for the enrollment to say. */
  readonly uris: readonly string[]
}

/** A request of a device, whose key and names are still to be compared with the profile of its fleet. */
export interface CheckedDeviceCsr extends Pick<CheckedCsr, 'spki' | 'spkiHash'>, Wishes {
  readonly key: { readonly type: KeyType /** As it is shown: `RSA-2048`. */; readonly name: string }
  /** Null without one, or one that is no text. */
  readonly challengePassword: string | null
}

/** Without a profile: what every client can do. */
const PLAIN_KEYS: readonly KeyType[] = ['P-256', 'P-384']

const MAX_DER_OCTETS = 16 * 1024
/** Base64 of that much, with line breaks and armour. */
const MAX_TEXT_LENGTH = 24 * 1024

/**
 * DER of a request in PEM, or in base64 as EST sends it.
 * @throws MusterError csr_malformed (evidence: violation)
 */
export function decodeCsr(text: string): Buffer {
  if (text.length > MAX_TEXT_LENGTH) throw malformed('longer than 16 KiB')
  try {
    return decodeText(text)
  } catch (cause) {
    throw malformed('not PEM or base64 of a request', cause)
  }
}

function decodeText(text: string): Buffer {
  if (!text.includes('-----BEGIN')) return decodeBase64(text)
  // the second label is what older OpenSSL and some appliances write
  const label = text.includes('BEGIN NEW') ? 'NEW CERTIFICATE REQUEST' : 'CERTIFICATE REQUEST'
  return pemToDer(text, label)
}

/**
 * Checks a PKCS#10 request (RFC 2986) in this order: size, structure, key, proof of possession, wishes. The key is
 * P-256 or P-384, and nothing but an identity may be wished for.
 * `forbiddenKeys` are SHA-256 hashes of SubjectPublicKeyInfos that no device may have, such as the CA's own.
 * @throws MusterError csr_malformed, csr_key, csr_pop, csr_subject
 */
export async function checkCsr(
  der: Uint8Array,
  forbiddenKeys: ReadonlySet<string> = new Set(),
): Promise<CheckedCsr> {
  const csr = readSized(der)
  const { spki, spkiHash } = provenKey(csr, { forbiddenKeys, types: PLAIN_KEYS })
  return { spki, spkiHash, ...checkWishes(csr) }
}

/**
 * The same for a device, whose fleet's profile may allow other keys and names: the caller must compare them with it.
 * @throws MusterError csr_malformed, csr_key, csr_pop, csr_subject
 */
export async function checkDeviceCsr(
  der: Uint8Array,
  forbiddenKeys: ReadonlySet<string> = new Set(),
): Promise<CheckedDeviceCsr> {
  const csr = readSized(der)
  const proven = provenKey(csr, { forbiddenKeys, types: KEY_TYPES })
  return { ...proven, ...wishesOf(csr), challengePassword: csr.challengePassword }
}

/** A request for a key that somebody else makes: what is left of it. */
export interface CheckedKeylessCsr extends Wishes {
  /** SHA-256 of the SubjectPublicKeyInfo in the request, lower-case hex: nothing is certified for it. */
  readonly requestKey: string
  readonly challengePassword: string | null
}

/**
 * Checks the names of a request for a key that the plane makes; the key in it and its signature are not looked at
 * (RFC 7030 section 4.4.1).
 * @throws MusterError csr_malformed, csr_subject, server_key (the new key is to be encrypted)
 */
export function checkKeylessCsr(der: Uint8Array): CheckedKeylessCsr {
  const csr = readSized(der)
  for (const node of csr.attributes) refuseEncryption(node)
  const { challengePassword } = csr
  return { requestKey: sha256Hex(csr.spki.raw), ...wishesOf(csr), challengePassword }
}

/** RFC 7030 sections 4.4.1.1 and 4.4.1.2: without the key that is named, the request ends. @throws MusterError server_key */
function refuseEncryption(attribute: DerNode): void {
  const [type] = attribute.children
  if (type?.tag !== TAG.oid) return
  const name = oidName(oidOf(type))
  if (name !== 'decryptKeyId' && name !== 'asymmDecryptKeyId') return
  const why = `the attribute ${name} asks for encryption with a key that the plane does not have`
  throw new MusterError('server_key', `Cannot make a key: ${why}`, { evidence: { why } })
}

/** @throws MusterError csr_malformed */
function readSized(der: Uint8Array): Csr {
  if (der.length > MAX_DER_OCTETS) throw malformed('longer than 16 KiB')
  return readCsr(der)
}

/** @throws MusterError csr_key, csr_malformed, csr_pop */
function provenKey(
  csr: Csr,
  rules: { readonly forbiddenKeys: ReadonlySet<string>; readonly types: readonly KeyType[] },
): Pick<CheckedDeviceCsr, 'spki' | 'spkiHash' | 'key'> {
  const spkiHash = sha256Hex(csr.spki.raw)
  const { key, type, name } = acceptedKey(csr.spki, rules.types)
  if (rules.forbiddenKeys.has(spkiHash)) throw keyRefused('a key of this plane')
  checkPossession(csr, { key, type })
  return { spki: Buffer.from(csr.spki.raw), spkiHash, key: { type, name } }
}

interface Csr {
  /** What is signed. */
  readonly info: Buffer
  readonly subject: DerNode
  readonly spki: DerNode
  readonly extensions: Extensions
  readonly attributes: readonly DerNode[]
  readonly challengePassword: string | null
  readonly algorithm: DerNode
  readonly signature: Buffer
}

/** @throws MusterError csr_malformed */
function readCsr(der: Uint8Array): Csr {
  try {
    return parseCsr(der)
  } catch (cause) {
    if (!(cause instanceof SyntaxError)) throw cause
    throw malformed(cause.message, cause)
  }
}

function parseCsr(der: Uint8Array): Csr {
  const [info, algorithm, signature] = fields(readDer(der), 'request', [3, 3])
  const [version, subject, spki, attributes] = fields(info, 'request info', [3, 4])
  if (smallIntegerOf(version) !== 0) throw new SyntaxError('version other than 0')
  nameAttributes(subject)
  return {
    info: expectTag(info, TAG.sequence, 'request info').raw,
    subject: expectTag(subject, TAG.sequence, 'subject'),
    spki: expectTag(spki, TAG.sequence, 'public key'),
    extensions: attributes === undefined ? new Map() : wishedExtensions(attributes),
    attributes: attributes?.children ?? [],
    challengePassword: attributes === undefined ? null : challengePasswordIn(attributes),
    algorithm: expectTag(algorithm, TAG.sequence, 'signature algorithm'),
    signature: bitsOf(signature),
  }
}

/** RFC 2985 section 5.4.1: one value. Whatever else stands there is no password. */
function challengePasswordIn(attributes: DerNode): string | null {
  const values = attributes.children.flatMap((node) => {
    const [type, set] = node.children
    return type?.tag === TAG.oid && oidOf(type) === OID.challengePassword ? (set?.children ?? []) : []
  })
  const [value] = values
  if (value === undefined || values.length > 1) return null
  try {
    return textOf(value)
  } catch {
    return null
  }
}

/** At most one extensionRequest with one value (RFC 2985 section 5.4.2); other attributes are left alone. */
function wishedExtensions(attributes: DerNode): Extensions {
  const requests = expectTag(attributes, contextTag(0, 'constructed'), 'attributes').children.flatMap(
    (node) => {
      const [type, values] = fields(node, 'attribute', [2, 2])
      const { children } = expectTag(values, TAG.set, 'attribute values')
      return oidOf(type) === OID.extensionRequest ? [children] : []
    },
  )
  const [values] = requests
  if (values === undefined) return new Map()
  if (requests.length > 1 || values.length !== 1) throw new SyntaxError('more than one extension request')
  return readExtensions(values[0])
}

interface AcceptedKey {
  readonly key: KeyObject
  readonly type: KeyType
  readonly name: string
}

/** A key of one of the types; of a curve, a point on it. @throws MusterError csr_key, csr_malformed */
function acceptedKey(spki: DerNode, types: readonly KeyType[]): AcceptedKey {
  const kind = kindOf(spki)
  const name = keyName(kind)
  const type = certifiableType(kind)
  if (type === null || !types.includes(type)) throw keyRefused(name)
  try {
    // as PEM, because node:crypto takes twice the time over an object that holds the DER: it tries what else it may be
    return { key: createPublicKey(derToPem(spki.raw, 'PUBLIC KEY')), type, name }
  } catch (cause) {
    throw keyRefused(`${name}, not on the curve`, cause)
  }
}

function kindOf(spki: DerNode): KeyKind {
  try {
    return keyKind(spki)
  } catch (cause) {
    throw malformed('public key', cause)
  }
}

/** The hash of a signature; null for schemes that have their own. */
type Hash = string | null

const ECDSA: ReadonlyMap<string, Hash> = new Map([
  [OID.ecdsaWithSha256, 'sha256'],
  [OID.ecdsaWithSha384, 'sha384'],
  [OID.ecdsaWithSha512, 'sha512'],
])

/** What a key of each type signs with; no SHA-1, no MD5. */
const SIGNATURES: Readonly<Record<KeyType, ReadonlyMap<string, Hash>>> = {
  'P-256': ECDSA,
  'P-384': ECDSA,
  Ed25519: new Map([[OID.ed25519, null]]),
  'ML-DSA-44': new Map([[OID.mlDsa44, null]]),
  'ML-DSA-65': new Map([[OID.mlDsa65, null]]),
  RSA: new Map([
    [OID.sha256WithRsa, 'sha256'],
    [OID.sha384WithRsa, 'sha384'],
    [OID.sha512WithRsa, 'sha512'],
  ]),
}

/** Proof of possession (RFC 2986 section 4.2). @throws MusterError csr_pop, csr_malformed */
function checkPossession(
  { info, algorithm, signature }: Csr,
  { key, type }: Pick<AcceptedKey, 'key' | 'type'>,
): void {
  const name = algorithmOf(algorithm, type)
  const hash = SIGNATURES[type].get(name)
  if (hash === undefined) throw malformed(`signature algorithm ${oidName(name)}`)
  if (!verify(hash, info, key, signature)) {
    throw new MusterError('csr_pop', 'Cannot accept the request: its signature was not made with its key')
  }
}

/** RFC 5758 section 3.2, RFC 8410 section 3: no parameters; for RSA they are NULL (RFC 4055 section 5). */
function algorithmOf(algorithm: DerNode, type: KeyType): string {
  try {
    const [name, parameters] = fields(algorithm, 'signature algorithm', type === 'RSA' ? [2, 2] : [1, 1])
    if (type === 'RSA') expectTag(parameters, TAG.null, 'signature algorithm')
    return oidOf(name)
  } catch (cause) {
    throw malformed('signature algorithm', cause)
  }
}

function malformed(violation: string, cause?: unknown): MusterError {
  return new MusterError('csr_malformed', `Cannot read the request: ${violation}`, {
    cause,
    evidence: { violation },
  })
}

function keyRefused(key: string, cause?: unknown): MusterError {
  return new MusterError('csr_key', `Cannot accept the key of the request: ${key}`, {
    cause,
    evidence: { key },
  })
}
