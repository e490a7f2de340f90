import { X509Certificate } from 'node:crypto'
import { once } from 'node:events'
import { type AddressInfo, createServer as createTcpServer, type Server } from 'node:net'
import { createServer, type TLSSocket } from 'node:tls'
import { MusterError } from '#shared/errors'
import { Doorstep } from './doorstep.ts'
import { type GateDeps, type Inside, openGate } from './gate.ts'
import { type Credentials, openTlsIdentity } from './tls.ts'

export type { Credentials } from './tls.ts'

export interface ListenerDeps extends GateDeps, Credentials {
  readonly host: string
  /** 0 for any. */
  readonly port: number
  readonly mqtt: Inside
  /** Names that a certificate must have to be used; at least one of any when none is given. */
  readonly hosts?: readonly string[]
  /** For tests, which restart a broker with the same keys of session tickets. */
  readonly ticketKeys?: Buffer
}

export interface Listener {
  readonly port: number
  /** Sockets that are open, identified or not. */
  open(): number
  /** New connections use the new credentials, as far as they can be used; open ones stay. */
  reload(credentials: Credentials): void
  /** What of the last reload could not be used, a sentence each. */
  faults(): readonly string[]
  /** Destroys every socket and resolves when all have closed. */
  close(): Promise<void>
}

/**
 * Listens for TLS. A client without an acceptable certificate is not cut off in the handshake, where neither side
 * would learn why: it reaches the gate, which answers.
 * @throws MusterError port_taken
 */
export async function openListener(deps: ListenerDeps): Promise<Listener> {
  const { limits } = deps
  const identity = openTlsIdentity(deps, deps)
  const tls = createServer({
    requestCert: true,
    rejectUnauthorized: false,
    handshakeTimeout: limits.handshakeMs,
  })
  const doorstep = new Doorstep(deps, (socket) => tls.emit('connection', socket))
  identity.serve(tls)
  let issuers = identity.trust.map((pem) => new X509Certificate(pem))
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
      identity.reload(credentials)
      issuers = identity.trust.map((pem) => new X509Certificate(pem))
    },
    faults: () => identity.faults,
    async close() {
      identity.close()
      const closed = once(server, 'close')
      server.close()
      doorstep.close()
      await closed
    },
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
