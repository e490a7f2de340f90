/** PEM armour (RFC 7468), read strictly: a block, white space around it, nothing else. */

export type PemLabel =
  | 'CERTIFICATE'
  | 'CERTIFICATE REQUEST'
  | 'X509 CRL'
  | 'PUBLIC KEY'
  | 'ENCRYPTED PRIVATE KEY'

/** Lines of 64 columns, with a final line break. */
export function derToPem(der: Uint8Array, label: PemLabel): string {
  const text = Buffer.from(der.buffer, der.byteOffset, der.byteLength).toString('base64')
  let lines = ''
  // a regular expression takes five times as long, and every enrollment writes two
  for (let at = 0; at < text.length; at += 64) lines += `${text.slice(at, at + 64)}\n`
  return `-----BEGIN ${label}-----\n${lines}-----END ${label}-----\n`
}

/** The one block of `text`. @throws SyntaxError when there is another label, more than one block, or text around it */
export function pemToDer(text: string, label: string): Buffer {
  const begin = `-----BEGIN ${label}-----`
  const end = `-----END ${label}-----`
  const trimmed = text.trim()
  if (!trimmed.startsWith(begin) || !trimmed.endsWith(end) || trimmed.length < begin.length + end.length) {
    throw new SyntaxError(`no PEM of a ${label}`)
  }
  return decodeBase64(trimmed.slice(begin.length, -end.length))
}

/**
 * Base64 as EST clients send it: with or without line breaks and blanks, padded, nothing else.
 * @throws SyntaxError
 */
export function decodeBase64(text: string): Buffer {
  const dense = text.replace(/[\r\n\t ]+/g, '')
  const bytes = Buffer.from(dense, 'base64')
  // Buffer.from skips what it does not know, so only the way back tells whether this was base64
  if (dense === '' || bytes.toString('base64') !== dense) throw new SyntaxError('not base64')
  return bytes
}

const BLOCK = /-----BEGIN ([A-Z0-9 ]{1,40})-----[^-]*-----END \1-----/g

/** Every block of a bundle as a PEM of its own, in order; text between blocks is left out. */
export function splitPem(text: string): string[] {
  return [...text.matchAll(BLOCK)].map(([block]) => `${block}\n`)
}
