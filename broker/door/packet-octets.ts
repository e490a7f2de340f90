export interface PublishFields {
  readonly topic: string
  readonly payload: Buffer
  readonly qos: number
  readonly messageId: number
  readonly dup: boolean
}

const PUBLISH = 0x30
const DUP = 0x08
const SUBACK = 0x90
/** PUBACK, PUBREL and PUBCOMP, their length, and room for a packet identifier (MQTT 3.1.1 sections 3.4, 3.6 and 3.7). */
export const ANSWER = { puback: 0x40_02_00_00, pubrel: 0x62_02_00_00, pubcomp: 0x70_02_00_00 } as const
/** PINGRESP, which is two octets long (MQTT 3.1.1 section 3.13). */
export const PINGRESP = 0xd000

/** Everything of a PUBLISH but its payload (MQTT 3.1.1 section 3.3); with QoS 0 it has no packet identifier. */
export function publishHead({ topic, payload, qos, messageId, dup }: PublishFields): Buffer {
  const topicBytes = Buffer.byteLength(topic)
  const idOctets = qos === 0 ? 0 : 2
  const length = 2 + topicBytes + idOctets + payload.length
  const lengthOctets = octetsOf(length)
  const head = Buffer.allocUnsafe(1 + lengthOctets + 2 + topicBytes + idOctets)
  head[0] = PUBLISH | (dup ? DUP : 0) | (qos << 1)
  let at = writeLength(head, length)
  at = head.writeUInt16BE(topicBytes, at)
  at += head.write(topic, at)
  if (qos > 0) head.writeUInt16BE(messageId, at)
  return head
}

/** Answers in one piece, in their order: each an {@link ANSWER} with its packet identifier, or {@link PINGRESP}. */
export function answers(all: readonly number[]): Buffer {
  let octets = 0
  for (const answer of all) octets += answer === PINGRESP ? 2 : 4
  const piece = Buffer.allocUnsafe(octets)
  let at = 0
  for (const answer of all) {
    at = answer === PINGRESP ? piece.writeUInt16BE(answer, at) : piece.writeUInt32BE(answer, at)
  }
  return piece
}

export function pubrel(messageId: number): Buffer {
  return answers([ANSWER.pubrel + messageId])
}

/** SUBACK with one return code for each pair of the SUBSCRIBE, in its order (MQTT 3.1.1 section 3.9). */
export function suback(messageId: number, codes: readonly number[]): Buffer {
  const length = 2 + codes.length
  const packet = Buffer.allocUnsafe(1 + octetsOf(length) + length)
  packet[0] = SUBACK
  const at = packet.writeUInt16BE(messageId, writeLength(packet, length))
  packet.set(codes, at)
  return packet
}

/** Behind the first octet (section 2.2.3); returns where it ends. */
function writeLength(packet: Buffer, length: number): number {
  let at = 1
  let left = length
  do {
    packet[at++] = (left & 0x7f) | (left > 0x7f ? 0x80 : 0)
    left >>>= 7
  } while (left > 0)
  return at
}

function octetsOf(length: number): number {
  if (length < 128) return 1
  if (length < 16_384) return 2
  return length < 2_097_152 ? 3 : 4
}
