import type { PlanState, PlanView, Reason, Receipt } from '#shared/api'
import { MusterError } from '#shared/errors'
import type { HoldRecord, Scope } from '#shared/feed'
import type { Sqlite } from '#shared/sqlite'

/** `freezing`: its members are being written in slices; nobody is shown it. */
export type StoredPlanState = PlanState | 'freezing'

export interface PlanRow {
  readonly id: string
  readonly action: 'hold' | 'revoke'
  readonly scope_kind: Scope['kind']
  readonly scope_id: string
  readonly reason: Reason
  readonly undo_ms: number
  readonly purge_retained: 0 | 1
  readonly state: StoredPlanState
  readonly counts: string
  readonly by: string
  readonly created_at: number
  readonly expires_at: number
  readonly applied_at: number | null
  readonly finalise_at: number | null
  readonly progress: string
}

export function planScope(plan: PlanRow): Scope {
  return { kind: plan.scope_kind, id: plan.scope_id }
}

/** Of a plan that is over only what was meant for good still counts: nothing is purged for one that was undone. */
export function holdRecord(plan: PlanRow, state: HoldRecord['state'], isFinal = false): HoldRecord {
  const purge = plan.purge_retained === 1 && (state === 'active' || isFinal)
  return { id: plan.id, scope: planScope(plan), state, ...(purge ? { purgeRetained: true } : {}) }
}

/** Finds a plan by its id, and moves it from state to state. */
export function openPlanRows(db: Sqlite) {
  const find = db.prepare<[string], PlanRow>('SELECT * FROM plans WHERE id = ?')
  const setState = db.prepare<[StoredPlanState, string]>('UPDATE plans SET state = ? WHERE id = ?')
  return {
    /** @throws MusterError not_found */
    require(id: string): PlanRow {
      const row = find.get(id)
      if (row === undefined || row.state === 'freezing') {
        throw new MusterError('not_found', `Cannot find the plan "${id}"`)
      }
      return row
    },
    setState: (id: string, state: StoredPlanState) => setState.run(state, id),
  }
}
export type PlanRows = ReturnType<typeof openPlanRows>

/** A proposed plan whose time is over counts as expired before a row says so. */
export function stateAt(plan: PlanRow, now: number): PlanState {
  if (plan.state === 'freezing') throw new Error(`plan ${plan.id} is not complete`) // require() hides these
  return plan.state === 'proposed' && plan.expires_at <= now ? 'expired' : plan.state
}

export function planView(plan: PlanRow, at: { now: number; receipt: Receipt | null }): PlanView {
  return {
    id: plan.id,
    action: plan.action,
    scope: planScope(plan),
    reason: plan.reason,
    undoMs: plan.undo_ms,
    purgeRetained: plan.purge_retained === 1,
    state: stateAt(plan, at.now),
    counts: JSON.parse(plan.counts) as PlanView['counts'], // written by propose only
    by: plan.by,
    createdAt: plan.created_at,
    appliedAt: plan.applied_at,
    finaliseAt: plan.finalise_at,
    receipt: plan.applied_at === null ? null : at.receipt,
  }
}
