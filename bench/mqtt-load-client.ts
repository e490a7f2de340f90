import { once } from 'node:events'
import { type ConnectionOptions, connect, type TLSSocket } from 'node:tls'
import { MusterError } from '#shared/errors'
import { connectPacket, PacketCount, pubacks, type Qos, subscribePacket } from './mqtt-octets.ts'
import type { DevicePair } from './requests.ts'

const DEADLINE_MS = 30_000
/** Every socket reads into the same octets: what came is counted before the next one reads. */
const READ_INTO = Buffer.allocUnsafe(65_536)
/** Types of the answers to CONNECT and SUBSCRIBE. */
const [CONNACK, SUBACK] = [0x20, 0x90]

/** What came to the clients of one flow. */
export interface Tally {
  received: number
  /** PUBACKs. */
  acknowledged: number
}

/** One MQTT connection of the load: it writes what it is given, answers for what comes, and counts. */
export interface LoadClient {
  /** Where it counts. */
  tally: Tally
  /** Called when something has come. */
  heard(): void
  write(octets: Buffer): void
  close(): void
}

export interface LoadTarget {
  readonly port: number
  /** PEM. */
  readonly ca: string
}

/** @throws MusterError unavailable when it is not let in, or may not subscribe */
export async function openLoadClient(
  target: LoadTarget,
  as: { pair: DevicePair; isClean: boolean; subscription?: { filter: string; qos: Qos } },
): Promise<LoadClient> {
  const { pair, isClean, subscription } = as
  const answers: ((octets: Buffer) => void)[] = []
  const socket = openSocket(target, pair, (octets) => {
    count.take(octets)
    client.heard()
  })
  const unanswered: number[] = []
  const client: LoadClient = {
    tally: { received: 0, acknowledged: 0 },
    heard: () => {},
    write: (octets) => void socket.write(octets),
    close: () => socket.destroy(),
  }
  const answer = () => socket.write(pubacks(unanswered.splice(0)))
  const count = new PacketCount({
    publish(messageId) {
      client.tally.received++
      if (messageId === null) return
      if (unanswered.length === 0) setImmediate(answer) // one write for all that came in this turn
      unanswered.push(messageId)
    },
    puback: () => void client.tally.acknowledged++,
    other: (octets) => answers.shift()?.(octets),
  })
  const ask = async (packet: Buffer, type: number) => {
    const answered = new Promise<Buffer>((resolve) => answers.push(resolve))
    socket.write(packet)
    const octets = await orClosed(socket, answered)
    if (octets[0] === type && (octets.at(-1) ?? 128) <= 2) return
    throw new MusterError('unavailable', `Cannot use "${pair.id}" as load: ${octets.toString('hex')}`)
  }
  await once(socket, 'secureConnect', { signal: AbortSignal.timeout(DEADLINE_MS) })
  await ask(connectPacket(pair.id, isClean), CONNACK)
  if (subscription) await ask(subscribePacket(subscription.filter, subscription.qos), SUBACK)
  socket.on('error', () => {}) // whoever waits for what does not come any more says so
  return client
}

/** Node's own, although its declarations know it of plain sockets only (`tls.connect`, `options.onread`). */
interface OnRead {
  readonly onread: { readonly buffer: Buffer; callback(octets: number): boolean }
}

function openSocket({ port, ca }: LoadTarget, pair: DevicePair, take: (octets: Buffer) => void): TLSSocket {
  const options: ConnectionOptions & OnRead = {
    ...{ host: '127.0.0.1', port, ca, cert: pair.certificate, key: pair.key },
    ...{ servername: 'localhost', ecdhCurve: 'X25519', minVersion: 'TLSv1.3' },
    onread: {
      buffer: READ_INTO,
      callback(octets) {
        take(READ_INTO.subarray(0, octets))
        return true
      },
    },
  }
  return connect(options).setNoDelay(true)
}

async function orClosed<T>(socket: TLSSocket, answer: Promise<T>): Promise<T> {
  const closed = once(socket, 'close', { signal: AbortSignal.timeout(DEADLINE_MS) }).then(() => {
    throw new MusterError('unavailable', 'Cannot load the server: it closed the connection')
  })
  closed.catch(() => {}) // it lives on, or has ended after its answer
  return await Promise.race([answer, closed])
}
