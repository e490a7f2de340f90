import { isReadingHeld } from '../door/guarded-socket.ts'
import { ANSWER, answers, PINGRESP } from '../door/packet-octets.ts'
import { isGrantedStill } from '../judge/authorization.ts'
import { decisions, NEVER } from '../judge/decisions.ts'
import { isTopicName, levelsOf } from '../topic-syntax.ts'
import type { Answers } from './answers.ts'
import type { Exchange, Matches } from './exchange.ts'
import type { MqttClient } from './mqtt-client.ts'
import { Outgoing, type OutgoingFields } from './outgoing.ts'
import type { Route } from './route.ts'

/** First octets: PUBLISH with neither DUP nor RETAIN, of QoS 0 and of QoS 1 (MQTT 3.1.1 section 2.2). */
const [PUBLISH_0, PUBLISH_1] = [0x30, 0x32]
/** The same of packets that carry nothing but an identifier, and of PINGREQ. */
const [PUBACK, PUBREC, PUBREL, PUBCOMP, PINGREQ] = [0x40, 0x50, 0x62, 0x70, 0xc0]
/** Topics of one client that are remembered: a device publishes on few. */
const REMEMBERED = 4
/** Most levels of a topic that takes the short way. */
const LEVELS = 100

/** A message before anything of it is decoded but its topic. */
export interface Arrival {
  topic: string
  qos: number
  readonly payload: { length: number }
}

/** What all clients have in common: one object for all of them. */
export interface IngestDeps {
  readonly exchange: Pick<Exchange, 'version' | 'matching' | 'deliver'>
  readonly route: Pick<Route, 'isShort' | 'numbering'>
  /** Nothing is against the message; what is against it, the long way says. */
  isGranted(client: MqttClient, arrival: Arrival): boolean
  /** Counts it, and holds the client to its rates. */
  published(client: MqttClient, arrival: Arrival): void
  readonly answers: Pick<Answers, 'done' | 'received' | 'released'>
}

/** Whose octets they are. */
export interface IngestOf {
  readonly client: MqttClient
  /** Aedes' parser; it gets whatever does not take the short way, in order. */
  parse(octets: Buffer): void
}

interface Known {
  /** A copy with memory of its own: a piece of the pool of Buffers would keep all of that for as long as the client is there. */
  readonly octets: Uint8Array
  readonly topic: string
  matches: Matches
  version: number
  /** It was published on since the last PINGREQ. */
  isUsed: boolean
  /** A message that was granted: its octets and its QoS, and the count of decisions at which it was. */
  grantedAt: number
  grantedBytes: number
  grantedQos: number
}

/**
 * The short way of a PUBLISH of QoS 0 or 1 that comes in one piece and is kept for nobody: it is judged as every other
 * one is, and its octets go to whoever has subscribed, without being taken to pieces. Everything else, what is wrong
 * above all, goes to the parser and takes the long way.
 */
export class Ingest {
  readonly #deps: IngestDeps
  readonly #of: IngestOf
  /** Null until it publishes, which many never do. */
  #topics: Known[] | null = null
  #nextTopic = 0
  /** Of the packet that the parser has begun: octets of its body to come, and of its length so far. */
  #left = 0
  #lengthOctets = -1
  #answers: number[] = NO_ANSWERS

  constructor(deps: IngestDeps, of: IngestOf) {
    this.#deps = deps
    this.#of = of
  }

