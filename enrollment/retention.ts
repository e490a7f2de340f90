import { setImmediate } from 'node:timers/promises'
import { signAuditHead } from './audit-head.ts'
import type { Retention } from './config.ts'
import type { Deps } from './deps.ts'
import { Job } from './job.ts'
import { watchClock } from './signing-clock.ts'

/** Rows looked at in one commit. */
const SLICE = 1_000
const EVERY_MS = 3_600_000
/** What is newer than the signed head could be cut off unseen, ms. */
const HEAD_EVERY_MS = 30_000

type PruneDeps = Pick<Deps, 'registry' | 'now' | 'log'>

export interface Pruned {
  readonly log: number
  readonly certificates: number
  readonly segments: number
}

/** Ends what has been kept for long enough; other work gets its turn after every slice. */
export async function pruneAll(
  { registry, now }: PruneDeps,
  of: { retention: Retention; pruneJournal(before: number): number; signal: AbortSignal },
): Promise<Pruned> {
  const { retention, signal } = of
  const at = now()
  const act = { now: at, by: 'plane' }
  const before = {
    changesBefore: at - retention.changesMs,
    auditBefore: at - Math.max(retention.auditMs, retention.changesMs),
    limit: SLICE,
  }
  let log = 0
  for (let pruned = -1; pruned !== 0 && !signal.aborted; log += pruned) {
    pruned = await registry.pruneLogs(before, act)
    await setImmediate()
  }
  let certificates = 0
  for (let from: number | null = 0; from !== null && !signal.aborted; ) {
    const slice = await registry.pruneCertificates(
      { from, expiredBefore: at - retention.expiredMs, limit: SLICE },
      act,
    )
    from = slice.next
    certificates += slice.pruned
    await setImmediate()
  }
  return { log, certificates, segments: of.pruneJournal(at - retention.journalMs) }
}

/** Prunes every hour, and signs the newest audit entry twice a minute and at the end. Returns how to stop. */
export async function startRetention(
  deps: Deps,
  of: { retention: Retention; auditHead: string; pruneJournal(before: number): number },
): Promise<() => Promise<void>> {
  const sign = () => signAuditHead(deps, of.auditHead)
  await sign()
  const isClockRight = watchClock(deps)
  const pruning = new Job({
    name: 'retention',
    everyMs: EVERY_MS,
    log: deps.log,
    run: async (signal) => {
      if (!isClockRight()) return
      const pruned = await pruneAll(deps, { ...of, signal })
      if (pruned.log + pruned.certificates + pruned.segments > 0) deps.log.info(pruned, 'pruned')
    },
  })
  const signing = new Job({ name: 'audit head', everyMs: HEAD_EVERY_MS, log: deps.log, run: sign })
  pruning.wake()
  return async () => {
    await Promise.all([pruning.stop(), signing.stop()])
    await sign()
  }
}
