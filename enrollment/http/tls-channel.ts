import type { Socket } from 'node:net'
import { TLSSocket } from 'node:tls'
import { contextTag, readDer } from '#shared/pki/der'
import type { Channel } from '../channel.ts'

/** `SSL_SESS_FLAG_EXTMS` in the field `flags`, which is `[13]` of OpenSSL's ASN.1 form of a session. */
const EXTENDED_MASTER_SECRET = 1
const FLAGS_TAG = contextTag(13, 'constructed')

/**
 * The tls-unique of a connection: the first Finished message, which is the client's in a full handshake and the
 * server's in a resumed one (RFC 5929 section 3.1). Without the extended master secret two connections can be made to
 * have the same (RFC 7627 section 1); TLS 1.3 has none at all (RFC 8446 appendix C.5).
 */
export function channelOf(socket: Socket): Channel {
  if (!(socket instanceof TLSSocket)) return { tlsUnique: null, why: 'the connection is not encrypted' }
  if (socket.getProtocol() !== 'TLSv1.2') return { tlsUnique: null, why: 'TLS 1.3 has no tls-unique' }
  if (!hasExtendedMasterSecret(socket)) {
    return { tlsUnique: null, why: 'its TLS 1.2 is without the extended master secret' }
  }
  const first = socket.isSessionReused() ? socket.getFinished() : socket.getPeerFinished()
  if (first === undefined) return { tlsUnique: null, why: 'the handshake is not finished' }
  return { tlsUnique: first.toString('base64') }
}

function hasExtendedMasterSecret(socket: TLSSocket): boolean {
  const session = socket.getSession()
  if (session === undefined) return false
  try {
    const [flags] = readDer(session).children.find(({ tag }) => tag === FLAGS_TAG)?.children ?? []
    return ((flags?.content.at(-1) ?? 0) & EXTENDED_MASTER_SECRET) !== 0
  } catch {
    return false // another form of session than we know: nothing to rely on
  }
}
