import type { Duplex } from 'node:stream'
import type { PacketWalk } from './packet-walk.ts'

/** CONNACK "not authorized" of MQTT 3.1 and 3.1.1: return code 5 (section 3.2.2.3). */
const REFUSED_V3 = Uint8Array.of(0x20, 0x02, 0x00, 0x05)
/** CONNACK "Not authorized" of MQTT 5: reason code 0x87, no properties (section 3.2.2.2). */
const REFUSED_V5 = Uint8Array.of(0x20, 0x03, 0x00, 0x87, 0x00)
/** CONNACK "server unavailable" of MQTT 3.1 and 3.1.1: return code 3 (section 3.2.2.3); try again later. */
const BUSY_V3 = Uint8Array.of(0x20, 0x02, 0x00, 0x03)
/** CONNACK "Connection rate exceeded" of MQTT 5: reason code 0x9F, no properties (section 3.2.2.2). */
const BUSY_V5 = Uint8Array.of(0x20, 0x03, 0x00, 0x9f, 0x00)
/** How long the client has to close after the CONNACK, ms. */
const LINGER_MS = 1_000

export interface Refusing {
  readonly walk: PacketWalk
  /** The client may well come again: it has only asked too often. */
  readonly isBusy: boolean
}

/**
 * Waits for the whole CONNECT, answers "not authorized" and closes. The guard of the socket has the limits and
 * the deadline, and nothing here reads the packet but for its protocol level.
 */
export function sendConnackRefused(socket: Duplex, { walk, isBusy }: Refusing): void {
  const [v3, v5] = isBusy ? [BUSY_V3, BUSY_V5] : [REFUSED_V3, REFUSED_V5]
  const chunks: Buffer[] = []
  socket.on('data', (chunk: Buffer) => {
    if (socket.writableEnded) return
    chunks.push(chunk)
    if (walk.packets === 0) return
    const linger = setTimeout(() => socket.destroy(), LINGER_MS)
    socket.once('close', () => clearTimeout(linger))
    socket.end(protocolLevel(Buffer.concat(chunks)) === 5 ? v5 : v3)
  })
}

/** The octet after the protocol name (MQTT 3.1.1 section 3.1.2); 0 when the packet is too short to have one. */
function protocolLevel(connect: Buffer): number {
  let at = 1
  while ((connect[at] ?? 0) >= 0x80) at++
  const name = at + 1
  if (connect.length < name + 2) return 0
  return connect[name + 2 + connect.readUInt16BE(name)] ?? 0
}
