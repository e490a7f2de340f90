import type { Deps } from './deps.ts'
import { applyPlan, proposePlan } from './plans.ts'

/** An alarm older than this leads to no hold any more, ms: whoever turns quarantine on means what comes. */
const DUE_MS = 10 * 60_000

/**
 * Logs and audits alarms that brokers have reported, and holds the device where its fleet says so: by a plan like an
 * operator's, which an operator can undo. Safe to repeat; what was interrupted is done the next time.
 */
export async function attendClones(deps: Deps): Promise<void> {
  for (const { device, isTold, mayHold, ...seen } of await deps.registry.openClones(deps.now() - DUE_MS)) {
    if (!isTold) {
      deps.log.warn({ device, ...seen }, 'clone alarm: one identity at two addresses')
      await deps.registry.tellClone(device, { now: deps.now(), by: 'plane' })
    }
    if (mayHold) await quarantine(deps, device)
  }
}

async function quarantine(deps: Deps, device: string): Promise<void> {
  const by = 'plane'
  const plan = await proposePlan(deps, { action: 'hold', devices: [device], by })
  await applyPlan(deps, { id: plan.id, devices: plan.counts.devices, by })
  await deps.registry.cloneHeld(device, plan.id, { now: deps.now(), by })
  deps.log.warn({ device, plan: plan.id }, 'device is held: quarantine of its fleet')
}
