/** A client that speaks octets over WebSocket, for tests that treat every door of the broker alike. */
import { once } from 'node:events'
import type { ConnectionOptions, TLSSocket } from 'node:tls'
import { type ClientOptions, WebSocket } from 'ws'
import { PATIENCE_MS, type TestBroker } from './broker.ts'
import { openRaw, type Presented } from './mqtt-clients.ts'

export interface DoorClient {
  send(octets: Buffer): void
  /** Everything that arrived. */
  octets(): Buffer
  /** Resolves when the connection has closed. */
  readonly closed: Promise<void>
  destroy(): void
}

/** How a client comes to MQTT through each of the doors; what follows is the same. */
export const DOORS: Record<string, (broker: TestBroker, presented: Presented) => Promise<DoorClient>> = {
  async TLS(broker, presented) {
    const raw = await openRaw(broker, presented)
    return {
      send: (octets) => raw.send(octets),
      octets: () => raw.octets,
      closed: raw.closed,
      destroy: () => raw.socket.destroy(),
    }
  },
  async WebSocket(broker, presented) {
    const socket = await openWebSocket(broker, presented)
    return {
      send: (octets) => {
        if (socket.readyState === WebSocket.OPEN) socket.send(octets)
      },
      octets: () => Buffer.concat(received.get(socket) ?? []),
      closed: once(socket, 'close', { signal: AbortSignal.timeout(PATIENCE_MS) }).then(() => {}),
      destroy: () => socket.terminate(),
    }
  },
}

const received = new WeakMap<WebSocket, Buffer[]>()

/** Resolves when the WebSocket is open. @throws Error with the status when it is refused */
export async function openWebSocket(
  broker: TestBroker,
  { keyPem, chainPem }: Presented,
  options: ClientOptions & ConnectionOptions & { readonly path?: string; readonly protocols?: string[] } = {},
): Promise<WebSocket> {
  const { path = '/mqtt', protocols = ['mqtt'], ...settings } = options
  const socket = new WebSocket(`wss://localhost:${broker.listener.webSocketPort}${path}`, protocols, {
    ca: broker.authority.rootPem,
    ...(keyPem === undefined || chainPem === undefined ? {} : { key: keyPem, cert: chainPem }),
    ...settings,
  })
  const chunks: Buffer[] = []
  received.set(socket, chunks)
  socket.on('message', (data) => chunks.push(data as Buffer)) // binaryType is nodebuffer
  const opened = once(socket, 'open', { signal: AbortSignal.timeout(PATIENCE_MS) })
  socket.on('error', () => {}) // after `open` a reset is no failure of the test
  await opened
  return socket
}

/** The TLS socket below. */
export function tlsOf(socket: WebSocket): TLSSocket {
  return (socket as unknown as { _socket: TLSSocket })._socket // not declared
}
