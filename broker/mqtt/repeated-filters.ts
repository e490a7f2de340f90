import type { ParsedPacket } from '../door/packet-faults.ts'
import { suback } from '../door/packet-octets.ts'
import { isGone, type MqttClient } from './mqtt-client.ts'

type Pair = NonNullable<ParsedPacket['subscriptions']>[number]

/** What a SUBSCRIBE asked for that named a filter more than once. */
interface Asked {
  readonly messageId: number
  readonly pairs: readonly Pair[]
}

/** The return code of a filter that is not granted (MQTT 3.1.1 section 3.9.3). */
const FAILURE = 0x80

/**
 * A SUBSCRIBE that names a filter twice. It counts as one packet for each pair [MQTT-3.8.4-4], so the last one of a
 * filter is what remains, and each pair has its return code [MQTT-3.8.4-5]. Aedes keeps to the first and forgets the
 * second: it answers by filter. So it gets such a packet without repetitions and without an identifier, and does not
 * answer; the answer is made here when it has subscribed.
 */
export class RepeatedFilters {
  /** By the last pair that Aedes is given of a packet. */
  readonly #asked = new WeakMap<Pair, Asked>()

  /** The packet as Aedes is to have it: the same one, if it names no filter twice. */
  reduced(packet: ParsedPacket): ParsedPacket {
    const { subscriptions: pairs = [], messageId = 0 } = packet
    if (pairs.length < 2) return packet
    const last = [...new Map(pairs.map((pair) => [pair.topic, pair])).values()]
    const mark = last.at(-1)
    if (last.length === pairs.length || mark === undefined) return packet
    this.#asked.set(mark, { messageId, pairs })
    const { messageId: _, ...rest } = packet
    return { ...rest, subscriptions: last }
  }

  /** Aedes has subscribed: to each filter with the QoS that it says now. */
  subscribed(granted: readonly Pair[], client: MqttClient): void {
    const asked = granted.length === 0 ? undefined : this.#asked.get(granted[granted.length - 1] as Pair) // by its length
    if (asked === undefined || isGone(client)) return
    const codes = new Map(granted.map(({ topic, qos }) => [topic, qos]))
    const codeOf = ({ topic, qos }: Pair) => (codes.get(topic) === FAILURE ? FAILURE : qos)
    client.conn.write(suback(asked.messageId, asked.pairs.map(codeOf)))
  }
}
