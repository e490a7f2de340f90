import { X509Certificate } from 'node:crypto'
import { once } from 'node:events'
import { type AddressInfo, createServer as createTcpServer, type Server } from 'node:net'
import { createServer, type TLSSocket, type TlsOptions, type Server as TlsServer } from 'node:tls'
import { MusterError } from '#shared/errors'
import { endedBy } from '../ending.ts'
import { refusedReport } from '../refusals.ts'
import { Doorstep } from './doorstep.ts'
import { type Gate, type GateDeps, type Inside, openGate } from './gate.ts'
import { handshakeFault } from './handshake-faults.ts'
import { type Credentials, openTlsIdentity } from './tls.ts'
import { openWebSocketDoor, type WebSocketDoor } from './web-socket.ts'

export type { Credentials } from './tls.ts'

export interface ListenerDeps extends GateDeps, Credentials {
  readonly host: string
  /** 0 for any. */
  readonly port: number
  readonly mqtt: Inside
  /** Answer clients that name their protocol in the handshake (RFC 7301); one that names others only is refused there. */
  readonly isAlpnSpoken?: boolean
  /** A second port for MQTT over WebSocket, and the origins of pages that may use it. */
  readonly webSocket?: { readonly port: number; readonly origins: readonly string[] }
  /** Names that a certificate must have to be used; at least one of any when none is given. */
  readonly hosts?: readonly string[]
  /** For tests, which restart a broker with the same keys of session tickets. */
  readonly ticketKeys?: Buffer
}

/** MQTT by its registered name, and by the one with which devices of AWS IoT say that they come with a certificate. */
const ALPN = ['mqtt', 'x-amzn-mqtt-ca'] as const

export interface Listener {
  readonly port: number
  /** Null where MQTT is not spoken over WebSocket. */
  readonly webSocketPort: number | null
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
 * would learn why: it reaches the gate, which answers. All doors share the gate, the doorstep and the identity.
 * @throws MusterError port_taken
 */
export async function openListener(deps: ListenerDeps): Promise<Listener> {
  const identity = openTlsIdentity(deps, deps)
  let issuers = identity.trust.map((pem) => new X509Certificate(pem))
  const doorstep = new Doorstep(deps)
  const gate = openGate(deps, { inside: deps.mqtt, issuers: () => issuers, doorstep })
  const servers: Server[] = []
  const close = async () => {
    identity.close()
    const closed = servers.map((server) => once(server, 'close'))
    for (const server of servers) server.close()
    for (const connection of deps.sessions.select({ kind: 'all' })) endedBy(connection, 'broker-stopped')
    doorstep.close()
    await Promise.all(closed)
  }
  try {
    for (const { port, ...door } of doorsOf(deps, { gate, doorstep })) {
      const tls = tlsServer(deps, { ...door, doorstep })
      identity.serve(tls)
      servers.push(await acceptOn({ host: deps.host, port }, { tls, doorstep }))
    }
  } catch (error) {
    await close()
    throw error
  }
  const [port = 0, webSocketPort = null] = servers.map(portOf)
  return {
    port,
    webSocketPort,
    open: () => doorstep.open(),
    reload(credentials) {
      identity.reload(credentials)
      issuers = identity.trust.map((pem) => new X509Certificate(pem))
    },
    faults: () => identity.faults,
    close,
  }
}

interface Ways {
  readonly gate: Gate
  readonly doorstep: Doorstep
}

/** The doors that are to be opened, MQTT's first, and where each leads. */
function doorsOf(deps: ListenerDeps, ways: Ways) {
  const { port, isAlpnSpoken = false, webSocket } = deps
  const options: TlsOptions = isAlpnSpoken ? { ALPNProtocols: [...ALPN] } : {}
  const mqtt = { port, options, entered: (socket: TLSSocket) => void ways.gate(socket) }
  if (webSocket === undefined) return [mqtt]
  const { entered } = webSocketDoor(deps, ways)
  return [mqtt, { port: webSocket.port, options: { ALPNProtocols: ['http/1.1'] }, entered }]
}

function portOf(server: Server): number {
  return (server.address() as AddressInfo).port // listening on TCP
}

interface Door {
  readonly options: TlsOptions
  readonly doorstep: Doorstep
  entered(socket: TLSSocket): void
}

function tlsServer({ limits }: ListenerDeps, { options, entered, doorstep }: Door): TlsServer {
  const tls = createServer({
    ...options,
    requestCert: true,
    rejectUnauthorized: false,
    handshakeTimeout: limits.handshakeMs,
  })
  tls.on('secureConnection', (socket) => entered(socket))
  // Node only announces a failed handshake, or one that has not ended in time; the socket is ours to destroy.
  tls.on('tlsClientError', (error, socket: TLSSocket) => {
    doorstep.failed(socket, handshakeFault(error))
    socket.destroy()
  })
  return tls
}

/** Sockets are accepted and not read: the doorstep says when the handshake begins. */
async function acceptOn(
  at: { readonly host: string; readonly port: number },
  to: { readonly tls: TlsServer; readonly doorstep: Doorstep },
): Promise<Server> {
  const server = createTcpServer({ pauseOnConnect: true, noDelay: true, keepAlive: true }, (socket) => {
    to.doorstep.arrived(socket, () => to.tls.emit('connection', socket))
  })
  server.listen(at.port, at.host)
  await listening(server, at)
  return server
}

function webSocketDoor(deps: ListenerDeps, { gate, doorstep }: Ways): WebSocketDoor {
  const { limits, webSocket } = deps
  return openWebSocketDoor({
    limits,
    origins: webSocket?.origins ?? [],
    enter: gate,
    addressOf: (socket) => doorstep.addressOf(socket),
    refused(address, violation) {
      doorstep.wasted(address)
      if (violation === null) return
      const refusal = { code: 'packet', evidence: { violation } } as const
      deps.report(refusedReport(refusal, { device: null, fingerprint: null, address }, deps.now()))
    },
  })
}

async function listening(
  server: Server,
  at: { readonly host: string; readonly port: number },
): Promise<void> {
  try {
    await once(server, 'listening')
  } catch (cause) {
    const { code } = cause as NodeJS.ErrnoException // what net.Server emits
    if (code !== 'EADDRINUSE') throw cause
    throw new MusterError('port_taken', `Cannot listen on "${at.host}:${at.port}": it is in use`, {
      cause,
    })
  }
}
