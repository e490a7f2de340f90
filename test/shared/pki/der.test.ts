import t from 'tap'
import {
  bitsOf,
  contextTag,
  type DerNode,
  expectTag,
  fields,
  oidOf,
  readDer,
  smallIntegerOf,
  TAG,
  textOf,
} from '#shared/pki/der'
import {
  bitString,
  element,
  explicit,
  ia5,
  implicit,
  integer,
  NULL,
  octetString,
  oid,
  sequence,
  setOf,
  TRUE,
  unsigned,
  utf8String,
} from '#shared/pki/der-write'
import { encodeTime, readTime } from '#shared/pki/time'
import fc from '../../support/properties.ts'

const hex = (text: string) => Buffer.from(text.replaceAll(' ', ''), 'hex')

t.test('what DER forbids is refused with the rule', (t) => {
  const wrong: [string, Buffer, RegExp][] = [
    ['nothing', hex(''), /truncated/],
    ['a tag alone', hex('30'), /truncated/],
    ['content cut short', hex('30 03 02 01'), /truncated/],
    ['a long length cut short', hex('30 82 01'), /truncated/],
    ['content past the end', hex('30 7f'), /truncated/],
    ['four gigabytes announced', hex('04 84 ff ff ff ff'), /truncated/],
    ['a trailing byte', hex('05 00 00'), /trailing/],
    ['an indefinite length', hex('30 80 00 00'), /indefinite/],
    ['a long form for a short length', hex('04 81 01 00'), /minimal/],
    ['a leading zero in the length', hex(`04 82 00 80 ${'00'.repeat(128)}`), /minimal/],
    ['a length of five octets', hex('04 85 00 00 00 00 01 00'), /too long/],
    ['the reserved length ff', hex('04 ff'), /too long/],
    ['a high tag number', hex('1f 01 00'), /high tag/],
    ['end of contents', hex('00 00'), /reserved/],
    ['a sequence in primitive form', hex('10 00'), /misformed/],
    ['a set in primitive form', hex('11 00'), /misformed/],
    ['an octet string in pieces', hex('24 02 04 00'), /constructed/],
    ['a bit string in pieces', hex('23 03 03 01 00'), /constructed/],
    ['a boolean that is neither', hex('01 01 01'), /boolean/],
    ['an empty boolean', hex('01 00'), /boolean/],
    ['an empty integer', hex('02 00'), /integer/],
    ['a padded integer', hex('02 02 00 7f'), /minimal/],
    ['a padded negative integer', hex('02 02 ff 80'), /minimal/],
    ['a padded enumerated', hex('0a 02 00 01'), /minimal/],
    ['null with content', hex('05 01 00'), /null/],
    ['an empty identifier', hex('06 00'), /object identifier/],
    ['a padded arc', hex('06 03 2a 80 01'), /object identifier/],
    ['an unfinished arc', hex('06 02 2a 81'), /object identifier/],
    ['an endless arc', hex('06 06 2a ff ff ff ff 7f'), /object identifier/],
    ['a bit string without its count', hex('03 00'), /bit string/],
    ['eight unused bits', hex('03 02 08 00'), /bit string/],
    ['unused bits of nothing', hex('03 01 01'), /bit string/],
    ['unused bits that are set', hex('03 02 01 01'), /bit string/],
    ['a set out of order', hex('31 06 02 01 02 02 01 01'), /sorted/],
    ['33 levels', nested(33), /deep/],
    ['10 000 levels', nested(10_000), /deep/],
  ]
  for (const [name, bytes, form] of wrong)
    t.throws(() => readDer(bytes), { name: 'SyntaxError', message: form }, name)
  t.ok(readDer(nested(32)))
  t.end()
})

/** A NULL in that many sequences. */
function nested(levels: number): Buffer {
  let bytes: Buffer = NULL
  for (let level = 0; level < levels; level++) bytes = sequence(bytes)
  return bytes
}

