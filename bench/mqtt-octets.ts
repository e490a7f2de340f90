/** MQTT 3.1.1 as the load needs it: packets that are written as they are, and a count of those that come. */

export type Qos = 0 | 1

const [CONNECT, PUBLISH, PUBACK, SUBSCRIBE] = [0x10, 0x30, 0x40, 0x82]
/** Section 3.1.2.4, and keep-alive 0: a client that says nothing for long is none of what is measured. */
const CLEAN = 2
const KEEP_ALIVE_S = 0

/** The protocol's name and level, flags, keep-alive and the client id (section 3.1). */
export function connectPacket(id: string, isClean: boolean): Buffer {
  const flags = isClean ? CLEAN : 0
  return packet(CONNECT, text('MQTT'), Buffer.of(4, flags, 0, KEEP_ALIVE_S), text(id))
}

export function subscribePacket(filter: string, qos: Qos): Buffer {
  return packet(SUBSCRIBE, Buffer.of(0, 1), text(filter), Buffer.of(qos))
}

/** @param messageId null with QoS 0 */
export function publishPacket(topic: string, payload: Buffer, messageId: number | null): Buffer {
  if (messageId === null) return packet(PUBLISH, text(topic), payload)
  return packet(PUBLISH | 2, text(topic), Buffer.of(messageId >> 8, messageId & 0xff), payload)
}

/** Answers to many messages in one piece. */
export function pubacks(messageIds: readonly number[]): Buffer {
  const octets = Buffer.allocUnsafe(messageIds.length * 4)
  for (const [index, id] of messageIds.entries())
    octets.writeUInt32BE((PUBACK << 24) | (2 << 16) | id, index * 4)
  return octets
}

function packet(first: number, ...parts: readonly Uint8Array[]): Buffer {
  const content = Buffer.concat(parts)
  const length: number[] = []
  for (let left = content.length; length.length === 0 || left > 0; left >>>= 7) {
    length.push((left & 0x7f) | (left > 0x7f ? 0x80 : 0)) // section 2.2.3
  }
  return Buffer.concat([Buffer.from([first, ...length]), content])
}

function text(value: string): Buffer {
  const octets = Buffer.from(value)
  return Buffer.concat([Buffer.of(octets.length >> 8, octets.length & 0xff), octets])
}

/** What has come, by the type of the packet. */
export interface Heard {
  publish(messageId: number | null): void
  puback(): void
  /** CONNACK and SUBACK, whole. */
  other(octets: Buffer): void
}

/**
 * Walks from fixed header to fixed header, and looks at nothing of a message but its packet identifier. The octets
 * may be overwritten when `take` has returned.
 */
export class PacketCount {
  readonly #heard: Heard
  #rest: Buffer = Buffer.alloc(0)

  constructor(heard: Heard) {
    this.#heard = heard
  }

  take(chunk: Buffer): void {
    const octets = this.#rest.length === 0 ? chunk : Buffer.concat([this.#rest, chunk])
    let at = 0
    for (let end = endOf(octets, at); end !== -1; end = endOf(octets, at)) {
      this.#whole(octets, at, end)
      at = end
    }
    this.#rest = at === octets.length ? EMPTY : Buffer.from(octets.subarray(at))
  }

  #whole(octets: Buffer, at: number, end: number): void {
    const first = octets[at] ?? 0
    const type = first & 0xf0
    if (type === PUBLISH) this.#heard.publish((first & 6) === 0 ? null : messageIdAt(octets, at))
    else if (type === PUBACK) this.#heard.puback()
    else this.#heard.other(Buffer.from(octets.subarray(at, end)))
  }
}

const EMPTY = Buffer.alloc(0)

/** Where the packet that begins there ends; -1 when it is not whole. */
function endOf(octets: Buffer, at: number): number {
  let length = 0
  for (let index = at + 1, shift = 0; index < octets.length; index++, shift += 7) {
    const octet = octets[index] ?? 0
    length |= (octet & 0x7f) << shift
    if (octet >= 0x80) continue
    const end = index + 1 + length
    return end <= octets.length ? end : -1
  }
  return -1
}

function messageIdAt(octets: Buffer, at: number): number {
  let topic = at + 1
  while ((octets[topic++] ?? 0) >= 0x80);
  return octets.readUInt16BE(topic + 2 + octets.readUInt16BE(topic))
}
