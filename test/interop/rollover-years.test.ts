import t, { type Test } from 'tap'
import { Years, YearsOperator } from '../support/years.ts'

/** Days of the first issuing CAs: their alarms come while the test runs. */
const FIRST_DAYS = 38
/**
 * Days between two looks of the operator. Every step is shorter than what is left of a certificate when it is due: the
 * processes renew when the clock has been moved, not while it moves.
 */
const STEPS = [9, 9, 9, 4, 6]

t.test('real processes go through a rollover while their clock runs, and no device is lost', async (t) => {
  const years = await Years.start(t, { rootDays: 3650, issuingDays: FIRST_DAYS, deviceDays: 30, devices: 3 })
  const operator = new YearsOperator(years, { lifetimeDays: 300 })
  const first = await years.devices(await operator.look())
  let devices = first
  for (const days of STEPS) {
    years.pass(days)
    devices = await years.devices(1)
    devices = await years.devices(await operator.look())
  }
  years.pass(2)
  await years.devices(2)
  await finishes(t, years)
  devices = await years.devices(3)
  t.strictSame(operator.done, ['9 start --lifetime', '31 cut-over'])
  t.equal(devices.length, 3)
  const before = new Map(first.map(({ id, issuer }) => [id, issuer]))
  t.ok(
    devices.every(({ id, issuer }) => issuer !== before.get(id)),
    'every device has a certificate of the new CA',
  )
  t.same(
    devices.map(({ refusals }) => refusals),
    [0, 0, 0],
    'and was never refused',
  )
  for (const ca of ['device CA', 'infrastructure CA']) {
    const days = operator.alarms.filter((line) => line.startsWith(ca)).map((line) => line.split(' ').at(-1))
    t.same(days, ['90', '30', '7'], `the alarms of the ${ca}`)
  }
  t.match(years.logOf('enrollment'), /"withinDays":7,"event":"a CA ends soon/)
  t.match(await years.muster('audit', 'verify'), { ok: true })
})

/** The last step, cut off before and after its commit; the same command completes. */
async function finishes(t: Test, years: Years): Promise<void> {
  for (const [point, state] of [
    ['rollover-finish.1', 'cut-over'],
    ['rollover-finish.2', 'finished'],
  ] as const) {
    await years.restartEnrollment(point)
    t.not((await years.muster('ca', 'rollover', 'finish')).status, 0, `killed at ${point}`)
    await years.restartEnrollment()
    t.match(await years.rollover(), { rollover: { state } })
  }
  t.match(await years.muster('ca', 'rollover', 'finish'), { status: 0, state: 'finished' })
}
