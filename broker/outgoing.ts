import { publishHead } from './packet-octets.ts'
import type { Routed } from './route.ts'

/** A PUBLISH as it came, whole. */
export interface Wire {
  readonly octets: Buffer
  /** Where its packet identifier is; 0 with QoS 0. */
  readonly idAt: number
}

/** Gives the message its place among all that are handed out. */
type Numbering = () => Pick<Routed, 'brokerId' | 'brokerCounter'>

export interface OutgoingFields {
  readonly topic: string
  readonly payload: Buffer | string
  readonly qos: number
  readonly retain: boolean
  readonly clientId: string | undefined
}

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
    const { topic, payload: given } = this.#fields
    const payload = typeof given === 'string' ? Buffer.from(given) : given
    const head = publishHead({ topic, payload, qos, messageId: 0, dup: false })
    return { octets: Buffer.concat([head, payload]), idAt: qos === 0 ? 0 : head.length - 2 }
  }

  /** As Aedes' parts pass it on. */
  routed(): Routed {
    this.#routed ??= { cmd: 'publish', dup: false, ...this.#fields, ...this.#number() }
    return this.#routed
  }
}
