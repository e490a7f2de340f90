/** First octet of CONNECT: type 1, flags 0 (MQTT 3.1.1 section 3.1.1). */
const CONNECT = 0x10
/** Most octets that a remaining length may have (MQTT 3.1.1 section 2.2.3). */
const LENGTH_OCTETS = 4

export interface PacketLimits {
  /** Largest remaining length of CONNECT, octets. */
  readonly connectBytes: number
  /** Largest remaining length of any other packet, octets. */
  readonly packetBytes: number
}

/**
 * Follows the fixed headers of an MQTT stream through whatever pieces it arrives in, keeping none of it: a packet
 * that is too long is known from its header. The first packet must be CONNECT [MQTT-3.1.0-1].
 */
export class PacketWalk {
  readonly #limits: PacketLimits
  #packets = 0
  #type = -1
  #length = 0
  #lengthOctets = 0
  #bodyLeft = 0

  constructor(limits: PacketLimits) {
    this.#limits = limits
  }

  /** Whole packets so far. */
  get packets(): number {
    return this.#packets
  }

  /** Takes the next piece; names the rule that it breaks, or null. After a violation the walk is over. */
  take(chunk: Uint8Array): string | null {
    for (let at = 0; at < chunk.length; ) {
      if (this.#bodyLeft > 0) {
        const skipped = Math.min(this.#bodyLeft, chunk.length - at)
        at += skipped
        this.#bodyLeft -= skipped
        if (this.#bodyLeft === 0) this.#packets++
        continue
      }
      const violation = this.#header(chunk[at++] ?? 0)
      if (violation !== null) return violation
    }
    return null
  }

  #header(octet: number): string | null {
    if (this.#type === -1) {
      this.#type = octet
      return this.#packets === 0 && octet !== CONNECT ? 'the first packet is not CONNECT' : null
    }
    this.#length += (octet & 0x7f) * 128 ** this.#lengthOctets++
    if (octet >= 0x80) {
      return this.#lengthOctets < LENGTH_OCTETS ? null : 'malformed remaining length'
    }
    return this.#body()
  }

  #body(): string | null {
    const limit = this.#packets === 0 ? this.#limits.connectBytes : this.#limits.packetBytes
    if (this.#length > limit) return `packet of ${this.#length} octets, ${limit} allowed`
    this.#bodyLeft = this.#length
    if (this.#length === 0) this.#packets++
    this.#type = -1
    this.#length = 0
    this.#lengthOctets = 0
    return null
  }
}
