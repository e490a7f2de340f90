/** Requests whose octets are not what DER, or a signature, allows. */
import { bitString, element, explicit, integer, sequence, TRUE } from '#shared/pki/der-write'
import { type HostileCsr, named, type Victim } from './hostile-csr.ts'
import { craftCsr } from './pki-csr.ts'

export function encodings(next: () => Victim): HostileCsr[] {
  const make = () => {
    const { id, key } = next()
    return craftCsr({ key, subject: named(id) })
  }
  const content = make().subarray(4)
  const nest = (depth: number, tag: number) =>
    Array.from({ length: depth }).reduce<Buffer>((inner) => element(tag, inner), Buffer.alloc(0))
  const longForm = (octets: number) =>
    Buffer.concat([Buffer.from([0x30, 0x80 | octets]), Buffer.alloc(octets, 0x7f), content])
  const version = (value: Buffer) => craftCsr({ key: next().key, version: value })
  const all: Record<string, Buffer> = {
    nothing: Buffer.alloc(1),
    'a trailing byte': Buffer.concat([make(), Buffer.alloc(1)]),
    'two requests': Buffer.concat([make(), make()]),
    'an indefinite length': Buffer.concat([Buffer.from([0x30, 0x80]), content, Buffer.alloc(2)]),
    'a length of 3 octets': Buffer.concat([
      Buffer.from([0x30, 0x83, 0, content.length >> 8, content.length & 255]),
      content,
    ]),
    'nested 31 deep': nest(31, 0x30),
    'nested 33 deep': nest(33, 0x30),
    'nested 4 000 deep': nest(4000, 0x30),
    'sets nested 4 000 deep': nest(4000, 0x31),
    'a set around it': element(0x31, content),
    'context tags': element(0xa0, content),
    'a high tag': Buffer.concat([Buffer.from([0x3f, 0x81, 0x01]), content]),
    'version 1': version(integer(1)),
    'version -1': version(Buffer.from([2, 1, 0xff])),
    'version 0 in two octets': version(Buffer.from([2, 2, 0, 0])),
    'version of 100 octets': version(element(0x02, Buffer.alloc(100, 1))),
    'version TRUE': version(TRUE),
    'a certificate': sequence(
      sequence(explicit(0, integer(2)), integer(1)),
      sequence(),
      bitString(Buffer.alloc(1)),
    ),
    '16 KiB of zeros': Buffer.alloc(16 * 1024),
    '16 KiB of sequences': Buffer.alloc(16 * 1024, 0x30),
    '8 000 empty sequences': sequence(...Array.from({ length: 8000 }, () => sequence())),
    'an endless OID': sequence(element(0x06, Buffer.alloc(9000, 0xff))),
    'an OID that is padded': craftCsr({
      key: next().key,
      algorithm: sequence(Buffer.from([6, 3, 0x2a, 0x80, 0x03])),
    }),
  }
  for (const octets of [1, 2, 4, 5, 8, 126])
    all[`a length of ${octets} octets that is too great`] = longForm(octets)
  return Object.entries(all).map(([name, der]) => ({ name, der }))
}

/** A good request, cut short. */
export function cuts(next: () => Victim): HostileCsr[] {
  const { id, key } = next()
  const der = craftCsr({ key, subject: named(id) })
  const every = Math.ceil(der.length / 40)
  return Array.from({ length: 40 }, (_, at) => at * every + 1)
    .filter((length) => length < der.length)
    .map((length) => ({ name: `after ${length} octets`, der: der.subarray(0, length) }))
}

/** A good request with one bit turned: whatever it says then, its signature is not over it. */
export function flips(next: () => Victim): HostileCsr[] {
  const { id, key } = next()
  const der = craftCsr({ key, subject: named(id) })
  return Array.from({ length: 60 }, (_, n) => {
    const at = Math.floor((n * der.length) / 60)
    const turned = Buffer.from(der)
    turned[at] = (turned[at] ?? 0) ^ (1 << (n % 8))
    return { name: `bit ${n % 8} of octet ${at}`, der: turned }
  })
}
