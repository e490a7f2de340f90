import { readFileSync, rmSync } from 'node:fs'
import { join } from 'node:path'
import t from 'tap'
import { openLog } from '#shared/log'
import { Bell } from '../../enrollment/bell.ts'
import { Job } from '../../enrollment/job.ts'
import type { RevokedEntry } from '../../enrollment/registry/registry.ts'
import { openRevocationList } from '../../enrollment/revocation-list.ts'
import { enrollDevice, startEnrollment } from '../support/enrollment.ts'
import { testAuthority } from '../support/pki.ts'

const HOUR_MS = 3_600_000
const log = openLog('test', 'silent')

t.test('the revocation list', async (t) => {
  const authority = await testAuthority()
  t.teardown(authority.remove)
  const directory = join(t.testdir(), 'crl')
  let mark = 0
  let entries: RevokedEntry[] = []
  const asked: number[] = []
  const registry = {
    revocationMark: async () => mark,
    revokedBy: async (_issuer: string, notExpiredAt: number) => {
      asked.push(notExpiredAt)
      return entries
    },
  }
  const open = () => openRevocationList({ registry, issuer: authority.device, directory })
  const start = Date.UTC(2026, 5, 1)
  const list = open()
  const numbers: number[] = []
  const refresh = async (now: number, at = list) => {
    await at.refresh(now)
    numbers.push(at.published?.number ?? 0)
  }

  t.test('is signed once, and again when something was revoked or half its life is over', async (t) => {
    await refresh(start)
    await refresh(start + 1_000)
    t.equal(numbers[1], numbers[0], 'nothing happened')
    mark = 1
    entries = [{ serial: '7f'.repeat(16), revokedAt: start, reason: 'keyCompromise' }]
    await refresh(start + 2_000)
    t.match(list.published, { entries: 1 })
    await refresh(start + 2_000 + 11 * HOUR_MS)
    t.equal(numbers[3], numbers[2])
    await refresh(start + 2_000 + 12 * HOUR_MS)
    t.ok((numbers[4] ?? 0) > (numbers[3] ?? 0))
    t.match(list.published, { nextUpdate: start + 2_000 + 36 * HOUR_MS })
  })

  t.test('asks for what expired since the last one, so that it appears once more', async (t) => {
    t.same(asked, [start - 24 * HOUR_MS, start, start + 2_000])
  })

  t.test('has numbers that rise over restarts, restores and the loss of the number', async (t) => {
    const now = start + 2_000 + 12 * HOUR_MS
    mark = 0 // a registry that was restored from a backup
    await refresh(now, open())
    await refresh(now, open())
    rmSync(directory, { recursive: true })
    await refresh(now + 5_000, open())
    const unique = [...new Set(numbers)]
    t.same(
      numbers.toSorted((a, b) => a - b),
      numbers,
    )
    t.equal(unique.length, 6)
  })

  t.test('lies on the disk as it is served', async (t) => {
    const published = list.published?.der
    await open().refresh(start + 30 * HOUR_MS)
    t.ok(published && readFileSync(join(directory, `${authority.device.id}.crl`)).length > 100)
  })
})

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
