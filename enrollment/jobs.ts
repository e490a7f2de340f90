import type { Deps } from './deps.ts'
import { Job } from './job.ts'
import { finaliseDue, spreadPurges } from './plans.ts'
import { followEnds } from './rollover.ts'
import { paceDue } from './rotations.ts'
import { watchClock } from './signing-clock.ts'
import { openAlarms } from './trust.ts'

/** Certificates superseded in one commit. */
const SUPERSEDE_SLICE = 1_000
const SECOND_MS = 1_000
const HOUR_MS = 3_600_000

/** What follows from time: finalising, superseding, the CRL, the plane's own certificates. Returns how to stop. */
export function startJobs(deps: Deps, own: { renewOwn(): Promise<void> }): () => Promise<void> {
  const { log, registry } = deps
  const isClockRight = watchClock(deps)
  const finalising = new Job({
    name: 'finalise',
    everyMs: SECOND_MS,
    log,
    run: async (signal) => {
      if (!isClockRight()) return
      if (await followEnds(deps)) log.warn('the CAs that signed have ended: others sign from now on')
      await finaliseDue(deps, signal)
      await deps.manufacturers.refresh()
      await deps.revocationLists.refresh(deps.now())
      await spreadPurges(deps, signal)
    },
  })
  const superseding = new Job({
    name: 'supersede',
    everyMs: 5 * SECOND_MS,
    log,
    run: async (signal) => {
      if (!isClockRight()) return
      for (let more = true; more && !signal.aborted; ) {
        more = (await registry.supersedeDue(deps.now(), SUPERSEDE_SLICE)) === SUPERSEDE_SLICE
      }
    },
  })
  const alarm = openAlarms(deps)
  const renewing = new Job({
    name: 'own certificates',
    everyMs: HOUR_MS,
    log,
    run: async () => {
      alarm()
      await own.renewOwn()
    },
  })
  alarm()
  const pacing = new Job({
    name: 'rotations',
    everyMs: SECOND_MS,
    log,
    run: (signal) => paceDue(deps, signal),
  })
  finalising.wake()
  superseding.wake()
  return async () => {
    await Promise.all([finalising.stop(), superseding.stop(), pacing.stop(), renewing.stop()])
  }
}
