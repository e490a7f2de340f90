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
} from '#shared/pki/der'
import { sha256Hex } from '#shared/pki/keys'
import { nameAttributes } from '#shared/pki/name'
import { OID, oidName } from '#shared/pki/oid'
import { decodeBase64, pemToDer } from '#shared/pki/pem'
import { type Extensions, readExtensions } from '#shared/pki/read-extensions'
import { type KeyKind, keyKind, keyName } from '#shared/pki/spki'
import { checkWishes } from './csr-wishes.ts'

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
 * Checks a PKCS#10 request (RFC 2986) in this order: size, structure, key, proof of possession, wishes.
 * `forbiddenKeys` are SHA-256 hashes of SubjectPublicKeyInfos that no device may have, such as the CA's own.
 * @throws MusterError csr_malformed, csr_key, csr_pop, csr_subject
 */
export async function checkCsr(
  der: Uint8Array,
  forbiddenKeys: ReadonlySet<string> = new Set(),
): Promise<CheckedCsr> {
  if (der.length > MAX_DER_OCTETS) throw malformed('longer than 16 KiB')
  const csr = readCsr(der)
  const spkiHash = sha256Hex(csr.spki.raw)
  const key = acceptedKey(csr.spki)
  if (forbiddenKeys.has(spkiHash)) throw keyRefused('a key of this plane')
  checkPossession(csr, key)
  return { spki: Buffer.from(csr.spki.raw), spkiHash, ...checkWishes(csr) }
}

interface Csr {
  /** What is signed. */
  readonly info: Buffer
  readonly subject: DerNode
  readonly spki: DerNode
  readonly extensions: Extensions
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
    algorithm: expectTag(algorithm, TAG.sequence, 'signature algorithm'),
    signature: bitsOf(signature),
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

/** P-256 or P-384, a point on the curve. @throws MusterError csr_key, csr_malformed */
function acceptedKey(spki: DerNode): KeyObject {
  const kind = kindOf(spki)
  if (kind.type !== 'P-256' && kind.type !== 'P-384') throw keyRefused(keyName(kind))
  try {
    return createPublicKey({ key: spki.raw, format: 'der', type: 'spki' })
  } catch (cause) {
    throw keyRefused(`${keyName(kind)}, not on the curve`, cause)
  }
}

function kindOf(spki: DerNode): KeyKind {
  try {
    return keyKind(spki)
  } catch (cause) {
    throw malformed('public key', cause)
  }
}

/** ECDSA only, because the keys are; no SHA-1. */
const HASHES: ReadonlyMap<string, string> = new Map([
  [OID.ecdsaWithSha256, 'sha256'],
  [OID.ecdsaWithSha384, 'sha384'],
  [OID.ecdsaWithSha512, 'sha512'],
])

/** Proof of possession (RFC 2986 section 4.2). @throws MusterError csr_pop, csr_malformed */
function checkPossession({ info, algorithm, signature }: Csr, key: KeyObject): void {
  const { name, hash } = hashOf(algorithm)
  if (hash === undefined) throw malformed(`signature algorithm ${oidName(name)}`)
  if (!verify(hash, info, key, signature)) {
    throw new MusterError('csr_pop', 'Cannot accept the request: its signature was not made with its key')
  }
}

function hashOf(algorithm: DerNode): { name: string; hash: string | undefined } {
  try {
    // RFC 5758 section 3.2: no parameters
    const name = oidOf(fields(algorithm, 'signature algorithm', [1, 1])[0])
    return { name, hash: HASHES.get(name) }
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
