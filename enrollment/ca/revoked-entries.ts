import { CrlEntryWriter } from '#shared/pki/crl'
import { lintFailure } from './lint.ts'

/** CRLReason (RFC 5280 section 5.3.1). Holds are on no CRL, so certificateHold is not among them. */
export const REASON_CODES = {
  unspecified: 0,
  keyCompromise: 1,
  affiliationChanged: 3,
  superseded: 4,
  cessationOfOperation: 5,
  privilegeWithdrawn: 9,
} as const

export type RevocationReason = keyof typeof REASON_CODES

const CODES = new Map<string, number>(Object.entries(REASON_CODES))

/** A final revocation, dated at the commit of the hold that it began with. */
export interface RevokedEntry {
  /** Hex. */
  readonly serial: string
  /** Ms since 1970. */
  readonly revokedAt: number
  readonly reason: RevocationReason
  /** Of the certificate, ms since 1970; an entry without it is never dropped. */
  readonly notAfter?: number
}

const EMPTY = -1

/** A power of two, at least twice as many as there are entries. */
function emptySlots(entries: number): Int32Array {
  return new Int32Array(2 ** Math.max(6, Math.ceil(Math.log2(entries * 2 + 1)))).fill(EMPTY)
}

/**
 * The entries of a CRL, each encoded and linted once, when it is added: a new list costs no more than a copy and a
 * signature, whatever the number of entries.
 */
export class RevokedEntries {
  #writer: CrlEntryWriter
  #count = 0
  #revision = 0
  /** Ms since 1970, of each entry in order. */
  #notAfters: number[] = []
  #earliestNotAfter = Number.POSITIVE_INFINITY
  #newestRevocation = 0
  /** Where entries begin, hashed by the end of their serials: a set of strings takes several times as long and as much. */
  #slots: Int32Array

  /** @param expected so that nothing need grow */
  constructor(expected = 16) {
    this.#writer = new CrlEntryWriter(expected)
    this.#slots = emptySlots(expected)
  }

  static of(entries: readonly RevokedEntry[]): RevokedEntries {
    const list = new RevokedEntries(entries.length)
    for (const entry of entries) list.add(entry)
    return list
  }

  /** Rises with every entry that is added, so that a list can be told to be out of date. */
  get revision(): number {
    return this.#revision
  }

  get count(): number {
    return this.#count
  }

  /** One encoded entry after the other; a view that the next `add` may make old. */
  get octets(): Buffer {
    return this.#writer.octets
  }

  /** Ms since 1970; 0 when there is none. */
  get newestRevocation(): number {
    return this.#newestRevocation
  }

  /** @throws MusterError lint_failed (entry_serial, entry_once, entry_reason); RangeError when the serial is no hex */
  add({ serial, revokedAt, reason, notAfter = Number.POSITIVE_INFINITY }: RevokedEntry): void {
    if (!isSerial(serial)) throw lintFailure('entry_serial')
    const code = CODES.get(reason)
    if (code === undefined) throw lintFailure('entry_reason')
    this.#note(this.#writer.add({ serial, revokedAt, reason: code }), notAfter)
    if (revokedAt > this.#newestRevocation) this.#newestRevocation = revokedAt
    this.#revision += 1
  }

  /** Leaves out the entries whose certificates expired before `at`; returns whether there were any. */
  dropExpired(at: number): boolean {
    if (this.#earliestNotAfter >= at) return false
    const { octets } = this
    const notAfters = this.#notAfters
    this.#reset()
    let start = 0
    for (const notAfter of notAfters) {
      const end = entryEnd(octets, start)
      if (notAfter >= at) this.#note(this.#writer.addWritten(octets.subarray(start, end)), notAfter)
      start = end
    }
    return true
  }

  #reset(): void {
    this.#writer = new CrlEntryWriter()
    this.#count = 0
    this.#notAfters = []
    this.#earliestNotAfter = Number.POSITIVE_INFINITY
    this.#slots = emptySlots(0)
  }

  #note(start: number, notAfter: number): void {
    if ((this.#count + 1) * 2 > this.#slots.length) this.#rehash(start)
    if (!this.#place(start)) {
      this.#writer.truncate(start)
      throw lintFailure('entry_once')
    }
    this.#count += 1
    this.#notAfters.push(notAfter)
    if (notAfter < this.#earliestNotAfter) this.#earliestNotAfter = notAfter
  }

  /** False when the serial is there already. */
  #place(start: number): boolean {
    const { buffer } = this.#writer
    const slots = this.#slots
    const mask = slots.length - 1
    let slot = hashOf(buffer, start) & mask
    for (let other = slots[slot] ?? EMPTY; other !== EMPTY; other = slots[slot] ?? EMPTY) {
      if (isSameSerial(buffer, start, other)) return false
      slot = (slot + 1) & mask
    }
    slots[slot] = start
    return true
  }

  #rehash(end: number): void {
    this.#slots = emptySlots(this.#slots.length)
    const { octets } = this.#writer
    for (let start = 0; start < end; start = entryEnd(octets, start)) this.#place(start)
  }
}

/** Every entry is shorter than 128 octets: the second octet is its length. */
function entryEnd(octets: Buffer, start: number): number {
  return start + 2 + (octets[start + 1] ?? 0)
}

/** The end of the serial, which is random. */
function hashOf(octets: Buffer, start: number): number {
  const end = start + 4 + (octets[start + 3] ?? 0)
  const last = ((octets[end - 1] ?? 0) << 16) | ((octets[end - 2] ?? 0) << 8) | (octets[end - 3] ?? 0)
  return Math.imul(last, 0x9e3779b1) >>> 8
}

function isSameSerial(octets: Buffer, one: number, other: number): boolean {
  const length = octets[one + 3]
  if (length === undefined || length !== octets[other + 3]) return false
  for (let index = 4; index < 4 + length; index++) {
    if (octets[one + index] !== octets[other + index]) return false
  }
  return true
}

/** Whole octets, at most 20, not zero; that they are hex is for the encoder, which reads them anyway, to find. */
function isSerial(serial: string): boolean {
  return (
    serial.length % 2 === 0 &&
    serial.length > 0 &&
    serial.length <= 40 &&
    (!serial.startsWith('00') || !/^0+$/.test(serial))
  )
}