  take(chunk: Buffer): void {
    const { client } = this.#of
    let isShort = false
    for (let at = 0; at < chunk.length; ) {
      if (client.closed || client.conn.destroyed || client.req.connection.refused !== null) break
      if (at > 0 && isReadingHeld(client.conn)) {
        client.conn.unshift(chunk.subarray(at)) // what came in one piece is no more at once than what came in many
        break
      }
      const end = this.#left === 0 && this.#lengthOctets < 0 ? endOf(chunk, at) : -1
      if (end !== -1 && this.#short(chunk, { at, end })) isShort = true
      else if (end !== -1) this.#parse(chunk.subarray(at, end))
      at = end === -1 ? this.#piece(chunk, at) : end
    }
    this.#answer()
    if (isShort) client._keepaliveTimer?.refresh()
  }

  /** A packet that comes in pieces: its fixed header octet by octet, its body as it comes. Returns what comes next. */
  #piece(chunk: Buffer, at: number): number {
    if (this.#left > 0) {
      const end = Math.min(at + this.#left, chunk.length)
      this.#left -= end - at
      this.#parse(chunk.subarray(at, end))
      return end
    }
    const octet = chunk[at] ?? 0
    if (this.#lengthOctets++ < 0) this.#length = 0
    else {
      this.#length += (octet & 0x7f) * 128 ** (this.#lengthOctets - 1)
      if (octet < 0x80) {
        this.#left = this.#length
        this.#lengthOctets = -1
      }
    }
    this.#parse(chunk.subarray(at, at + 1))
    return at + 1
  }

  #length = 0

  #parse(octets: Buffer): void {
    this.#answer() // in the order of the messages [MQTT-4.6.0-2]
    this.#of.parse(octets)
  }

  /** False when the packet has to take the long way. */
  #short(chunk: Buffer, { at, end }: { at: number; end: number }): boolean {
    const { client } = this.#of
    if (!client.connected) return false
    switch (chunk[at]) {
      case PUBLISH_0:
        return this.#publish(chunk, { at, end, qos: 0 })
      case PUBLISH_1:
        return this.#publish(chunk, { at, end, qos: 1 })
      case PINGREQ:
        return end - at === 2 && this.#pinged()
      case PUBACK:
      case PUBREC:
      case PUBREL:
      case PUBCOMP:
        return end - at === 4 && this.#identifier(chunk[at] ?? 0, chunk.readUInt16BE(at + 2))
      default:
        return false
    }
  }

