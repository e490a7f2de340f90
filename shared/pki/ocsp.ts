/** OCSP requests, read strictly, and responses, written (RFC 6960; nonce RFC 9654). */
import { contextTag, type DerNode, expectTag, fields, oidOf, readDer, TAG } from './der.ts'
import { bitString, element, explicit, implicit, octetString, oid, sequence } from './der-write.ts'
import { extension } from './extensions.ts'
import { OID } from './oid.ts'
import { type Extensions, readExtensions } from './read-extensions.ts'
import { encodeGeneralizedTime } from './time.ts'

/** Which certificate is asked about (RFC 6960 section 4.1.1). */
export interface CertId {
  /** DER: a response repeats it octet for octet. */
  readonly raw: Buffer
  /** Dotted. */
  readonly hashAlgorithm: string
  readonly issuerNameHash: Buffer
  readonly issuerKeyHash: Buffer
  /** Content octets of the INTEGER. */
  readonly serial: Buffer
}

export interface OcspRequest {
  readonly certIds: readonly CertId[]
  readonly nonce: Buffer | null
}

/** Certificates in one request; clients of the lightweight profile (RFC 9919 section 3.1.1) ask about one. */
const MAX_CERT_IDS = 16
/** RFC 9654 section 2.1. */
const MAX_NONCE_OCTETS = 128

/** A signature of the client is not looked at: whoever asks may know. @throws SyntaxError */
export function readOcspRequest(der: Uint8Array): OcspRequest {
  const [tbs, signature] = fields(readDer(der), 'OCSPRequest', [1, 2])
  if (signature !== undefined) expectTag(signature, contextTag(0, 'constructed'), 'optionalSignature')
  const parts = [...fields(tbs, 'tbsRequest', [1, 3])]
  // a version would be 1, which is the default and therefore not written (X.690 section 11.5)
  if (parts[0]?.tag === contextTag(1, 'constructed')) parts.shift() // requestorName
  const [list, wrapper, ...others] = parts
  if (others.length > 0) throw new SyntaxError('wrong number of fields in tbsRequest')
  const requests = fields(list, 'requestList', [1, MAX_CERT_IDS])
  const extensions = extensionsIn(wrapper, 2)
  return { certIds: requests.map(readRequest), nonce: readNonce(extensions) }
}

function readRequest(node: DerNode): CertId {
  const [certId, wrapper] = fields(node, 'Request', [1, 2])
  extensionsIn(wrapper, 0)
  const [algorithm, nameHash, keyHash, serial] = fields(certId, 'CertID', [4, 4])
  const [hash, parameters] = fields(algorithm, 'hash algorithm', [1, 2])
  if (parameters !== undefined) expectTag(parameters, TAG.null, 'parameters of the hash algorithm')
  return {
    raw: expectTag(certId, TAG.sequence, 'CertID').raw,
    hashAlgorithm: oidOf(hash),
    issuerNameHash: expectTag(nameHash, TAG.octetString, 'issuerNameHash').content,
    issuerKeyHash: expectTag(keyHash, TAG.octetString, 'issuerKeyHash').content,
    serial: expectTag(serial, TAG.integer, 'serialNumber').content,
  }
}

/** One that must be understood and is not ends the request (RFC 6960 section 4.4). */
function extensionsIn(wrapper: DerNode | undefined, tag: number): Extensions {
  if (wrapper === undefined) return new Map()
  const { children } = expectTag(wrapper, contextTag(tag, 'constructed'), 'extensions')
  if (children.length !== 1) throw new SyntaxError('wrong number of fields in extensions')
  const extensions = readExtensions(children[0])
  for (const [type, { isCritical }] of extensions) {
    if (isCritical && type !== OID.ocspNonce) throw new SyntaxError(`critical extension ${type}`)
  }
  return extensions
}

function readNonce(extensions: Extensions): Buffer | null {
  const found = extensions.get(OID.ocspNonce)
  if (found === undefined) return null
  const { content } = expectTag(readDer(found.value), TAG.octetString, 'nonce')
  if (content.length < 1 || content.length > MAX_NONCE_OCTETS) throw new SyntaxError('nonce length')
  return content
}

/** OCSPResponseStatus (RFC 6960 section 4.2.1); only a successful response is signed. */
export const OCSP_STATUS = {
  successful: 0,
  malformedRequest: 1,
  internalError: 2,
  tryLater: 3,
  unauthorized: 6,
} as const
export type OcspFailure = Exclude<keyof typeof OCSP_STATUS, 'successful'>

/** DER of a response without content. */
export function encodeOcspFailure(failure: OcspFailure): Buffer {
  return sequence(element(TAG.enumerated, Buffer.from([OCSP_STATUS[failure]])))
}

export type CertStatus =
  | { readonly state: 'good' }
  | { readonly state: 'unknown' }
  /** Ms since 1970, and a CRLReason; 0 is left out. */
  | { readonly state: 'revoked'; readonly since: number; readonly reason: number }

export interface SingleResponse {
  /** DER, as it was asked. */
  readonly certId: Uint8Array
  readonly status: CertStatus
  /** Ms since 1970, whole seconds, as all dates are. */
  readonly thisUpdate: number
  readonly nextUpdate: number
}

export interface ResponseContents {
  /** SHA-1 of the responder's key (RFC 6960 section 4.2.1, byKey). */
  readonly responderKeyHash: Uint8Array
  readonly producedAt: number
  readonly responses: readonly SingleResponse[]
  readonly nonce: Uint8Array | null
}

/** DER of the ResponseData, which is signed. */
export function encodeResponseData(contents: ResponseContents): Buffer {
  const { responderKeyHash, producedAt, responses, nonce } = contents
  return sequence(
    explicit(2, octetString(responderKeyHash)),
    encodeGeneralizedTime(producedAt),
    sequence(...responses.map(encodeSingle)),
    ...(nonce === null ? [] : [explicit(1, sequence(extension(OID.ocspNonce, octetString(nonce))))]),
  )
}

function encodeSingle({ certId, status, thisUpdate, nextUpdate }: SingleResponse): Buffer {
  return sequence(
    certId,
    encodeStatus(status),
    encodeGeneralizedTime(thisUpdate),
    explicit(0, encodeGeneralizedTime(nextUpdate)),
  )
}

function encodeStatus(status: CertStatus): Buffer {
  switch (status.state) {
    case 'good':
      return implicit(0, Buffer.alloc(0))
    case 'unknown':
      return implicit(2, Buffer.alloc(0))
    case 'revoked': {
      const since = encodeGeneralizedTime(Math.floor(status.since / 1000) * 1000)
      const reason = element(TAG.enumerated, Buffer.from([status.reason]))
      const content = status.reason === 0 ? [since] : [since, explicit(0, reason)]
      return element(contextTag(1, 'constructed'), ...content)
    }
  }
}

/** DER of the whole response: data, signature, and the certificate of the responder. */
export function encodeOcspResponse(signed: {
  data: Uint8Array
  /** DER of the AlgorithmIdentifier. */
  algorithm: Uint8Array
  signature: Uint8Array
  certificate: Uint8Array
}): Buffer {
  const { data, algorithm, signature, certificate } = signed
  const basic = sequence(data, algorithm, bitString(signature), explicit(0, sequence(certificate)))
  return sequence(
    element(TAG.enumerated, Buffer.from([OCSP_STATUS.successful])),
    explicit(0, sequence(oid(OID.ocspBasic), octetString(basic))),
  )
}
