import t from 'tap'
import { parseCsv } from '../../operator/csv.ts'
import { readManifest } from '../../operator/manifest.ts'
import { readSerialList } from '../../operator/serial-list.ts'
import fc from '../support/properties.ts'

const usage = { code: 'invalid_request' }
const quoted = (field: string) => `"${field.replaceAll('"', '""')}"`

t.test('CSV is read as RFC 4180 has it', async (t) => {
  t.strictSame(parseCsv('a,b\r\nc,d\r\n'), [
    ['a', 'b'],
    ['c', 'd'],
  ])
  t.strictSame(
    parseCsv('a,b\nc,'),
    [
      ['a', 'b'],
      ['c', ''],
    ],
    'without a last line end, and an empty field',
  )
  t.strictSame(parseCsv('"a,""b""\r\nc",d'), [['a,"b"\r\nc', 'd']])
  t.strictSame(parseCsv(' a , b'), [[' a ', ' b']], 'spaces are part of a field')
  t.strictSame(parseCsv('\r\na\r\n\r\n'), [['a']], 'empty lines are left out')
  t.strictSame(parseCsv(''), [])
  for (const text of ['"a', 'a"b"', '"a"b', 'a\n"b\n', 'a\rb', '"a""', '"a" ,b']) {
    t.throws(() => parseCsv(text), usage, text)
  }
  t.throws(() => parseCsv('a\nb\n"c'), { message: /line 3/ })
})

t.test('whatever is written as CSV is read back', async () => {
  const field = fc.oneof(fc.string({ unit: 'binary' }), fc.stringMatching(/^[",\r\n a]{0,6}$/))
  const records = fc.array(fc.array(field, { minLength: 2, maxLength: 4 }), { maxLength: 5 })
  fc.assert(
    fc.property(records, fc.constantFrom('\n', '\r\n'), (written, end) => {
      const text = written.map((record) => record.map(quoted).join(',')).join(end)
      return JSON.stringify(parseCsv(text)) === JSON.stringify(written)
    }),
  )
})

t.test('any text is a manifest or a refusal, never a fault', async () => {
  const text = fc.oneof(
    fc.string({ unit: 'binary' }),
    fc.stringMatching(/^id[",\r\nab]{0,12}$/),
    fc.json().map((json) => `[${json}]`),
  )
  fc.assert(
    fc.property(text, (text) => {
      try {
        return readManifest(text).every(({ row }, at) => row === at + 1)
      } catch (error) {
        return (error as { code?: string }).code === 'invalid_request'
      }
    }),
    { numRuns: 1000 },
  )
})

t.test('large fields and many rows take no time to speak of', async (t) => {
  const field = 'x""'.repeat(1_000_000)
  t.equal(parseCsv(`"${field}",b`)[0]?.[0]?.length, 2_000_000)
  t.throws(() => parseCsv(`"${field}`), usage, 'without its last quote')
  t.equal(parseCsv('a,b\n'.repeat(200_000)).length, 200_000)
  t.throws(() => readManifest('['.repeat(1_000_000)), usage)
})

t.test('a manifest is CSV with a heading, or JSON', async (t) => {
  const spki = 'ab'.repeat(32)
  const device = { id: 'oven-1', spki, attributes: { colour: 'red' } }
  const shown = spki.toUpperCase().replace(/..(?!$)/g, '$&:')
  t.strictSame(readManifest(`\uFEFFid,spki,colour,size\r\noven-1,${shown},red,\r\noven-2,,,\r\n`), [
    { row: 1, device },
    { row: 2, device: { id: 'oven-2', attributes: {} } },
  ])
  t.strictSame(readManifest(JSON.stringify([device, { id: 'oven-2' }])), [
    { row: 1, device },
    { row: 2, device: { id: 'oven-2', attributes: {} } },
  ])
  for (const text of ['', 'id', '[]', '[', 'name\nx', 'id,a,a\nx,1,2', 'id,\nx,y', '{"id":"x"}']) {
    t.throws(() => readManifest(text), usage, text)
  }
})

t.test('a row is faulted by itself', async (t) => {
  const verdicts = (text: string) =>
    readManifest(text).map((entry) => ('fault' in entry ? entry.fault : 'well'))
  t.match(verdicts('id,spki\na\nb,,c\nd,'), [/1 fields under 2/, /3 fields/, 'well'])
  t.match(verdicts('id,spki\na,AA\na,bb\nb,aa\n'), ['well', /row 1 has its id/, /row 1 has its id or key/])
  const odd = [
    7,
    null,
    'x',
    [],
    {},
    { id: 7 },
    { id: 'a', spki: 1 },
    { id: 'a', attributes: [] },
    { id: 'a', more: 1 },
  ]
  t.match(verdicts(JSON.stringify([...odd, { id: 'a' }])), [...odd.map(() => /is not \{id/), 'well'])
  const proto = readManifest('[{"id":"a","attributes":{"__proto__":"x"}}]')
  t.match(JSON.stringify(proto), '__proto__', 'as the plane will refuse it')
  t.equal(Object.getPrototypeOf({}), Object.prototype)
})

t.test('the list of a manufacturer is read as CSV or JSON, row by row', async (t) => {
  const rows = [
    { row: 1, device: { id: 'oven-1', serialNumber: 'SN-1' } },
    { row: 2, device: { serialNumber: 'sn-1', certificateSerial: '0A:BC' } },
  ]
  t.strictSame(readSerialList('id,serialNumber,certificateSerial\noven-1,SN-1,\n,sn-1,0A:BC\n'), rows)
  t.strictSame(readSerialList('\uFEFFserialNumber,id,certificateSerial\r\nSN-1,oven-1,\r\nsn-1,,0A:BC'), rows)
  t.strictSame(readSerialList(JSON.stringify(rows.map(({ device }) => device))), rows)
  for (const text of [
    '',
    'id',
    '[]',
    '[',
    'serialNumber,serialNumber\na,b',
    'serialNumber,colour\na,b',
    ',\n,',
  ]) {
    t.throws(() => readSerialList(text), usage, text)
  }
  t.match(readSerialList('serialNumber,id\nSN-1\nSN-2,a\nSN-3,a\nSN-2,b\na,\n'), [
    { row: 1, fault: /1 fields under 2 columns/ },
    { row: 2, device: { serialNumber: 'SN-2' } },
    { row: 3, fault: /row 2 has its id or number/ },
    { row: 4, fault: /row 2 has/ },
    { row: 5, fault: /row 2 has/ },
  ])
  const odd = [null, 7, 'a', [], { serialNumber: 7 }, { serialNumber: 'a', colour: 'red' }]
  t.equal(readSerialList(JSON.stringify(odd)).filter((entry) => 'fault' in entry).length, 4)
})

t.test('whatever text a list is, it is read or refused as a whole', async (t) => {
  fc.assert(
    fc.property(
      fc.oneof(
        fc.string(),
        fc.json(),
        fc.array(fc.json()).map((all) => `[${all}]`),
      ),
      (text) => {
        try {
          for (const [at, { row }] of readSerialList(text).entries()) t.equal(row, at + 1)
        } catch (error) {
          t.match(error, usage)
        }
      },
    ),
  )
})
