/** Encodes the signed part of a v2 CRL (RFC 5280 section 5.1) by hand: 100 000 entries take some 15 ms. */

import { readDer, TAG } from './der.ts'
import { element, explicit, header, integer, sequence } from './der-write.ts'
import { encodeTime, readTime } from './time.ts'

export interface CrlEntry {
  /** Hex. */
  readonly serial: string
  /** Ms since 1970; milliseconds are cut off. */
  readonly revokedAt: number
  /** CRLReason (RFC 5280 section 5.3.1); 0 is left out, as the RFC asks. */
  readonly reason: number
}

export interface CrlContents {
  /** DER of an AlgorithmIdentifier. */
  readonly algorithm: Uint8Array
  /** DER of the issuer's name, byte-exact. */
  readonly issuer: Uint8Array
  /** Ms since 1970, whole seconds. */
  readonly thisUpdate: number
  readonly nextUpdate: number
  /** Entries as `CrlEntryWriter` wrote them, one after the other, possibly in several pieces. */
  readonly entries: readonly Uint8Array[]
  /** DER of each crlExtension. */
  readonly extensions: readonly Uint8Array[]
}

/** DER of the tbsCertList. */
export function encodeTbsCrl(contents: CrlContents): Buffer {
  const { algorithm, issuer, thisUpdate, nextUpdate, entries, extensions } = contents
  const octets = entries.reduce((sum, piece) => sum + piece.length, 0)
  return sequence(
    integer(1),
    algorithm,
    issuer,
    encodeTime(thisUpdate),
    encodeTime(nextUpdate),
    // an empty list must be absent (RFC 5280 section 5.1.2.6)
    ...(octets === 0 ? [] : [header(TAG.sequence, octets), ...entries]),
    explicit(0, sequence(...extensions)),
  )
}

/** thisUpdate of a CRL, ms since 1970, without a look at its entries. @throws SyntaxError */
export function readThisUpdate(der: Uint8Array): number {
  const bytes = Buffer.from(der.buffer, der.byteOffset, der.byteLength)
  const tbs = bytes.subarray(headerOctets(bytes))
  let rest = tbs.subarray(headerOctets(tbs))
  for (let skipped = 0; skipped < 3; skipped++) rest = rest.subarray(elementOctets(rest)) // version, algorithm, issuer
  return readTime(readDer(rest.subarray(0, elementOctets(rest))))
}

function headerOctets(bytes: Buffer): number {
  const first = bytes[1] ?? 0
  return first < 0x80 ? 2 : 2 + (first & 0x7f)
}

function elementOctets(bytes: Buffer): number {
  const header = headerOctets(bytes)
  if (header > 6 || header > bytes.length) throw new SyntaxError('truncated')
  return header + (header === 2 ? (bytes[1] ?? 0) : bytes.readUIntBE(2, header - 2))
}

/** So many different dates and reasons are remembered. */
const RESTS = 1000

/** Longest entry: 2 for the header, 23 serial, 17 date, 14 reason. */
const ENTRY_OCTETS = 64

/** Extensions { Extension { id-ce-cRLReasons, OCTET STRING { ENUMERATED } } }; the last octet is the reason. */
const REASON_EXTENSIONS = element(
  TAG.sequence,
  element(
    TAG.sequence,
    element(TAG.oid, Buffer.from([0x55, 0x1d, 0x15])),
    element(TAG.octetString, element(TAG.enumerated, Buffer.alloc(1))),
  ),
)

/** Writes entries front to back into one buffer that grows; each is short enough for lengths of one octet. */
export class CrlEntryWriter {
  #buffer: Buffer
  #end = 0
  /** What follows the serial: a fleet is revoked at one time and for one reason, so most repeat. */
  readonly #rests = new Map<number, Buffer>()
  #lastKey = -1
  #lastRest: Buffer = Buffer.alloc(0)

  /** @param expected entries, so that the buffer need not grow */
  constructor(expected = 16) {
    this.#buffer = Buffer.allocUnsafe(expected * ENTRY_OCTETS)
  }

  /** Where the entries are written, with room after them; the next entry may move to another one. */
  get buffer(): Buffer {
    return this.#buffer
  }

  /** A view that the next entry may make old. */
  get octets(): Buffer {
    return this.#buffer.subarray(0, this.#end)
  }

  /**
   * SEQUENCE { userCertificate, revocationDate, crlEntryExtensions OPTIONAL }; returns where it begins.
   * @throws RangeError when the serial is not hex of 1 to 20 octets; nothing was added then
   */
  add({ serial, revokedAt, reason }: CrlEntry): number {
    const start = this.#end
    if (start + ENTRY_OCTETS > this.#buffer.length) this.#grow()
    const buffer = this.#buffer
    const afterSerial = writeSerial(buffer, { start: start + 2, hex: serial })
    const rest = this.#restOf(Math.floor(revokedAt / 1000), reason)
    buffer.set(rest, afterSerial)
    const end = afterSerial + rest.length
    buffer[start] = TAG.sequence
    buffer[start + 1] = end - start - 2
    this.#end = end
    return start
  }

  /** Takes an entry that another writer has written. */
  addWritten(entry: Uint8Array): number {
    const start = this.#end
    while (start + entry.length > this.#buffer.length) this.#grow()
    this.#buffer.set(entry, start)
    this.#end += entry.length
    return start
  }

  /** Takes back what was written from there on. */
  truncate(end: number): void {
    this.#end = end
  }

  #grow(): void {
    const larger = Buffer.allocUnsafe(this.#buffer.length * 2)
    larger.set(this.octets)
    this.#buffer = larger
  }

  /** Date and reason. */
  #restOf(second: number, reason: number): Buffer {
    const key = second * 16 + reason
    if (key === this.#lastKey) return this.#lastRest
    const rest = this.#rests.get(key) ?? encodeRest(second, reason)
    if (this.#rests.size >= RESTS) this.#rests.clear()
    this.#rests.set(key, rest)
    this.#lastKey = key
    this.#lastRest = rest
    return rest
  }
}

/** CRLReasons end with 10. */
function encodeRest(second: number, reason: number): Buffer {
  if (!Number.isInteger(reason) || reason < 0 || reason > 10) {
    throw new RangeError(`Cannot encode ${reason} as the reason of a revocation`)
  }
  const date = encodeTime(second * 1000)
  if (reason === 0) return date
  const rest = Buffer.concat([date, REASON_EXTENSIONS])
  rest[rest.length - 1] = reason
  return rest
}

/** An INTEGER of at most 20 octets; returns its end. @throws RangeError */
function writeSerial(buffer: Buffer, { start, hex }: { start: number; hex: string }): number {
  let digits = hex
  while (digits.length > 2 && digits.startsWith('00')) digits = digits.slice(2)
  const isPadded = digits.charCodeAt(0) > 0x37 // '8' to 'f': the first bit is set
  if (isPadded) buffer[start + 2] = 0
  const first = start + (isPadded ? 3 : 2)
  // by the length that is meant, so that nothing is written beyond the room for it; it stops where the hex does
  const end = first + buffer.write(digits, first, 20, 'hex')
  if (hex.length > 40 || digits.length === 0 || (end - first) * 2 !== digits.length) {
    throw new RangeError(`Cannot encode "${hex}" as a serial`)
  }
  buffer[start] = TAG.integer
  buffer[start + 1] = end - start - 2
  return end
}
