import { createPrivateKey, X509Certificate } from 'node:crypto'
import { once } from 'node:events'
import { connect as connectPlain, type Socket } from 'node:net'
import { connect } from 'node:tls'
import { MusterError } from '#shared/errors'
import { connectPacket } from './mqtt-octets.ts'
import type { DevicePair } from './requests.ts'
import { type ClientIdentity, Tls13Client } from './tls13-client.ts'
import type { Ticket } from './tls13-hello.ts'

const DEADLINE_MS = 30_000
/** [MQTT-3.2.2] CONNACK: session not present, connection accepted. */
const ACCEPTED = Buffer.from([0x20, 0x02, 0x00, 0x00])

/** A device that connects: everything about it that can be made before. */
export interface Arrival {
  readonly id: string
  readonly identity: ClientIdentity
  /** MQTT 3.1.1, clean session. */
  readonly packet: Buffer
}

export function arrivalOf({ id, certificate, key }: DevicePair): Arrival {
  const identity = { certificate: new X509Certificate(certificate).raw, key: createPrivateKey(key) }
  return { id, identity, packet: connectPacket(id, true) }
}

export interface Arriving {
  readonly port: number
  /** Connections, by these devices in turn. */
  readonly count: number
  readonly arrivals: readonly Arrival[]
  /** Under way at once. */
  readonly atOnce: number
  /** What the server gave each device for its next connection; null for full handshakes. */
  readonly tickets: Map<string, Ticket> | null
}

/**
 * Connects: TLS 1.3 handshake with a certificate of its own, CONNECT, CONNACK. Every answer is looked at.
 * @param done what becomes of a connection that was accepted
 * @throws MusterError unavailable when one is not let in
 */
export async function arrive(
  arriving: Arriving,
  done: (socket: Socket, how: { isResumed: boolean }) => void,
): Promise<void> {
  let next = 0
  const clients = Array.from({ length: Math.min(arriving.atOnce, arriving.count) }, async () => {
    while (next < arriving.count) {
      const arrival = arriving.arrivals[next++ % arriving.arrivals.length]
      if (arrival === undefined) throw new RangeError('nobody to connect')
      const { socket, isResumed } = await connectOne(arriving, arrival)
      done(socket, { isResumed })
    }
  })
  await Promise.all(clients)
}

function connectOne(
  { port, tickets }: Arriving,
  { id, identity, packet }: Arrival,
): Promise<{ socket: Socket; isResumed: boolean }> {
  const { promise, resolve, reject } = Promise.withResolvers<{ socket: Socket; isResumed: boolean }>()
  const refused = (why: string) => {
    socket.destroy()
    reject(new MusterError('unavailable', `Cannot connect "${id}": ${why}`))
  }
  const socket = connectPlain({ host: '127.0.0.1', port, noDelay: true })
  socket.setTimeout(DEADLINE_MS, () => refused('no answer in time'))
  socket.once('error', (error) => refused(error.message))
  socket.once('close', () => refused('the server closed the connection'))
  const client = new Tls13Client(socket, {
    identity,
    ticket: tickets?.get(id) ?? null,
    events: {
      opened: () => client.send(packet),
      received(octets) {
        if (!octets.equals(ACCEPTED)) return refused(`it was answered ${octets.toString('hex')}`)
        socket.setTimeout(0)
        resolve({ socket, isResumed: client.isResumed })
      },
      ticket: tickets === null ? null : (ticket) => void tickets.set(id, ticket),
      failed: (error) => refused(error.message),
    },
  })
  return promise
}

/** Connects once with everything verified, which the load leaves out. @throws when the server is another one */
export async function verifyServer(
  target: { readonly port: number; readonly ca: string },
  { id, certificate, key }: DevicePair,
): Promise<void> {
  const socket = connect({
    ...{ host: '127.0.0.1', port: target.port, ca: target.ca, cert: certificate, key },
    ...{ servername: 'localhost', minVersion: 'TLSv1.3' },
  })
  try {
    const signal = AbortSignal.timeout(DEADLINE_MS)
    await once(socket, 'secureConnect', { signal })
    const heard = once(socket, 'data', { signal })
    socket.write(connectPacket(id, true))
    const [answer] = (await heard) as [Buffer] // what a socket emits
    if (!answer.equals(ACCEPTED)) {
      throw new MusterError('unavailable', `Cannot connect "${id}": ${answer.toString('hex')}`)
    }
  } finally {
    socket.destroy()
  }
}
