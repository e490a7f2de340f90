import { MusterError } from '#shared/errors'
import type { Scope } from '#shared/feed'
import type { Sqlite } from '#shared/sqlite'

export interface ActiveHold {
  readonly id: string
  readonly scope: Scope
  readonly reason: string
  readonly since: number
}

/** Everything that a hold can lie on; null for what is not known or does not apply. */
export interface Holdable {
  readonly device: string | null
  readonly batch: string | null
  readonly fleet: string | null
  readonly issuer: string | null
}

interface HoldRow {
  readonly id: string
  readonly scope_kind: Scope['kind']
  readonly scope_id: string
  readonly reason: string
  readonly applied_at: number
}

/** A plan is a hold in force in exactly these states; the text is that of the partial index. */
export const IN_FORCE = `state IN ('applied', 'finalising')`

const onScope = (kind: string) =>
  `SELECT row FROM plans WHERE ${IN_FORCE} AND scope_kind = '${kind}' AND scope_id = @${kind}`

/** Finds the holds in force on a device and all that it belongs to, the oldest first. */
export function openHolds(db: Sqlite) {
  const select = db.prepare<[Holdable], HoldRow>(
    `SELECT id, scope_kind, scope_id, reason, applied_at FROM plans WHERE row IN (
       ${onScope('device')} UNION ALL ${onScope('batch')} UNION ALL ${onScope('fleet')} UNION ALL ${onScope('issuer')}
       UNION ALL SELECT p.row FROM plan_members m JOIN plans p ON p.id = m.plan
         WHERE m.device = @device AND p.${IN_FORCE} AND p.scope_kind = 'plan'
     ) ORDER BY applied_at, row`,
  )
  const on = (subject: Holdable): ActiveHold[] => select.all(pick(subject)).map(activeHold)

  return {
    on,
    /** @throws MusterError held, with the oldest hold as evidence */
    refuseHeld(subject: Holdable, what: string): void {
      const [hold] = on(subject)
      if (hold === undefined) return
      throw new MusterError('held', `Cannot issue to "${what}": it is under the hold ${hold.id}`, {
        evidence: { hold: hold.id, scope: `${hold.scope.kind} ${hold.scope.id}` },
      })
    },
  }
}
export type Holds = ReturnType<typeof openHolds>

/** A statement takes exactly the names that it uses. */
function pick({ device, batch, fleet, issuer }: Holdable): Holdable {
  return { device, batch, fleet, issuer }
}

function activeHold(row: HoldRow): ActiveHold {
  return {
    id: row.id,
    scope: { kind: row.scope_kind, id: row.scope_id },
    reason: row.reason,
    since: row.applied_at,
  }
}
