export interface PublishFields {
  readonly topic: string
  readonly payload: Buffer
  readonly qos: number
  readonly messageId: number
  readonly dup: boolean
}

const PUBLISH = 0x30
const DUP = 0x08
/** PUBACK, its length, and room for a packet identifier (MQTT 3.1.1 section 3.4). */
const PUBACK = 0x40_02_00_00
/** PUBREL with its reserved flags (MQTT 3.1.1 section 3.6.1). */
const PUBREL = 0x62

/** Everything of a PUBLISH but its payload (MQTT 3.1.1 section 3.3); with QoS 0 it has no packet identifier. */
export function publishHead({ topic, payload, qos, messageId, dup }: PublishFields): Buffer {
  const topicBytes = Buffer.byteLength(topic)
  const idOctets = qos === 0 ? 0 : 2
  const length = 2 + topicBytes + idOctets + payload.length
  const lengthOctets = octetsOf(length)
  const head = Buffer.allocUnsafe(1 + lengthOctets + 2 + topicBytes + idOctets)
  head[0] = PUBLISH | (dup ? DUP : 0) | (qos << 1)
  let at = 1
  let left = length
  do {
    head[at++] = (left & 0x7f) | (left > 0x7f ? 0x80 : 0) // section 2.2.3
    left >>>= 7
  } while (left > 0)
  at = head.writeUInt16BE(topicBytes, at)
  at += head.write(topic, at)
  if (qos > 0) head.writeUInt16BE(messageId, at)
  return head
}

/** The answers to messages of QoS 1, in one piece. */
export function puback(messageIds: readonly number[]): Buffer {
  const octets = Buffer.allocUnsafe(messageIds.length * 4)
  for (let at = 0; at < messageIds.length; at++) octets.writeUInt32BE(PUBACK + (messageIds[at] ?? 0), at * 4) // within its length
  return octets
}

export function pubrel(messageId: number): Buffer {
  return Buffer.of(PUBREL, 2, messageId >> 8, messageId & 0xff)
}

function octetsOf(length: number): number {
  if (length < 128) return 1
  if (length < 16_384) return 2
  return length < 2_097_152 ? 3 : 4
}
