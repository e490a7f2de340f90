import { createPrivateKey, X509Certificate } from 'node:crypto'
import type { Pair, RunningEnrollment } from './enrollment.ts'

const PKCS10 = { 'content-type': 'application/pkcs10' }

export interface Reply {
  readonly status: number
  readonly text: string
  readonly rawHeaders: Record<string, string>
}

/** The parts of a multipart body by their media type, with their headers (RFC 2046 section 5.1.1). */
export function partsOf(reply: Pick<Reply, 'text' | 'rawHeaders'>) {
  const boundary = /^multipart\/mixed; boundary=([0-9a-f]{32})$/.exec(
    reply.rawHeaders['Content-Type'] ?? '',
  )?.[1]
  const [preamble, ...parts] = reply.text.split(`--${boundary}`)
  const last = parts.pop()
  if (preamble !== '' || last !== '--\r\n') throw new Error(`not two delimited parts: ${reply.text}`)
  return parts.map((part) => {
    const [head = '', body = ''] = part.split('\r\n\r\n')
    return { headers: head.trim().split('\r\n'), der: Buffer.from(body, 'base64') }
  })
}

/** Key and certificate of a reply. */
export function pairOf(reply: Reply): Pair & { der: Buffer; leaf: X509Certificate } {
  const [key, certificates] = partsOf(reply)
  if (!key || !certificates) throw new Error(reply.text)
  const at = certificates.der.indexOf(Buffer.from('3082', 'hex'), 40)
  const from = certificates.der.subarray(at)
  const leaf = new X509Certificate(from.subarray(0, 4 + from.readUInt16BE(2)))
  const privateKey = createPrivateKey({ key: key.der, format: 'der', type: 'pkcs8' })
  const pem = privateKey.export({ type: 'pkcs8', format: 'pem' }) as string // a PEM export is text
  return { key: pem, certificate: leaf.toString(), der: key.der, leaf }
}

function basic(token: string): Record<string, string> {
  return { ...PKCS10, authorization: `Basic ${Buffer.from(`:${token}`).toString('base64')}` }
}

/** `serverkeygen` with a token, or with the certificate of a pair. */
export async function askForKey(
  service: RunningEnrollment,
  of: { csr: Buffer; token?: string; label?: string; pair?: Pair; userAgent?: string },
): Promise<Reply> {
  const client = service.client(of.pair)
  const headers = of.token === undefined ? PKCS10 : basic(of.token)
  const agent = of.userAgent === undefined ? {} : { 'user-agent': of.userAgent }
  const label = of.label === undefined ? '' : `${of.label}/`
  const body = of.csr.toString('base64')
  const path = `/.well-known/est/${label}serverkeygen`
  return client.send('POST', path, { headers: { ...headers, ...agent }, body }).finally(() => client.close())
}
