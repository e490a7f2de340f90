import t, { type Test } from 'tap'
import type { Seen } from '../support/fleet-process.ts'
import { Years, YearsOperator } from '../support/years.ts'

const ROOT_DAYS = 720
const ISSUING_DAYS = 300
const DAYS = 740
const DEVICES = 4
const DEVICE_DAYS = 60
/**
 * Longest time between two looks, days: own certificates of the plane live for 30, and are renewed when 10 of them are
 * left. While a CA is about to end they live shorter, and the operator is to act in time.
 */
const STEP = 8
const BUSY_STEP = 2
/**
 * Share of what is left of the shortest certificate that a step takes. The processes renew when the clock has been moved,
 * not while it moves: a step beyond the end of a certificate is a device that slept until it had ended.
 */
const SHARE = 0.8
const DAY_MS = 86_400_000

/** Hang deadline only. */
const TIMEOUT = { timeout: 3_600_000 }

t.setTimeout(TIMEOUT.timeout)

t.test('three rollovers in two years of real processes lose no device', TIMEOUT, async (t) => {
  const started = Date.now()
  const years = await Years.start(t, {
    ...{ rootDays: ROOT_DAYS, issuingDays: ISSUING_DAYS },
    ...{ deviceDays: DEVICE_DAYS, devices: DEVICES },
  })
  const operator = new YearsOperator(years, { lifetimeDays: ISSUING_DAYS })
  let devices = await years.devices(1)
  let steps = 0
  while (years.days < DAYS) {
    years.pass(safeStep(devices, { now: Date.now() + years.days * DAY_MS, isBusy: operator.isBusy }))
    await years.devices(1) // every one connected, and those that were due have renewed
    devices = await years.devices(await operator.look())
    t.comment(shown(++steps, { years, operator, devices, seconds: (Date.now() - started) / 1000 }))
    t.equal(devices.length, DEVICES, `day ${years.days.toFixed(1)}: every device is connected`)
  }
  t.match(
    operator.done.map((line) => line.replace(/^\S+ /, '')),
    [
      ...['start --lifetime', 'cut-over', 'finish'],
      ...['start --lifetime', 'cut-over', 'finish'],
      ...['start --root', 'cut-over', 'finish'],
    ],
    operator.done.join(', '),
  )
  t.same(
    devices.map(({ refusals }) => refusals),
    devices.map(() => 0),
    'no device was ever refused',
  )
  alarmsAreSeen(t, operator.alarms)
  t.match(await years.muster('audit', 'verify'), { ok: true })
})

function safeStep(devices: Seen['devices'], of: { now: number; isBusy: boolean }): number {
  const left = Math.min(...devices.map(({ notAfter }) => notAfter - of.now)) / DAY_MS
  return Math.min(of.isBusy ? BUSY_STEP : STEP, left * SHARE)
}

/** Of every CA that was replaced: a root, and an issuing CA of each kind in each of three rollovers. */
function alarmsAreSeen(t: Test, alarms: readonly string[]): void {
  const days = Map.groupBy(
    alarms.map((line) => line.split(/ (?=\S+ \S+$)/)),
    ([name, rest = '']) => `${name} ${rest.split(' ')[0]}`,
  )
  const replaced = [...days].filter(([, lines]) => lines.some(([, rest]) => rest?.endsWith(' 7')))
  for (const [ca, lines] of replaced) {
    t.same(
      lines.map(([, rest]) => rest?.split(' ')[1]),
      ['90', '30', '7'],
      `alarms of the ${ca.slice(0, 30)}`,
    )
  }
  const names = replaced.map(([ca]) => ca.replace(/ \S+$/, '')).sort()
  t.same(names, [
    ...Array.from({ length: 3 }, () => 'device CA'),
    ...Array.from({ length: 3 }, () => 'infrastructure CA'),
    'root CA',
  ])
}

function shown(
  step: number,
  of: { years: Years; operator: YearsOperator; devices: Seen['devices']; seconds: number },
): string {
  const { years, operator, devices, seconds } = of
  const issuers = new Set(devices.map(({ issuer }) => issuer)).size
  const what = [operator.done.at(-1), operator.alarms.at(-1)?.replace(/[0-9a-f]{56}(?= )/, '')]
  return `step ${step}, day ${years.days.toFixed(1)}, ${Math.round(seconds)} s: ${devices.length} devices, ${issuers} issuers; last step ${what[0]}; last alarm ${what[1]}`
}
