import { publishHead } from '../door/packet-octets.ts'
import type { Routed } from './route.ts'

/** A PUBLISH as it came, whole. */
export interface Wire {
  readonly octets: Buffer
  /** Where its packet identifier is, with QoS 1. */
  readonly idAt: number
  readonly payloadAt: number
}

/** Gives the message its place among all that are handed out. */
type Numbering = () => Pick<Routed, 'brokerId' | 'brokerCounter'>

export interface OutgoingFields {
  readonly topic: string
  /** Left out when the message is there as it came. */
  readonly payload?: Buffer | string
  readonly qos: number
  readonly retain: boolean
  readonly clientId: string | undefined
}

const EMPTY = Buffer.alloc(0)

/**
 * A message that is handed out: its octets are made once, however many get it. What came as a PUBLISH with neither DUP
 * nor RETAIN leaves as the same octets.
 */
export class Outgoing {
  readonly topic: string
  readonly qos: number
  readonly #fields: OutgoingFields
  readonly #number: Numbering
  readonly #wire: Wire | null
  #octets: Buffer | null = null
  #numbered: Wire | null = null
  #routed: Routed | null = null

  /** @param wire the message as it came, when that is how it may leave */
  constructor(fields: OutgoingFields, number: Numbering, wire: Wire | null = null) {
    this.topic = fields.topic
    this.qos = fields.qos
    this.#fields = fields
    this.#number = number
    this.#wire = wire
  }

  /** With QoS 0, one buffer for all. */
  unnumbered(): Buffer {
    this.#octets ??= this.#wire !== null && this.qos === 0 ? this.#wire.octets : this.#encode(0).octets
    return this.#octets
  }

  /** With QoS 1 and this packet identifier. */
  numbered(messageId: number): Buffer {
    this.#numbered ??= this.#wire !== null && this.qos === 1 ? this.#wire : this.#encode(1)
    const { octets, idAt } = this.#numbered
    const own = Buffer.allocUnsafe(octets.length)
    octets.copy(own)
    own[idAt] = messageId >> 8
    own[idAt + 1] = messageId & 0xff
    return own
  }

  #encode(qos: 0 | 1): Wire {
    const { topic } = this.#fields
    const payload = this.#payload()
    const head = publishHead({ topic, payload, qos, messageId: 0, dup: false })
    return { octets: Buffer.concat([head, payload]), idAt: head.length - 2, payloadAt: head.length }
  }

  #payload(): Buffer {
    const { payload = EMPTY } = this.#fields
    if (this.#wire !== null) return this.#wire.octets.subarray(this.#wire.payloadAt)
    return typeof payload === 'string' ? Buffer.from(payload) : payload
  }

  /** As Aedes' parts pass it on, with this QoS: they look for that of a subscription by the topic, and find no wildcard. */
  routed(qos = this.qos): Routed {
    const payload = this.#payload()
    this.#routed ??= { cmd: 'publish', dup: false, ...this.#fields, payload, ...this.#number() }
    return qos === this.#routed.qos ? this.#routed : { ...this.#routed, qos }
  }
}
