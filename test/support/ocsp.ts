/** OCSP requests, also such as no client would make, and a reader of responses. */
import { createHash, createPublicKey, verify, X509Certificate } from 'node:crypto'
import { bitsOf, contextTag, type DerNode, expectTag, fields, oidOf, readDer, TAG } from '#shared/pki/der'
import { element, explicit, NULL, octetString, oid, sequence, unsigned } from '#shared/pki/der-write'
import { criticalExtension, extension } from '#shared/pki/extensions'
import { OID } from '#shared/pki/oid'

export interface OcspAsk {
  /** PEM. */
  readonly issuer: string
  /** Hex. */
  readonly serials: readonly string[]
  readonly hash?: 'sha1' | 'sha256' | 'sha384'
  readonly nonce?: Buffer
  /** DER of Extensions. */
  readonly extensions?: readonly Buffer[]
}

const HASH_OIDS = { sha1: OID.sha1, sha256: OID.sha256, sha384: '2.16.840.1.101.3.4.2.2' }

export function certId(
  { issuer, hash = 'sha256' }: Pick<OcspAsk, 'issuer' | 'hash'>,
  serial: string,
): Buffer {
  const certificate = new X509Certificate(issuer)
  const subject = fields(readDer(certificate.raw).children[0], 'tbs', [6, 10])[5]
  const [, key] = fields(
    readDer(certificate.publicKey.export({ type: 'spki', format: 'der' })),
    'spki',
    [2, 2],
  )
  const digest = (octets: Uint8Array) => createHash(hash).update(octets).digest()
  return sequence(
    sequence(oid(HASH_OIDS[hash]), NULL),
    octetString(digest(subject?.raw ?? Buffer.alloc(0))),
    octetString(digest(bitsOf(key))),
    unsigned(Buffer.from(serial, 'hex')),
  )
}

export const nonceExtension = (nonce: Uint8Array) => extension(OID.ocspNonce, octetString(nonce))
export const criticalUnknown = criticalExtension('1.2.3.4', NULL)

export function ocspRequest(ask: OcspAsk): Buffer {
  const { serials, nonce, extensions = [] } = ask
  const all = [...(nonce ? [nonceExtension(nonce)] : []), ...extensions]
  const requests = sequence(...serials.map((serial) => sequence(certId(ask, serial))))
  return sequence(sequence(requests, ...(all.length > 0 ? [explicit(2, sequence(...all))] : [])))
}

export interface OcspSaid {
  /** OCSPResponseStatus. */
  readonly status: number
  readonly statuses: readonly string[]
  readonly nonce: Buffer | null
  readonly keyHash: Buffer
  readonly dates: readonly string[]
  readonly responder: X509Certificate
}

/** @throws when the signature is not that of the certificate in the response, or that one not the issuer's */
export function readOcspResponse(der: Uint8Array, issuer: string): OcspSaid | { readonly status: number } {
  const [statusNode, wrapper] = fields(readDer(der), 'OCSPResponse', [1, 2])
  const status = expectTag(statusNode, TAG.enumerated, 'status').content[0] ?? -1
  if (wrapper === undefined) return { status }
  const [type, octets] = fields(wrapper.children[0], 'ResponseBytes', [2, 2])
  if (oidOf(type) !== OID.ocspBasic || octets === undefined) throw new Error('not a basic response')
  const [data, , signature, certificates] = fields(readDer(octets.content), 'BasicOCSPResponse', [4, 4])
  if (data === undefined) throw new Error('no data')
  const responder = new X509Certificate(certificates?.children[0]?.children[0]?.raw ?? Buffer.alloc(0))
  if (!verify('sha256', data.raw, responder.publicKey, bitsOf(signature))) throw new Error('signature')
  if (!responder.verify(createPublicKey(issuer))) throw new Error('not delegated by the issuer')
  const [id, producedAt, list, extensions] = fields(data, 'ResponseData', [3, 4])
  const keyHash = expectTag(id, contextTag(2, 'constructed'), 'byKey').children[0]
  const responses = expectTag(list, TAG.sequence, 'responses').children
  const found = extensions?.children[0]?.children[0]?.children[1]
  return {
    status,
    statuses: responses.map(statusOf),
    nonce: found ? readDer(found.content).content : null,
    keyHash: expectTag(keyHash, TAG.octetString, 'KeyHash').content,
    dates: [producedAt, ...responses.flatMap(({ children }) => [children[2], children[3]?.children[0]])].map(
      dateOf,
    ),
    responder,
  }
}

function statusOf({ children }: DerNode): string {
  const node = children[1]
  if (node?.tag === contextTag(0, 'primitive')) return 'good'
  if (node?.tag === contextTag(2, 'primitive')) return 'unknown'
  const [, reason] = expectTag(node, contextTag(1, 'constructed'), 'revoked').children
  return `revoked ${reason?.children[0]?.content[0] ?? 0}`
}

function dateOf(node: DerNode | undefined): string {
  return expectTag(node, TAG.generalizedTime, 'date').content.toString('latin1')
}

/** As `element`, for tests that bend a request. */
export const der = { element, sequence, explicit, octetString }