t.test('arbitrary bytes are read whole or refused, never more', (t) => {
  const bytes = fc.oneof(
    fc.uint8Array({ maxLength: 200 }),
    fc.array(tlv(), { maxLength: 4 }).map(Buffer.concat),
  )
  fc.assert(
    fc.property(bytes, (input) => {
      try {
        const node = readDer(input)
        t.same(Buffer.from(node.raw), Buffer.from(input))
        t.same(rebuilt(node), Buffer.from(input))
      } catch (error) {
        if (!(error instanceof SyntaxError)) throw error
      }
    }),
    { numRuns: 5000 },
  )
  t.end()
})

/** Something that looks like an element more often than random bytes do. */
function tlv(): fc.Arbitrary<Buffer> {
  return fc
    .tuple(fc.nat(255), fc.uint8Array({ maxLength: 12 }), fc.integer({ min: -1, max: 1 }))
    .map(([tag, content, error]) => Buffer.from([tag, Math.max(0, content.length + error), ...content]))
}

/** The same element, written again from what was read. */
function rebuilt(node: DerNode): Buffer {
  return node.children.length > 0
    ? element(node.tag, ...node.children.map(rebuilt))
    : element(node.tag, node.content)
}

t.test('16 KiB of anything are read or refused at once', (t) => {
  const started = performance.now()
  for (const filler of ['00', '30', '3000', '0500', '0201', '0601', '04820000', '3080', 'a000']) {
    const octets = Buffer.alloc(16 * 1024 - 4, filler, 'hex')
    for (const input of [octets, sequence(octets)]) {
      try {
        readDer(input)
      } catch (error) {
        if (!(error instanceof SyntaxError)) throw error
      }
    }
  }
  // some 30 ms for all of them; the bench figure for a stalled loop is 150 ms for one
  t.ok(performance.now() - started < 1000)
  t.end()
})

t.test('what is written is read back', (t) => {
  fc.assert(
    fc.property(fc.array(fc.uint8Array({ maxLength: 300 }), { maxLength: 5 }), (contents) => {
      const der = sequence(...contents.map((content) => octetString(content)))
      t.same(
        readDer(der).children.map((child) => child.content),
        contents.map((content) => Buffer.from(content)),
      )
      const numbers = readDer(sequence(...contents.map((content) => unsigned(content)))).children
      const value = (octets: Uint8Array) => BigInt(`0x0${Buffer.from(octets).toString('hex')}`)
      t.same(
        numbers.map(({ content }) => value(content)),
        contents.map(value),
      )
      t.ok(readDer(setOf(...contents.map((content) => octetString(content)))))
    }),
    { numRuns: 200 },
  )
  fc.assert(
    fc.property(
      fc.integer({ min: 0, max: 2 ** 31 - 1 }),
      (value) => smallIntegerOf(readDer(integer(value))) === value,
    ),
  )
  fc.assert(
    fc.property(fc.string({ unit: 'grapheme' }), (text) => textOf(readDer(utf8String(text))) === text),
  )
  t.same(explicit(0, NULL), hex('a0 02 05 00'))
  t.same(implicit(6, ia5('a')), hex('86 01 61'))
  t.same(bitString(Buffer.from([0x80]), 7), hex('03 02 07 80'))
  t.same(TRUE, hex('01 01 ff'))
  t.end()
})

t.test('lengths at every border take the fewest octets', (t) => {
  for (const [length, head] of [
    [127, '04 7f'],
    [128, '04 81 80'],
    [255, '04 81 ff'],
    [256, '04 82 01 00'],
    [65_535, '04 82 ff ff'],
    [65_536, '04 83 01 00 00'],
    [16_777_216, '04 84 01 00 00 00'],
  ] as const) {
    const der = octetString(Buffer.alloc(length))
    t.same(der.subarray(0, der.length - length), hex(head))
    t.equal(readDer(der).content.length, length)
  }
  t.end()
})

