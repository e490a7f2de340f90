import { MusterError } from '#shared/errors'
import type { Scope } from '#shared/feed'
import type { Sqlite } from '#shared/sqlite'
import type { Intent } from './ledger.ts'
import { type LongReadParts, readInSlices } from './long-reads.ts'
import { countScope, type PlanCounts, prepareMemberCounts, together } from './plan-counts.ts'
import { holdRecord, type PlanRow, planView, type StoredPlanState } from './plan-rows.ts'
import type { PlanScopes } from './plan-scope.ts'
import type { PlanParts } from './plans.ts'
import type { NewPlan, Registry } from './registry.ts'
import { slices } from './slices.ts'

type Statements = ReturnType<typeof prepare>

interface NewRow {
  readonly id: string
  readonly action: string
  readonly scope_kind: Scope['kind']
  readonly scope_id: string
  readonly reason: string
  readonly undo_ms: number
  readonly purge_retained: 0 | 1
  readonly state: StoredPlanState
  readonly counts: string
  readonly by: string
  readonly created_at: number
  readonly expires_at: number
}

function prepare(db: Sqlite) {
  return {
    insert: db.prepare<[NewRow]>(
      `INSERT INTO plans
         (id, action, scope_kind, scope_id, reason, undo_ms, purge_retained, state, counts, by, created_at, expires_at)
       VALUES (@id, @action, @scope_kind, @scope_id, @reason, @undo_ms, @purge_retained, @state, @counts, @by, @created_at, @expires_at)`,
    ),
    freeze: db.prepare<[string, string]>('INSERT INTO plan_members (plan, device) VALUES (?, ?)'),
    count: prepareMemberCounts(db),
    isKnown: db.prepare<[string], unknown>('SELECT 1 FROM devices WHERE id = ?'),
    propose: db.prepare<[string, string]>(`UPDATE plans SET state = 'proposed', counts = ? WHERE id = ?`),
    outdated: db.prepare<[number], PlanRow>(
      `SELECT * FROM plans WHERE state IN ('proposed', 'freezing') AND expires_at <= ?`,
    ),
  }
}

interface ProposalParts extends PlanParts, LongReadParts {
  readonly scopes: PlanScopes
}

interface Proposing extends ProposalParts {
  readonly statements: Statements
  readonly plan: NewPlan
  readonly scope: Scope
}

/** What an operator's change would do, counted before it is done. */
export function openProposals(parts: ProposalParts): Pick<Registry, 'proposePlan'> {
  const statements = prepare(parts.store.db)
  return {
    async proposePlan(plan) {
      await expireOutdated(parts, { statements, now: plan.now })
      if ('devices' in plan.target) {
        await proposeForDevices(
          { ...parts, statements, plan, scope: { kind: 'plan', id: plan.id } },
          plan.target.devices,
        )
      } else {
        const { scope: kind, id } = plan.target
        const counts = await readInSlices(parts, (db, rows) =>
          countScope(db, { scope: kind, id, now: plan.now, rows }),
        )
        await proposeForScope({ ...parts, statements, plan, scope: { kind, id } }, counts)
      }
      return parts.store.read(() => planView(parts.plans.require(plan.id), { now: plan.now, receipt: null }))
    },
  }
}

/** Counted just before: whatever comes in between is in the scope, and stopped, all the same. */
async function proposeForScope(proposing: Proposing, counts: PlanCounts): Promise<void> {
  const { store, scopes, statements, plan, scope } = proposing
  await store.write({ ...plan, cannotWait: true }, (log) => {
    scopes.require(scope)
    statements.insert.run(newRow(proposing))
    propose(proposing, { counts, log })
  })
}

/**
 * In slices, so that no commit is long: until the last one nobody is shown the plan, and one that is interrupted
 * before that expires like any other.
 * @throws MusterError not_found
 */
async function proposeForDevices(proposing: Proposing, devices: readonly string[]): Promise<void> {
  const { store, statements, plan } = proposing
  const members = [...new Set(devices)]
  for await (const { items } of slices(members)) await store.read(() => refuseUnknown(statements, items))
  let counted: PlanCounts | null = null
  for await (const { items, isFirst, isLast } of slices(members)) {
    const before: PlanCounts | null = counted
    counted = await store.write({ ...plan, cannotWait: true }, (log): PlanCounts => {
      const own = statements.count(items, plan.now)
      const counts = before === null ? own : together(before, own)
      if (isFirst) statements.insert.run(newRow(proposing))
      for (const device of items) statements.freeze.run(plan.id, device)
      log.change({ kind: 'members', hold: plan.id, devices: [...items] })
      if (isLast) propose(proposing, { counts, log })
      else log.audit({ action: 'plan.freeze', subject: `plan:${plan.id}` })
      return counts
    })
  }
}

function refuseUnknown(statements: Statements, devices: readonly string[]): void {
  for (const device of devices) {
    if (statements.isKnown.get(device) !== undefined) continue
    throw new MusterError('not_found', `Cannot plan for the device "${device}": it is not known`)
  }
}

function propose(
  { statements, plan, scope }: Proposing,
  { counts, log }: { counts: PlanCounts; log: Intent },
): void {
  statements.propose.run(JSON.stringify(counts), plan.id)
  log.audit({ action: `plan.propose.${plan.action}`, subject: `plan:${plan.id} ${scope.kind}:${scope.id}` })
}

/** A compromised key has no time in which somebody might want it back. */
function newRow({ plan, scope }: Proposing): NewRow {
  return {
    id: plan.id,
    action: plan.action,
    scope_kind: scope.kind,
    scope_id: scope.id,
    reason: plan.reason,
    undo_ms: plan.reason === 'keyCompromise' ? 0 : plan.undoMs,
    purge_retained: plan.purgeRetained ? 1 : 0,
    state: 'freezing',
    counts: '{}',
    by: plan.by,
    created_at: plan.now,
    expires_at: plan.expiresAt,
  }
}

/** Plans that nobody applied in time end, so that brokers forget their members. */
async function expireOutdated(
  { store, plans }: ProposalParts,
  { statements, now }: { statements: Statements; now: number },
): Promise<void> {
  await store.write({ now, by: 'plane', cannotWait: true }, (log) => {
    const outdated = statements.outdated.all(now)
    for (const plan of outdated) {
      plans.setState(plan.id, 'expired')
      if (plan.scope_kind === 'plan') log.change({ kind: 'hold', hold: holdRecord(plan, 'ended') })
    }
    if (outdated.length > 0)
      log.audit({ action: 'plan.expire', subject: outdated.map(({ id }) => `plan:${id}`).join(' ') })
  })
}
