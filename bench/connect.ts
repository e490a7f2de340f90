import { once } from 'node:events'
import { connect } from 'node:tls'
import { MusterError } from '#shared/errors'
import type { DevicePair } from './requests.ts'

const DEADLINE_MS = 30_000
/** [MQTT-3.2.2] CONNACK: session not present, connection accepted. */
const ACCEPTED = Buffer.from([0x20, 0x02, 0x00, 0x00])

/**
 * Connects each device for the first time: full TLS 1.3 handshake with its own certificate, CONNECT, CONNACK; then it
 * goes. So many are under way at a time.
 */
export async function connectAll(
  target: { readonly port: number; readonly ca: string },
  load: { readonly pairs: readonly DevicePair[]; readonly connections: number },
): Promise<void> {
  const queue = load.pairs.values()
  const clients = Array.from({ length: load.connections }, async () => {
    for (const pair of queue) await connectOnce(target, pair)
  })
  await Promise.all(clients)
}

/** @throws MusterError unavailable when it is not let in */
async function connectOnce(target: { port: number; ca: string }, pair: DevicePair): Promise<void> {
  const { certificate: cert, key } = pair
  const socket = connect({
    ...{ host: '127.0.0.1', port: target.port, ca: target.ca, cert, key },
    ...{ servername: 'localhost', ecdhCurve: 'X25519', minVersion: 'TLSv1.3' },
  })
  try {
    const signal = AbortSignal.timeout(DEADLINE_MS)
    await once(socket, 'secureConnect', { signal })
    const heard = once(socket, 'data', { signal })
    socket.write(connectPacket(pair.id))
    const [answer] = (await heard) as [Buffer] // what a socket emits
    if (answer.subarray(0, 4).equals(ACCEPTED)) return
    throw new MusterError('unavailable', `Cannot connect "${pair.id}": ${answer.toString('hex')}`)
  } finally {
    socket.destroy()
  }
}

/** MQTT 3.1.1, clean session, keep-alive 60 s. */
function connectPacket(id: string): Buffer {
  const header = Buffer.from([0, 4, 0x4d, 0x51, 0x54, 0x54, 4, 2, 0, 60, id.length >> 8, id.length & 0xff])
  const content = Buffer.concat([header, Buffer.from(id)])
  return Buffer.concat([Buffer.from([0x10, content.length]), content])
}
