import t from 'tap'
import { openLog } from '#shared/log'
import { Bell } from '../../enrollment/bell.ts'
import { Job } from '../../enrollment/job.ts'
import { enrollDevice, startEnrollment } from '../support/enrollment.ts'

const HOUR_MS = 3_600_000
const log = openLog('test', 'silent')

t.test('a job', async (t) => {
  t.test('runs one at a time, and once more when it was woken meanwhile', async (t) => {
    const gate = Promise.withResolvers<void>()
    const twice = Promise.withResolvers<void>()
    let running = 0
    let runs = 0
    const run = async () => {
      running += 1
      t.equal(running, 1)
      runs += 1
      if (runs === 1) await gate.promise
      if (runs === 2) twice.resolve()
      running -= 1
    }
    const job = new Job({ name: 'x', everyMs: 60_000, log, run })
    job.wake()
    job.wake()
    job.wake()
    gate.resolve()
    await twice.promise
    await job.stop()
    t.equal(runs, 2)
    job.wake()
    t.equal(runs, 2, 'a stopped job stays stopped')
  })

  t.test('that fails is tried again', async (t) => {
    const again = Promise.withResolvers<void>()
    let runs = 0
    const run = async () => {
      runs += 1
      if (runs > 1) again.resolve()
      throw new Error('fault')
    }
    const job = new Job({ name: 'x', everyMs: 5, log, run })
    job.wake()
    const keepAlive = setInterval(() => {}, 1_000)
    await again.promise
    clearInterval(keepAlive)
    await job.stop()
    t.ok(runs > 1)
  })

  t.test('is told to end when it is stopped', async (t) => {
    const started = Promise.withResolvers<void>()
    const run = (signal: AbortSignal) =>
      new Promise<void>((resolve) => {
        signal.addEventListener('abort', () => resolve())
        started.resolve()
      })
    const job = new Job({ name: 'x', everyMs: 60_000, log, run })
    job.wake()
    await started.promise
    await t.resolves(job.stop())
  })
})

t.test('a bell', async (t) => {
  const bell = new Bell()
  const { signal } = new AbortController()
  const listener = bell.listen()
  bell.ring()
  await t.resolves(listener.wait({ ms: 60_000, signal }), 'a ring between two waits is not lost')
  const waiting = listener.wait({ ms: 60_000, signal })
  bell.ring()
  await t.resolves(waiting)
  await t.resolves(listener.wait({ ms: 1, signal }), 'it waits no longer than it was told')
  await t.resolves(listener.wait({ ms: 60_000, signal: AbortSignal.abort() }))
  const stopping = new AbortController()
  const last = listener.wait({ ms: 60_000, signal: stopping.signal })
  stopping.abort()
  await t.resolves(last)
  listener.stop()
})

t.test('a revocation becomes final when its undo time is over, and not before', async (t) => {
  const clock = { offsetMs: 0 }
  const service = await startEnrollment(t, { clock })
  const { admin, deps } = service
  await enrollDevice(service, { id: 'fan-1' })
  await enrollDevice(service, { id: 'fan-2' })
  const scope = (id: string) => ({ kind: 'device', id }) as const
  const kept = await admin.proposePlan({ action: 'revoke', scope: scope('fan-1'), undoMs: HOUR_MS })
  const undone = await admin.proposePlan({ action: 'revoke', scope: scope('fan-2'), undoMs: HOUR_MS })
  for (const { id } of [kept, undone]) await admin.applyPlan(id, 1)
  t.match(await admin.explain('fan-1'), { code: 'R-HELD' })
  await admin.undoPlan(undone.id)
  clock.offsetMs = HOUR_MS + 60_000
  const changes = deps.changed.listen()
  t.teardown(() => changes.stop())
  const signal = AbortSignal.timeout(10_000)
  while ((await admin.showPlan(kept.id)).state !== 'final') {
    signal.throwIfAborted()
    await changes.wait({ ms: 100, signal })
  }
  t.match(await admin.explain('fan-1'), { code: 'R-REVOKED' })
  t.match(await admin.explain('fan-2'), { verdict: 'admitted' })
  t.match(await admin.showPlan(undone.id), { state: 'undone' })
})
