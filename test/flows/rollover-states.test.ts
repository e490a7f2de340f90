import t from 'tap'
import { abortRollover, finishRollover, rolloverStatus } from '../../enrollment/rollover.ts'
import { by, canAlwaysBeEnded, planeOf, run } from '../support/rollover-states.ts'

t.test(
  'whatever is done, cut off and repeated, certificates are issued and a rollover can be ended',
  async (t) => {
    t.testdir({})
    await canAlwaysBeEnded(t, { runs: 2, steps: 8 })
  },
)

t.test('a rollover that is only published is not finished, and the refusal says what to do', async (t) => {
  t.testdir({})
  const one = await planeOf(t, 'published')
  await run(one, { kind: 'start', cut: 1, root: true })
  await run(one, { kind: 'finish', cut: 1, root: false })
  const { deps } = one.service
  await t.rejects(finishRollover(deps, { by }), {
    code: 'conflict',
    message: /old CAs still sign; fix: muster/,
  })
  t.match((await rolloverStatus(deps)).rollover, { state: 'published' })
})

t.test('when the CAs that sign have ended, those that are published sign', async (t) => {
  t.testdir({})
  const one = await planeOf(t, 'ended')
  await run(one, { kind: 'pass', days: 150 })
  await run(one, { kind: 'start', cut: 0, root: false })
  const { deps } = one.service
  const { rollover } = await rolloverStatus(deps)
  one.pass(51)
  await t.rejects(abortRollover(deps, { by }), { code: 'conflict', message: /have ended/ })
  await one.restart()
  t.match((await rolloverStatus(one.service.deps)).rollover, { id: rollover?.id, state: 'cut-over' })
  t.equal(one.service.deps.authority.current.device, rollover?.to.device)
  await one.enroll()
  await t.rejects(abortRollover(one.service.deps, { by }), { code: 'conflict', message: /have ended/ })
  const entry = (await one.service.deps.registry.listAudit(0, 1000)).find(
    ({ action }) => action === 'rollover.cut-over',
  )
  t.equal(entry?.by, 'plane')
  one.pass(1)
  t.match(await finishRollover(one.service.deps, { by }), { state: 'finished' })
})

t.test('when the CAs that sign again have ended, those that were given up sign', async (t) => {
  t.testdir({})
  const one = await planeOf(t, 'aborting')
  await run(one, { kind: 'pass', days: 150 })
  await run(one, { kind: 'start', cut: 0, root: false })
  await run(one, { kind: 'cut-over', cut: 0, root: false })
  await one.enroll()
  await run(one, { kind: 'abort', cut: 0, root: false })
  one.pass(51)
  await one.restart()
  t.match((await rolloverStatus(one.service.deps)).rollover, { state: 'cut-over', abortedAt: null })
  await one.enroll()
})

t.test('when every CA has ended nothing is issued, and the day before leads out', async (t) => {
  t.testdir({})
  const one = await planeOf(t, 'over')
  one.pass(199)
  await one.enroll()
  one.pass(1)
  await t.rejects(one.enroll(), {
    code: 'clock_wrong',
    message: /device CA: it ended at .*muster ca rollover/,
  })
  const { devices } = await one.service.deps.registry.listDevices({ limit: 10, now: one.service.deps.now() })
  t.strictSame(
    devices.map(({ id }) => id),
    ['d1'],
    'no certificate that has ended already is on record',
  )
  await t.rejects(one.restart(), { code: 'clock_wrong', message: /When the CAs have ended/ })

  one.pass(-1)
  await t.rejects(
    one.start(),
    { code: 'clock_wrong', message: /--clock-is-right/ },
    'it looks like a clock that is late',
  )
  await one.start({ clockIsRight: true })
  await run(one, { kind: 'start', cut: 0, root: false })
  one.pass(1)
  await one.restart()
  t.match((await rolloverStatus(one.service.deps)).rollover, { state: 'cut-over' })
  await one.enroll()
})
