import type { X509Certificate } from 'node:crypto'
import { once } from 'node:events'
import { connect, type TLSSocket } from 'node:tls'
import { MusterError } from '#shared/errors'
import { type PresentedChain, proveChain, type Validity } from './server-chain.ts'

export interface ServerSocketOptions {
  /** A name, or an address without brackets. */
  readonly host: string
  readonly port: number
  /** PEM of the roots that are believed. */
  readonly ca: string
  readonly certificate?: string | undefined
  readonly key?: string | undefined
  /** TLS session of an earlier connection, which was proven. */
  readonly session?: Buffer | undefined
  readonly protocol?: string
  /** From the first SYN to the end of the handshake, ms. */
  readonly deadlineMs: number
}

export interface ServerSocket {
  readonly socket: TLSSocket
  /** When the server's chain is good. Nothing has been sent yet: the caller says whether that is now. */
  readonly validity: Validity
  /** The newest TLS session that can be resumed. */
  session(): Buffer | undefined
}

/** A session that is resumed shows no certificates: they were judged when it began, hours ago at most. */
const PROVEN_BEFORE: Validity = { from: 0, to: Number.POSITIVE_INFINITY }
/** A root may be linked to itself. */
const MOST_SENT = 8
/** What OpenSSL says when it is only the clock of this machine that does not fit, or else something worse as well. */
const DATE_FAULTS = ['CERT_NOT_YET_VALID', 'CERT_HAS_EXPIRED']

/**
 * Connects, and proves who the server is apart from the dates of its chain, which are the caller's to judge.
 * @throws MusterError unreachable
 */
export async function openServerSocket(options: ServerSocketOptions): Promise<ServerSocket> {
  const { host, port, ca, certificate: cert, key } = options
  const socket = connect({
    ...{ host, port, ca, cert, key, session: options.session },
    servername: /^[\d.]+$|:/.test(host) ? '' : host, // SNI has no addresses (RFC 6066 section 3)
    rejectUnauthorized: false, // not before the dates have been told apart from the rest, below
    ...(options.protocol ? { ALPNProtocols: [options.protocol] } : {}),
  })
  let session: Buffer | undefined
  socket.on('session', (ticket) => {
    session = ticket
  })
  const alarm = setTimeout(() => socket.destroy(new Error('it did not answer in time')), options.deadlineMs)
  try {
    await once(socket, 'secureConnect')
    const validity = prove(socket, options)
    if (socket.destroyed) throw new Error('the connection closed')
    return { socket, validity, session: () => session }
  } catch (cause) {
    socket.destroy()
    const { message } = cause as Error // of a socket, or of ours
    throw new MusterError('unreachable', `Cannot reach "${host}:${port}": ${message}`, { cause })
  } finally {
    clearTimeout(alarm)
  }
}

function prove(socket: TLSSocket, { host, ca: roots }: ServerSocketOptions): Validity {
  const fault = socket.authorized ? null : String(socket.authorizationError)
  if (fault !== null && !DATE_FAULTS.includes(fault)) throw new Error(fault)
  if (socket.isSessionReused()) return PROVEN_BEFORE
  const leaf = socket.getPeerX509Certificate()
  if (leaf === undefined) throw new Error('it has shown no certificate')
  if (fault !== null) return proveChain({ leaf, sent: sentWith(leaf) }, { host, roots })
  return { from: leaf.validFromDate.getTime(), to: leaf.validToDate.getTime() } // OpenSSL has proven the path
}

/** Node links each certificate to its issuer as far as one was sent. */
function sentWith(leaf: X509Certificate): PresentedChain['sent'] {
  const sent: X509Certificate[] = []
  for (let each = leaf.issuerCertificate; each && sent.length < MOST_SENT; each = each.issuerCertificate) {
    sent.push(each)
  }
  return sent
}
