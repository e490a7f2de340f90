import type { Attribute, Handle } from './cryptoki.ts'

/** Octets of a CK_ULONG and of a pointer: `loadModule` takes no other machines. */
export const WORD = 8

/** Octets as a PKCS#11 module reads and writes them. */
export interface Memory {
  octets(length: number): Buffer
  /** A copy whose address stays. */
  copy(octets: Uint8Array): Buffer
  words(...values: readonly Handle[]): Buffer
  /** @param index counted in words */
  read(from: Buffer, index: number): Handle
  list(from: Buffer, count: number): Handle[]
  /** An array of CK_ATTRIBUTE; what it points to stays as long as it. */
  template(attributes: readonly Attribute[]): Buffer
  /** The value that the first attribute of a template points to. */
  pointedTo(template: Buffer): Buffer
}

/** @param addressOf of the first of some octets */
export function memoryOf(addressOf: (octets: Buffer) => bigint): Memory {
  const pointed = new WeakMap<Buffer, readonly Buffer[]>()
  // of an ArrayBuffer of its own: small typed arrays may lie in the heap, where they are moved
  const octets = (length: number) => Buffer.from(new ArrayBuffer(length))
  const read = (from: Buffer, index: number): Handle => {
    const value = from.readBigUInt64LE(index * WORD)
    return value <= Number.MAX_SAFE_INTEGER ? Number(value) : value
  }
  const words = (...values: readonly Handle[]) => {
    const written = octets(WORD * values.length)
    values.forEach((value, index) => {
      written.writeBigUInt64LE(BigInt(value), index * WORD)
    })
    return written
  }
  const copy = (of: Uint8Array) => {
    const made = octets(of.length)
    made.set(of)
    return made
  }
  return {
    octets,
    copy,
    words,
    read,
    list: (from, count) => Array.from({ length: count }, (_, index) => read(from, index)),
    template(attributes) {
      const values = attributes.map(({ value }) => copy(value))
      const made = words(
        ...values.flatMap((value, index) => [attributes[index]?.type ?? 0, addressOf(value), value.length]),
      )
      pointed.set(made, values)
      return made
    },
    pointedTo: (template) => pointed.get(template)?.[0] ?? octets(0),
  }
}
