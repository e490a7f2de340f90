/** A writer of DER (X.690), the counterpart of `der.ts`. Misuse throws RangeError. */
import { contextTag, TAG } from './der.ts'

/** One element with the concatenated contents. */
export function element(tag: number, ...contents: readonly Uint8Array[]): Buffer {
  const length = contents.reduce((sum, content) => sum + content.length, 0)
  return Buffer.concat([header(tag, length), ...contents])
}

/** Tag and length octets. */
export function header(tag: number, length: number): Buffer {
  if (length < 0x80) return Buffer.from([tag, length])
  const octets = length < 0x100 ? 1 : length < 0x10000 ? 2 : length < 0x1000000 ? 3 : 4
  const bytes = Buffer.alloc(2 + octets)
  bytes[0] = tag
  bytes[1] = 0x80 | octets
  bytes.writeUIntBE(length, 2, octets)
  return bytes
}

export function sequence(...fields: readonly Uint8Array[]): Buffer {
  return element(TAG.sequence, ...fields)
}

/** A SET OF, sorted as DER demands (X.690 section 11.6). */
export function setOf(...members: readonly Uint8Array[]): Buffer {
  return element(TAG.set, ...members.toSorted(Buffer.compare))
}

/** `[n]` around a whole element. */
export function explicit(number: number, field: Uint8Array): Buffer {
  return element(contextTag(number, 'constructed'), field)
}

/** `[n]` in the place of a primitive element's own tag. */
export function implicit(number: number, content: Uint8Array): Buffer {
  return element(contextTag(number, 'primitive'), content)
}

/** An unsigned INTEGER from its octets, most significant first. */
export function unsigned(octets: Uint8Array): Buffer {
  const start = octets.findIndex((octet) => octet !== 0)
  if (start === -1) return Buffer.from([TAG.integer, 1, 0])
  const minimal = octets.subarray(start)
  return (minimal[0] ?? 0) < 0x80
    ? element(TAG.integer, minimal)
    : element(TAG.integer, Buffer.alloc(1), minimal)
}

/** An INTEGER from a non-negative number. */
export function integer(value: number): Buffer {
  if (!Number.isSafeInteger(value) || value < 0) throw new RangeError(`Cannot encode ${value} as INTEGER`)
  const hex = value.toString(16)
  return unsigned(Buffer.from(hex.padStart(hex.length + (hex.length % 2), '0'), 'hex'))
}

export function octetString(content: Uint8Array): Buffer {
  return element(TAG.octetString, content)
}

export function bitString(octets: Uint8Array, unusedBits = 0): Buffer {
  return element(TAG.bitString, Buffer.from([unusedBits]), octets)
}

/** DER writes `false` only where it is not the default; it never is here. */
export const TRUE = Buffer.from([TAG.boolean, 1, 0xff])
export const NULL = Buffer.from([TAG.null, 0])

export function utf8String(text: string): Buffer {
  return element(TAG.utf8String, Buffer.from(text, 'utf8'))
}

/** Content octets of an IA5String: ASCII only. */
export function ia5(text: string): Buffer {
  const bytes = Buffer.from(text, 'latin1')
  if (!/^[\x20-\x7e]*$/.test(text)) throw new RangeError(`Cannot encode "${text}": it is not ASCII`)
  return bytes
}

/** An OBJECT IDENTIFIER from its dotted form. */
export function oid(dotted: string): Buffer {
  const [first = 0, second = 0, ...rest] = dotted.split('.').map(Number)
  return element(TAG.oid, Buffer.from([first * 40 + second, ...rest].flatMap(base128)))
}

function base128(arc: number): number[] {
  const octets = [arc % 128]
  for (let rest = Math.floor(arc / 128); rest > 0; rest = Math.floor(rest / 128)) {
    octets.unshift(0x80 | (rest % 128))
  }
  return octets
}