  /** Says that it is there, and perhaps no more: who gets what it has not published of late is forgotten, they may be many. */
  #pinged(): boolean {
    for (const known of this.#topics ?? NO_TOPICS) {
      if (!known.isUsed) Object.assign(known, NOT_MATCHED)
      known.isUsed = false
    }
    this.#push(PINGRESP)
    return true
  }

  #identifier(type: number, messageId: number): boolean {
    const { answers } = this.#deps
    const { client } = this.#of
    if (messageId === 0) return false
    if (type !== PUBREC && type !== PUBREL) {
      answers.done(client, messageId)
      return true
    }
    const owed = type === PUBREC ? answers.received(client, messageId) : answers.released(client, messageId)
    if (owed === 'now') this.#push((type === PUBREC ? ANSWER.pubrel : ANSWER.pubcomp) + messageId)
    return owed !== 'long'
  }

  #publish(chunk: Buffer, { at, end, qos }: { at: number; end: number; qos: 0 | 1 }): boolean {
    const { exchange, route, published } = this.#deps
    const { client } = this.#of
    const topicAt = bodyAt(chunk, at) + 2
    const topicEnd = topicAt + (((chunk[topicAt - 2] ?? 0) << 8) | (chunk[topicAt - 1] ?? 0))
    const payloadAt = topicEnd + 2 * qos
    if (payloadAt > end) return false
    const messageId = qos === 0 ? -1 : chunk.readUInt16BE(topicEnd)
    const known = messageId === 0 ? null : this.#known(chunk, { at: topicAt, end: topicEnd })
    if (known === null || !route.isShort(known.topic, qos)) return false
    const arrival = ARRIVAL
    arrival.topic = known.topic
    arrival.qos = qos
    arrival.payload.length = end - payloadAt
    if (!this.#isGranted(known, arrival)) return false
    published(client, arrival)
    const wire = { octets: chunk.subarray(at, end), idAt: topicEnd - at, payloadAt: payloadAt - at }
    const fields: OutgoingFields = { topic: known.topic, qos, retain: false, clientId: client.id }
    exchange.deliver(this.#matches(known), new Outgoing(fields, route.numbering, wire), null)
    if (qos === 1) this.#push(ANSWER.puback + messageId)
    return true
  }

  /** What was granted is granted again when it is no longer and of no higher QoS, as long as nothing has been decided. */
  #isGranted(known: Known, arrival: Arrival): boolean {
    const { payload, qos } = arrival
    const isWithin = payload.length <= known.grantedBytes && qos <= known.grantedQos
    if (isWithin && isGrantedStill(known.grantedAt)) return true
    const at = decisions()
    if (!this.#deps.isGranted(this.#of.client, arrival)) return false
    known.grantedAt = at
    known.grantedBytes = payload.length
    known.grantedQos = qos
    return true
  }

  #matches(known: Known): Matches {
    const { exchange } = this.#deps
    known.isUsed = true
    if (known.version !== exchange.version) {
      known.matches = exchange.matching(known.topic)
      known.version = exchange.version
    }
    return known.matches
  }

  /** The topic in these octets, when it is one. */
  #known(chunk: Buffer, { at, end }: { at: number; end: number }): Known | null {
    const topics = this.#topics ?? NO_TOPICS
    for (const known of topics) if (isSame(chunk, at, { end, octets: known.octets })) return known
    const topic = chunk.toString('utf8', at, end)
    if (!isTopicName(topic) || levelsOf(topic) > LEVELS) return null
    const octets = new Uint8Array(chunk.subarray(at, end))
    const known = { octets, topic, isUsed: true, ...NOT_MATCHED, ...NOTHING_GRANTED }
    this.#topics ??= []
    this.#topics[this.#nextTopic] = known
    this.#nextTopic = (this.#nextTopic + 1) % REMEMBERED
    return known
  }

  #push(answer: number): void {
    if (this.#answers === NO_ANSWERS) this.#answers = []
    this.#answers.push(answer)
  }

  #answer(): void {
    if (this.#answers.length === 0) return
    const { conn } = this.#of.client
    conn.cork()
    conn.write(answers(this.#answers))
    conn.uncork()
    this.#answers = NO_ANSWERS
  }
}

/** The message that is being judged, of whichever client: judging is over before the next one is looked at. */
const ARRIVAL: Arrival = { topic: '', qos: 0, payload: { length: 0 } }
const NO_TOPICS: readonly Known[] = []
/** Never written to. */
const NO_ANSWERS: number[] = []

const NOT_MATCHED: Pick<Known, 'matches' | 'version'> = { matches: [], version: -1 }
const NOTHING_GRANTED = { grantedAt: NEVER, grantedBytes: -1, grantedQos: -1 }

/** From the end: topics of one client begin alike. */
function isSame(chunk: Buffer, at: number, { end, octets }: { end: number; octets: Uint8Array }): boolean {
  if (end - at !== octets.length) return false
  for (let index = octets.length - 1; index >= 0; index--) {
    if (chunk[at + index] !== octets[index]) return false
  }
  return true
}

/** Where the packet that begins there ends; -1 when it is not whole, or its length is not, or not as short as it can be. */
function endOf(chunk: Buffer, at: number): number {
  let length = 0
  for (let octets = 0; octets < 4; octets++) {
    const octet = chunk[at + 1 + octets]
    if (octet === undefined) return -1
    length += (octet & 0x7f) << (7 * octets)
    if (octet >= 0x80) continue
    if (octet === 0 && octets > 0) return -1 // longer than it has to be: not for other people's parsers
    const end = at + 2 + octets + length
    return end <= chunk.length ? end : -1
  }
  return -1
}

/** Behind the fixed header of a whole packet. */
function bodyAt(chunk: Buffer, at: number): number {
  let body = at + 1
  while ((chunk[body++] ?? 0) >= 0x80);
  return body
}
