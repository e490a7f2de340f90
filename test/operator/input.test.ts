import t from 'tap'
import { programOf } from '../../operator/commands/programs.ts'
import { formatDuration, formatWhen, parseDuration, parseExpiry } from '../../operator/duration.ts'
import { positiveInteger } from '../../operator/number.ts'
import { reasonOf } from '../../operator/reason.ts'
import { targetOf } from '../../operator/target.ts'
import fc from '../support/properties.ts'

const usage = { code: 'invalid_request' }

t.test('a duration is read in every unit, and in several', async (t) => {
  t.equal(parseDuration('90s'), 90_000)
  t.equal(parseDuration('24h'), 86_400_000)
  t.equal(parseDuration('1h30m'), 5_400_000)
  t.equal(parseDuration('250ms'), 250)
  t.equal(parseDuration('0'), 0)
  for (const text of ['', '15', '15 m', '-1h', '1.5h', 'h', '15mm', '1h ', '999999999999d', 'PT1H']) {
    t.throws(() => parseDuration(text), usage, text)
  }
})

t.test('any text is a duration that is not negative, or a refusal', async () => {
  fc.assert(
    fc.property(fc.oneof(fc.string(), fc.stringMatching(/^[0-9dhms]{0,12}$/)), (text) => {
      try {
        const ms = parseDuration(text)
        return Number.isSafeInteger(ms) && ms >= 0
      } catch (error) {
        return (error as { code?: string }).code === 'invalid_request'
      }
    }),
  )
})

t.test('an expiry is a duration from now or a date, and never past', async (t) => {
  const now = Date.parse('2026-11-22T12:00:00Z')
  t.equal(parseExpiry('24h', now), now + 86_400_000)
  t.equal(parseExpiry('2027-01-31', now), Date.parse('2027-01-31T00:00:00Z'))
  t.equal(parseExpiry('2027-01-31T12:30:00Z', now), Date.parse('2027-01-31T12:30:00Z'))
  for (const text of ['2026-11-21', '0', 'tomorrow', '2027-13-45', '2026-11-22T12:00:00Z']) {
    t.throws(() => parseExpiry(text, now), usage, text)
  }
})

t.test('a time is shown in the unit that a person would use', async (t) => {
  const shown = { 0: '0 ms', 850: '850 ms', 1234: '1.2 s', 59999: '60 s', 125000: '2m', 86399990: '1d' }
  for (const [ms, text] of Object.entries(shown)) t.equal(formatDuration(Number(ms)), text)
  t.equal(formatDuration(3 * 86_400_000 + 4 * 3_600_000), '3d 4h')
  t.equal(formatDuration(30 * 86_400_000 + 3_600_000), '30d')
  t.equal(formatDuration(5_400_000), '1h 30m')
  t.equal(formatWhen(10_000, 0), 'in 10 s')
  t.equal(formatWhen(0, 10_000), '10 s ago')
  t.equal(formatWhen(null, 10_000), '-')
})

t.test('a count is a whole number of at least one', async (t) => {
  t.equal(positiveInteger('--uses', '12'), 12)
  for (const text of ['0', '-1', '1.5', '', ' 1', '1e3', '0x10', '99999999999999999999']) {
    t.throws(() => positiveInteger('--uses', text), usage, text)
  }
})

t.test('a hold is aimed at exactly one thing', async (t) => {
  t.strictSame(targetOf(['lamp'], {}), { scope: { kind: 'device', id: 'lamp' } })
  t.strictSame(targetOf(['lamp', 'lamp'], {}), { scope: { kind: 'device', id: 'lamp' } })
  t.strictSame(targetOf(['lamp', 'fan'], {}), { devices: ['lamp', 'fan'] })
  t.strictSame(targetOf([], { batch: 'b' }), { scope: { kind: 'batch', id: 'b' } })
  t.strictSame(targetOf([], { fleet: 'f' }), { scope: { kind: 'fleet', id: 'f' } })
  t.throws(() => targetOf([], {}), usage)
  t.throws(() => targetOf(['lamp'], { batch: 'b' }), usage)
  t.throws(() => targetOf([], { batch: 'b', fleet: 'f' }), usage)
})

t.test('a reason is one of RFC 5280, in any case', async (t) => {
  t.equal(reasonOf('keycompromise'), 'keyCompromise')
  for (const text of ['certificateHold', 'removeFromCRL', '', '__proto__'])
    t.throws(() => reasonOf(text), usage)
})

t.test('muster broker runs a broker, unless it is asked about brokers', async (t) => {
  t.strictSame(programOf(['broker', '--data', 'x']), { name: 'broker', args: ['--data', 'x'] })
  t.strictSame(programOf(['broker']), { name: 'broker', args: [] })
  for (const verb of ['list', 'invite', 'forget', '--help']) t.equal(programOf(['broker', verb]), null)
  t.strictSame(programOf(['sim', 'run', '--help']), { name: 'sim', args: ['run', '--help'] })
  t.strictSame(programOf(['bench', 'list']), { name: 'bench', args: ['list'] })
  t.equal(programOf(['enrollment', '--help']), null)
  t.equal(programOf(['status']), null)
  t.equal(programOf([]), null)
})
