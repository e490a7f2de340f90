import { X509Certificate } from 'node:crypto'
import { once } from 'node:events'
import { type AddressInfo, createServer as createTcpServer, type Server } from 'node:net'
import { createServer, type TLSSocket, type TlsOptions } from 'node:tls'
import { MusterError } from '#shared/errors'
import { Doorstep } from './doorstep.ts'
import { type GateDeps, type Inside, openGate } from './gate.ts'

export interface Credentials {
  /** Chain of the broker, PEM, leaf first. */
  readonly certificate: string
  readonly key: string
  /** The root that chains must reach, PEM. */
  readonly root: string
  /** CAs below the root whose client certificates are looked at further, PEM; certificates of others are refused. */
  readonly trust: readonly string[]
}

export interface ListenerDeps extends GateDeps, Credentials {
  readonly host: string
  /** 0 for any. */
  readonly port: number
  readonly mqtt: Inside
}

export interface Listener {
  readonly port: number
  /** Sockets that are open, identified or not. */
  open(): number
  /** New connections use the new credentials; open ones stay. */
  reload(credentials: Credentials): void
  /** Destroys every socket and resolves when all have closed. */
  close(): Promise<void>
}

/** AEAD only; TLS 1.2 with ephemeral ECDH. */
const CIPHERS = [
  'TLS_AES_128_GCM_SHA256',
  'TLS_AES_256_GCM_SHA384',
  'TLS_CHACHA20_POLY1305_SHA256',
  'ECDHE-ECDSA-AES128-GCM-SHA256',
  'ECDHE-ECDSA-AES256-GCM-SHA384',
  'ECDHE-ECDSA-CHACHA20-POLY1305',
].join(':')

/**
 * Listens for TLS. A client without an acceptable certificate is not cut off in the handshake, where neither side
 * would learn why: it reaches the gate, which answers.
 * @throws MusterError port_taken
 */
export async function openListener(deps: ListenerDeps): Promise<Listener> {
  const { limits } = deps
  const tls = createServer({
    ...contextOf(deps),
    requestCert: true,
    rejectUnauthorized: false,
    handshakeTimeout: limits.handshakeMs,
  })
  const doorstep = new Doorstep(deps, (socket) => tls.emit('connection', socket))
  let issuers = deps.trust.map((pem) => new X509Certificate(pem))
  tls.on('secureConnection', openGate(deps, { inside: deps.mqtt, issuers: () => issuers, doorstep }))
  // Node only announces a failed handshake, or one that has not ended in time; the socket is ours to destroy.
  tls.on('tlsClientError', (_, socket: TLSSocket) => {
    doorstep.refused(socket)
    socket.destroy()
  })
  // Accepted and not read: the doorstep says when the handshake begins.
  const server = createTcpServer({ pauseOnConnect: true, noDelay: true, keepAlive: true }, (socket) =>
    doorstep.arrived(socket),
  )
  server.listen(deps.port, deps.host)
  await listening(server, deps)
  return {
    port: (server.address() as AddressInfo).port, // listening on TCP
    open: () => doorstep.open(),
    reload(credentials) {
      tls.setSecureContext(contextOf(credentials))
      issuers = credentials.trust.map((pem) => new X509Certificate(pem))
    },
    async close() {
      const closed = once(server, 'close')
      server.close()
      doorstep.close()
      await closed
    },
  }
}

/** Node's servers drop `allowPartialTrustChain`, so chains end at the root, and the gate asks who the issuer is. */
function contextOf({ certificate, key, root, trust }: Credentials): TlsOptions {
  return {
    cert: certificate,
    key,
    ca: [root, ...trust],
    minVersion: 'TLSv1.2',
    maxVersion: 'TLSv1.3',
    ciphers: CIPHERS,
    honorCipherOrder: true,
    sessionIdContext: 'muster-broker',
  }
}

async function listening(server: Server, deps: ListenerDeps): Promise<void> {
  try {
    await once(server, 'listening')
  } catch (cause) {
    const { code } = cause as NodeJS.ErrnoException // what net.Server emits
    if (code !== 'EADDRINUSE') throw cause
    throw new MusterError('port_taken', `Cannot listen on "${deps.host}:${deps.port}": it is in use`, {
      cause,
    })
  }
}
