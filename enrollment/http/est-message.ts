import { MusterError } from '#shared/errors'
import { certsOnly } from '#shared/pki/pkcs7'

/** Octets of base64 that a request may have: 16 KiB of DER, and room for line breaks. */
const BODY_LIMIT = 24 * 1024
const BASE64 = /^(?:[A-Za-z0-9+/]{4})*(?:[A-Za-z0-9+/]{2}==|[A-Za-z0-9+/]{3}=)?$/

/** DER of a request body: base64 with CR, LF, space and tab anywhere (RFC 8951 section 3.1). @throws MusterError csr_malformed */
export function readBody(body: unknown): Buffer {
  if (!Buffer.isBuffer(body) || body.length === 0) throw malformed('the body is empty')
  if (body.length > BODY_LIMIT) throw malformed(`the body is longer than ${BODY_LIMIT} octets`)
  const text = body.toString('latin1').replace(/[\r\n\t ]/g, '')
  if (text === '') throw malformed('the body is empty')
  if (!BASE64.test(text)) throw malformed('the body is not base64 of DER')
  return Buffer.from(text, 'base64')
}

/** Media type without parameters, lower case (RFC 9110 section 8.3.1). */
export function mediaType(header: string | undefined): string {
  return (header ?? '').split(';')[0]?.trim().toLowerCase() ?? ''
}

/** The password of Basic credentials, which is the token; the user name may be empty (RFC 7030 section 3.2.3). */
export function basicPassword(header: string | undefined): string | null {
  const encoded = /^Basic +([A-Za-z0-9+/]+={0,2})$/i.exec(header ?? '')?.[1]
  if (encoded === undefined) return null
  const decoded = Buffer.from(encoded, 'base64').toString('utf8')
  const colon = decoded.indexOf(':')
  return colon < 0 ? null : decoded.slice(colon + 1)
}

/**
 * Certificates as base64 of a certs-only SignedData. libest reads lines of 64 characters, strongSwan one line;
 * senders may do either (RFC 8951 section 3.1).
 */
export function writeCertificates(
  certificates: readonly Uint8Array[],
  userAgent: string | undefined,
): string {
  return inBase64(certsOnly([...certificates]), userAgent)
}

/** A private key and the certificate for it, each as base64 (RFC 7030 section 4.4.2 with RFC 8951 section 3.2.4). */
export function writeKeyAndCertificate(
  of: { privateKey: Uint8Array; certificate: Uint8Array },
  { boundary, userAgent }: { boundary: string; userAgent: string | undefined },
): { type: string; body: string } {
  const parts = [
    ['application/pkcs8', inBase64(Buffer.from(of.privateKey), userAgent)],
    ['application/pkcs7-mime; smime-type=certs-only', writeCertificates([of.certificate], userAgent)],
  ]
  const written = parts.map(([type, text]) =>
    [`--${boundary}`, `Content-Type: ${type}`, 'Content-Transfer-Encoding: base64', '', text, ''].join(
      '\r\n',
    ),
  )
  return { type: `multipart/mixed; boundary=${boundary}`, body: `${written.join('')}--${boundary}--\r\n` }
}

function inBase64(der: Buffer, userAgent: string | undefined): string {
  const base64 = der.toString('base64')
  return /\blibest\b/i.test(userAgent ?? '') ? base64.replace(/.{1,64}/g, '$&\n') : base64
}

function malformed(violation: string): MusterError {
  return new MusterError('csr_malformed', `Cannot read the request: ${violation}`, {
    evidence: { violation },
  })
}
