import { MusterError } from '#shared/errors'
import type { Sqlite } from '#shared/sqlite'
import type { Intent } from './ledger.ts'
import { holdRecord, type PlanRow, type PlanRows, planView, stateAt } from './plan-rows.ts'
import type { PurgeOrders } from './purge-orders.ts'
import type { ReceiptBook } from './receipts.ts'
import type { Act, Registry } from './registry.ts'
import type { Store } from './store.ts'

type Statements = ReturnType<typeof prepare>

function prepare(db: Sqlite) {
  return {
    list: db.prepare<[], PlanRow>(`SELECT * FROM plans WHERE state <> 'freezing' ORDER BY row DESC`),
    apply: db.prepare<[number, number | null, string]>(
      `UPDATE plans SET state = 'applied', applied_at = ?, finalise_at = ? WHERE id = ?`,
    ),
  }
}

export interface PlanParts {
  readonly store: Store
  readonly plans: PlanRows
  readonly receipts: ReceiptBook
  readonly purges: PurgeOrders
}

type PlanIntents = Pick<Registry, 'applyPlan' | 'undoPlan' | 'listPlans' | 'showPlan'>

/** The life of a plan after it was proposed, up to the commit that makes it final (`finalising.ts`). */
export function openPlans(parts: PlanParts): PlanIntents {
  const { store, plans, receipts } = parts
  const statements = prepare(store.db)
  const show = (id: string, now: number) => planView(plans.require(id), { now, receipt: receipts.of(id) })

  return {
    applyPlan: (id, devices, act) =>
      store.write({ ...act, cannotWait: true }, (log) => {
        apply(parts, { statements, plan: plans.require(id), devices, act, log })
        return show(id, act.now)
      }),
    undoPlan: (id, act) =>
      store.write({ ...act, cannotWait: true }, (log) => {
        undo(parts, { plan: plans.require(id), now: act.now, log })
        return show(id, act.now)
      }),
    listPlans: (now) =>
      store.read(() => statements.list.all().map((plan) => planView(plan, { now, receipt: null }))),
    showPlan: (id, now) => store.read(() => show(id, now)),
  }
}

interface Applying {
  readonly statements: Statements
  readonly plan: PlanRow
  /** As the operator confirmed it. */
  readonly devices: number
  readonly act: Act
  readonly log: Intent
}

/** @throws MusterError conflict, count_mismatch */
function apply({ receipts, purges }: PlanParts, { statements, plan, devices, act, log }: Applying): void {
  const state = stateAt(plan, act.now)
  if (state === 'undone' || state === 'expired') {
    throw new MusterError('conflict', `Cannot apply the plan "${plan.id}": it is ${state}`)
  }
  const { counts } = planView(plan, { now: act.now, receipt: null })
  if (counts.devices !== devices) {
    throw new MusterError(
      'count_mismatch',
      `Cannot apply the plan "${plan.id}": it covers ${counts.devices} devices`,
      {
        evidence: { planned: counts.devices, confirmed: devices },
      },
    )
  }
  if (state !== 'proposed') return
  statements.apply.run(act.now, plan.action === 'revoke' ? act.now + plan.undo_ms : null, plan.id)
  receipts.open(plan.id)
  purges.order(plan, act.now)
  log.change({ kind: 'hold', hold: holdRecord(plan, 'active') })
  log.audit({ action: `plan.apply.${plan.action}`, subject: `plan:${plan.id}` })
}

/** @throws MusterError undo_over, conflict */
function undo({ plans }: PlanParts, { plan, now, log }: { plan: PlanRow; now: number; log: Intent }): void {
  const state = stateAt(plan, now)
  if (state === 'undone') return
  if (state === 'proposed' || state === 'expired') {
    throw new MusterError('conflict', `Cannot undo the plan "${plan.id}": it is ${state}`)
  }
  if (state !== 'applied' || (plan.finalise_at !== null && plan.finalise_at <= now)) {
    throw new MusterError('undo_over', `Cannot undo the plan "${plan.id}": the time for it is over`)
  }
  plans.setState(plan.id, 'undone')
  log.change({ kind: 'hold', hold: holdRecord(plan, 'ended') })
  log.audit({ action: 'plan.undo', subject: `plan:${plan.id}` })
}
