import { createHash, randomBytes } from 'node:crypto'
import t from 'tap'
import { newToken, parseToken } from '#shared/token'
import fc from '../support/properties.ts'

t.test('a token holds 256 random bits, a prefix and a checksum, and only its hash is stored', async (t) => {
  const { text, hash, id } = newToken(randomBytes)
  t.match(text, /^mst_[A-Za-z0-9_-]{43}[0-9a-f]{6}$/)
  t.equal(hash, createHash('sha256').update(text).digest('hex'))
  t.notOk(text.includes(id), 'its public name says nothing about it')
  t.same(parseToken(text), { hash })
  t.equal(new Set(Array.from({ length: 100 }, () => newToken(randomBytes).text)).size, 100)
})

t.test('a slip of the pen is told from a token that nobody issued', async (t) => {
  const { text } = newToken(randomBytes)
  const slips = [...text].map(
    (letter, at) => text.slice(0, at) + (letter === 'A' ? 'B' : 'A') + text.slice(at + 1),
  )
  t.ok(slips.every((slip) => parseToken(slip) === null))
  for (const wrong of [
    '',
    'mst_',
    text.slice(1),
    text.slice(0, -1),
    `${text}a`,
    ` ${text}`,
    text.toUpperCase(),
  ]) {
    t.equal(parseToken(wrong), null, wrong)
  }
})

t.test('no other text is taken for a token', async (t) => {
  const check = fc.property(fc.string({ unit: 'binary' }), (text) => parseToken(text) === null)
  t.doesNotThrow(() => fc.assert(check))
})
