import type { PlanRequest, PlanView, Receipt } from '#shared/api'
import { isMusterError, MusterError } from '#shared/errors'
import { isDeviceId } from '#shared/identity/device'
import { isCarriedOut } from '#shared/receipt'
import type { Deps } from './deps.ts'
import type { Act, Actor, NewPlan } from './registry/registry.ts'

/** How long a revocation can be undone unless the operator says otherwise, ms. */
export const UNDO_MS = 15 * 60_000
/** A proposal that nobody applied by then has expired, ms: its counts are out of date. */
const PROPOSAL_LIFE_MS = 3_600_000
/** Certificates revoked in one commit: a slice blocks the event loop for a few milliseconds at most. */
const SLICE = 500
/** A long poll looks again this often, ms: a receipt may be completed through another node. */
const LOOK_AGAIN_MS = 1_000

/** Counts what would be stopped; nothing happens before the plan is applied. @throws MusterError invalid_request, not_found */
export async function proposePlan(deps: Deps, request: PlanRequest & { by: Actor }): Promise<PlanView> {
  const now = deps.now()
  const reason = request.reason ?? 'unspecified'
  return deps.registry.proposePlan({
    id: `p-${deps.random(6).toString('hex')}`,
    action: request.action,
    target: targetOf(request),
    reason,
    undoMs: undoMsOf(request),
    purgeRetained: request.purgeRetained ?? false,
    expiresAt: now + PROPOSAL_LIFE_MS,
    now,
    by: request.by,
  })
}

/** Puts the hold in force. A revocation without undo time is finalised by the next run of the job, off the caller's path. */
export async function applyPlan(
  deps: Deps,
  request: { id: string; devices: number; by: Actor },
): Promise<PlanView> {
  const act: Act = { now: deps.now(), by: request.by }
  return deps.registry.applyPlan(request.id, request.devices, act)
}

export async function undoPlan(deps: Deps, request: { id: string; by: Actor }): Promise<PlanView> {
  return deps.registry.undoPlan(request.id, { now: deps.now(), by: request.by })
}

/** Waits until every broker has applied the plan, at most `waitMs`; then says how far they are. @throws MusterError not_found */
export async function awaitReceipt(
  deps: Deps,
  request: { id: string; waitMs: number; signal: AbortSignal },
): Promise<Receipt> {
  const deadline = performance.now() + request.waitMs
  const reports = deps.reported.listen()
  try {
    for (;;) {
      const receipt = await deps.registry.receipt(request.id)
      const leftMs = deadline - performance.now()
      if (leftMs <= 0 || request.signal.aborted || isComplete(receipt)) return receipt
      await reports.wait({ ms: Math.min(leftMs, LOOK_AGAIN_MS), signal: request.signal })
    }
  } finally {
    reports.stop()
  }
}

/** Turns every hold whose undo time is over into revocations, slice by slice; resumes what was interrupted. */
export async function finaliseDue(deps: Deps, signal: AbortSignal): Promise<void> {
  for (const id of await deps.registry.duePlans(deps.now())) {
    await finalise(deps, id, signal)
    if (signal.aborted) return
  }
}

/** Spreads the purges of lists that are over to their devices, slice by slice; resumes what was interrupted. */
export async function spreadPurges(deps: Deps, signal: AbortSignal): Promise<void> {
  while (!signal.aborted && (await deps.registry.spreadPurges(SLICE, { now: deps.now(), by: 'plane' }))) {
    await new Promise(setImmediate) // requests come between two slices
  }
}

async function finalise(deps: Deps, id: string, signal: AbortSignal): Promise<void> {
  const act = (): Act => ({ now: deps.now(), by: 'plane' })
  try {
    await deps.registry.beginFinalising(id, act())
  } catch (error) {
    if (isMusterError(error, 'conflict', 'undo_over')) return // undone since it was listed
    throw error
  }
  for (let done = false; !done && !signal.aborted; ) {
    const slice = await deps.registry.finaliseSlice(id, SLICE, act())
    done = slice.done
    await new Promise(setImmediate) // requests come between two slices
  }
  deps.log.info({ plan: id }, 'plan is final')
}

function isComplete(receipt: Receipt): boolean {
  return receipt.brokers.every(isCarriedOut)
}

function targetOf(request: PlanRequest): NewPlan['target'] {
  const { scope, devices } = request
  if (scope && !devices) return { scope: scope.kind, id: scope.id }
  if (devices && !scope) return { devices: [...new Set(devices)].filter(isDeviceId) }
  throw new MusterError(
    'invalid_request',
    'Cannot propose the plan: give either a scope or a list of devices',
  )
}

/** A compromised key has no undo time: whoever has it would use it again. */
function undoMsOf(request: PlanRequest): number {
  if (request.action === 'hold' || request.reason === 'keyCompromise') return 0
  return request.undoMs ?? UNDO_MS
}
