import { once } from 'node:events'
import { type ConnectionOptions, connect, type TLSSocket } from 'node:tls'
import { generate } from 'mqtt-packet'
import { connectPacket } from './mqtt-clients.ts'

const DEADLINE_MS = 20_000

export interface Visit {
  readonly isResumed: boolean
  /** What was given for the next connection, in the order in which it came. */
  readonly tickets: readonly Buffer[]
  /** Return code of the CONNACK. */
  readonly answer: number | undefined
}

/**
 * Connects as a device, says CONNECT, and goes when it is answered. TLS 1.3 gives its tickets before anything else that
 * a server sends after the handshake, so all of them have come by then.
 */
export async function visit(clientId: string, options: ConnectionOptions): Promise<Visit> {
  const socket = connect({ host: '127.0.0.1', servername: 'localhost', ...options })
  const tickets: Buffer[] = []
  socket.on('session', (ticket: Buffer) => tickets.push(ticket))
  try {
    const signal = AbortSignal.timeout(DEADLINE_MS)
    await once(socket, 'secureConnect', { signal })
    const heard = once(socket, 'data', { signal })
    socket.write(generate(connectPacket({ clientId })))
    const [octets] = (await heard) as [Buffer] // what a socket emits
    return { isResumed: socket.isSessionReused(), tickets, answer: octets[3] }
  } finally {
    await gone(socket)
  }
}

async function gone(socket: TLSSocket): Promise<void> {
  const closed = once(socket, 'close')
  socket.destroy()
  await closed
}