t.test('object identifiers keep every arc', (t) => {
  for (const dotted of [
    '1.2.840.113549.1.9.14',
    '2.5.29.37.0',
    '0.9.2342.19200300.100.1.25',
    '2.999.3',
    '1.3.132.0.34',
    '2.16.840.1.101.3.4.1.42',
  ]) {
    t.equal(oidOf(readDer(oid(dotted))), dotted)
  }
  t.end()
})

t.test('a reader of parts says which part it missed', (t) => {
  const node = readDer(sequence(integer(5), bitString(Buffer.from([0xf0]), 4)))
  t.throws(() => expectTag(undefined, TAG.oid, 'name'), { message: 'no name' })
  t.throws(() => fields(node, 'thing', [3, 4]), { message: /number of fields in thing/ })
  t.throws(() => fields(node.children[0], 'thing', [1, 1]), { message: 'no thing' })
  t.throws(() => oidOf(node), SyntaxError)
  t.throws(() => bitsOf(node.children[1]), { message: /unused bits/ })
  t.throws(() => smallIntegerOf(readDer(hex('02 01 ff'))), { message: /range/ })
  t.throws(() => smallIntegerOf(readDer(hex('02 05 01 00 00 00 00'))), { message: /range/ })
  t.equal(contextTag(3, 'constructed'), 0xa3)
  t.end()
})

t.test('text of old or wrong encodings is refused', (t) => {
  t.equal(textOf(readDer(hex('13 02 41 42'))), 'AB')
  t.equal(textOf(readDer(hex('16 02 41 40'))), 'A@')
  for (const [name, bytes] of [
    ['BMPString', '1e 02 00 41'],
    ['T61String', '14 01 41'],
    ['UniversalString', '1c 04 00 00 00 41'],
    ['broken UTF-8', '0c 02 c3 28'],
    ['overlong UTF-8', '0c 02 c0 80'],
    ['a surrogate', '0c 03 ed a0 80'],
    ['@ in a PrintableString', '13 01 40'],
    ['Latin-1 in an IA5String', '16 01 e4'],
  ] as const) {
    t.throws(() => textOf(readDer(hex(bytes))), SyntaxError, name)
  }
  t.end()
})

t.test('dates: UTCTime to 2049, GeneralizedTime from 2050, seconds, Z', (t) => {
  const ascii = (tag: number, text: string) => readDer(element(tag, Buffer.from(text)))
  for (const at of [
    0,
    Date.UTC(2049, 11, 31, 23, 59, 59),
    Date.UTC(2050, 0),
    Date.UTC(9999, 11, 31, 23, 59, 59),
    Date.UTC(2028, 1, 29),
  ]) {
    t.equal(readTime(readDer(encodeTime(at))), at)
  }
  t.same(encodeTime(Date.UTC(2049, 11, 31, 23, 59, 59)), element(TAG.utcTime, Buffer.from('491231235959Z')))
  t.same(encodeTime(Date.UTC(2050, 0)), element(TAG.generalizedTime, Buffer.from('20500101000000Z')))
  t.throws(() => encodeTime(1), RangeError)
  t.throws(() => encodeTime(Number.NaN), RangeError)
  t.throws(() => encodeTime(Date.UTC(10_000, 0)), RangeError)
  t.equal(readTime(ascii(TAG.utcTime, '500101000000Z')), Date.UTC(1950, 0))
  for (const [tag, text] of [
    [TAG.utcTime, '270230000000Z'],
    [TAG.utcTime, '271301000000Z'],
    [TAG.utcTime, '270101240000Z'],
    [TAG.utcTime, '270101000060Z'],
    [TAG.utcTime, '2701010000Z'],
    [TAG.utcTime, '270101000000+0000'],
    [TAG.generalizedTime, '20500101000000.5Z'],
    [TAG.generalizedTime, '20500101000000'],
    [TAG.generalizedTime, '00000101000000Z'],
    [TAG.octetString, '270101000000Z'],
  ] as const) {
    t.throws(() => readTime(ascii(tag, text)), SyntaxError, text)
  }
  t.throws(() => readTime(undefined), SyntaxError)
  t.end()
})
