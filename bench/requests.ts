import { sign } from 'node:crypto'
import { bitString, explicit, integer, oid, sequence } from '#shared/pki/der-write'
import { generateKey, spkiDer } from '#shared/pki/keys'
import { encodeName } from '#shared/pki/name'
import { OID } from '#shared/pki/oid'
import { derToPem } from '#shared/pki/pem'

/** A request of a device for its first certificate (PKCS#10), PEM. A new P-256 key each. */
export function newCsr(commonName: string, key = generateKey()): string {
  const info = sequence(integer(0), encodeName({ commonName }), spkiDer(key), explicit(0, Buffer.alloc(0)))
  const signature = sign('sha256', info, key)
  return derToPem(
    sequence(info, sequence(oid(OID.ecdsaWithSha256)), bitString(signature)),
    'CERTIFICATE REQUEST',
  )
}

/** What a device connects with. */
export interface DevicePair {
  readonly id: string
  /** PEM. */
  readonly certificate: string
  readonly key: string
}

/** A whole HTTP/1.1 request. */
export function post(path: string, message: { type: string; body: string; headers?: string }): Buffer {
  const { type, body, headers = '' } = message
  return Buffer.from(
    `POST ${path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: ${type}\r\n${headers}Content-Length: ${Buffer.byteLength(body)}\r\n\r\n${body}`,
  )
}
