import t from 'tap'
import { Years, YearsOperator } from '../support/years.ts'

const ROOT_DAYS = 720
const ISSUING_DAYS = 300
const DAYS = 740
const DEVICES = 6
/** Renewal falls between two thirds and nine tenths of it: no device may be due and ended between two looks. */
const DEVICE_DAYS = 60
/** Days between two looks of the operator, and those while a CA is about to end: certificates live no longer than it. */
const STEP = 6
const SMALL_STEP = 1

t.test('three rollovers in two years of real processes lose no device', async (t) => {
  const years = await Years.start(t, {
    rootDays: ROOT_DAYS,
    issuingDays: ISSUING_DAYS,
    deviceDays: DEVICE_DAYS,
    devices: DEVICES,
  })
  const operator = new YearsOperator(years, { lifetimeDays: ISSUING_DAYS })
  let devices = await years.devices(1)
  while (years.days < DAYS) {
    years.pass(operator.isBusy ? SMALL_STEP : STEP)
    await years.devices(1)
    devices = await years.devices(await operator.look())
  }
  t.match(
    operator.done.map((line) => line.replace(/^\d+ /, '')),
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
  t.equal(devices.length, DEVICES)
  const [id = ''] = operator.alarms
    .filter((line) => line.startsWith('root CA'))
    .map((line) => line.split(' ')[2])
  t.same(
    operator.alarms.filter((line) => line.includes(id)).map((line) => line.split(' ').at(-1)),
    ['90', '30', '7'],
    'alarms of the first root',
  )
  t.match(await years.muster('audit', 'verify'), { ok: true })
})
