import { MusterError } from '#shared/errors'
import type { Sqlite } from '#shared/sqlite'
import { prepareAddCompromised } from './compromised-keys.ts'
import type { Intent } from './ledger.ts'
import { holdRecord, type PlanRow, planScope } from './plan-rows.ts'
import type { PlanScopes } from './plan-scope.ts'
import type { PlanParts } from './plans.ts'
import type { Finalised, Registry } from './registry.ts'
import { type CertificateRow, certificateRecord } from './rows.ts'

type Statements = ReturnType<typeof prepare>

function prepare(db: Sqlite) {
  return {
    due: db.prepare<[number], { id: string }>(
      `SELECT id FROM plans WHERE state = 'finalising' OR (state = 'applied' AND finalise_at <= ?) ORDER BY row`,
    ),
    compromise: prepareAddCompromised(db),
    progress: db.prepare<[string, string]>('UPDATE plans SET progress = ? WHERE id = ?'),
    revoke: db.prepare<[number, string, number]>(
      `UPDATE certificates SET state = 'revoked', revoked_at = ?, reason = ? WHERE row = ?`,
    ),
    list: db.prepare<[string, string, number, string, number]>(
      'INSERT INTO revocations (issuer, serial, revoked_at, reason, not_after) VALUES (?, ?, ?, ?, ?)',
    ),
  }
}

export interface FinalisingParts extends PlanParts {
  readonly scopes: PlanScopes
}

/** How a hold whose undo time is over becomes revocations, which nothing takes back. */
export function openFinalising(
  parts: FinalisingParts,
): Pick<Registry, 'duePlans' | 'beginFinalising' | 'finaliseSlice'> {
  const { store, plans } = parts
  const statements = prepare(store.db)
  return {
    duePlans: (now) => store.read(() => statements.due.all(now).map(({ id }) => id)),
    beginFinalising: (id, act) =>
      store.write(act, (log) => begin(parts, { plan: plans.require(id), now: act.now, log })),
    finaliseSlice: (id, limit, act) =>
      store.write(act, (log) => finaliseSlice(parts, { statements, plan: plans.require(id), limit, log })),
  }
}

/** @throws MusterError conflict */
function begin(
  parts: FinalisingParts,
  { plan, now, log }: { plan: PlanRow; now: number; log: Intent },
): void {
  if (plan.state === 'finalising') return // it was interrupted; the slices go on
  if (plan.state !== 'applied' || plan.finalise_at === null || plan.finalise_at > now) {
    const why = plan.state === 'applied' ? 'it can still be undone, or is only a hold' : `it is ${plan.state}`
    throw new MusterError('conflict', `Cannot finalise the plan "${plan.id}": ${why}`)
  }
  parts.plans.setState(plan.id, 'finalising')
  parts.scopes.cancelTokens(planScope(plan), now)
  parts.scopes.withdrawApprovals(planScope(plan))
  log.audit({ action: 'plan.finalise', subject: `plan:${plan.id}` })
}

interface Slice {
  readonly statements: Statements
  readonly plan: PlanRow
  readonly limit: number
  readonly log: Intent
}

/** @throws MusterError conflict */
function finaliseSlice(parts: FinalisingParts, { statements, plan, limit, log }: Slice): Finalised {
  if (plan.state === 'final') return { done: true, revoked: 0 }
  if (plan.state !== 'finalising') {
    throw new MusterError('conflict', `Cannot finalise the plan "${plan.id}": it is ${plan.state}`)
  }
  const certificates = parts.scopes.slice(planScope(plan), { from: plan.progress, limit })
  for (const certificate of certificates) revoke(statements, { plan, certificate, log })
  const done = certificates.length < limit
  const last = certificates.at(-1)
  if (last !== undefined) statements.progress.run(String(last.key), plan.id)
  if (done) {
    parts.plans.setState(plan.id, 'final')
    log.change({ kind: 'hold', hold: holdRecord(plan, 'ended', true) })
  }
  log.audit({
    action: done ? 'plan.final' : 'plan.revoke',
    subject: `plan:${plan.id} certificates:${certificates.length}`,
  })
  return { done, revoked: certificates.length }
}

/** Dated at the hold's commit, because from then on the certificate was refused. */
function revoke(
  statements: Statements,
  { plan, certificate, log }: { plan: PlanRow; certificate: CertificateRow; log: Intent },
): void {
  if (plan.applied_at === null) throw new Error(`plan ${plan.id} was never applied`) // its state says that it was
  const { row, issuer, serial, not_after: notAfter } = certificate
  statements.revoke.run(plan.applied_at, plan.reason, row)
  statements.list.run(issuer, serial, plan.applied_at, plan.reason, notAfter)
  if (plan.reason === 'keyCompromise') {
    statements.compromise(certificate.spki, { source: 'revocation', now: plan.applied_at })
  }
  const record = certificateRecord({
    ...certificate,
    state: 'revoked',
    revoked_at: plan.applied_at,
    reason: plan.reason,
  })
  if (record !== null) log.change({ kind: 'certificate', certificate: record })
}
