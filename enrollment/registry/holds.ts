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
  readonly row: number
  readonly id: string
  readonly scope_kind: Scope['kind']
  readonly scope_id: string
  readonly reason: string
  readonly applied_at: number
}

/** A plan is a hold in force in exactly these states; the text is that of the partial index. */
export const IN_FORCE = `state IN ('applied', 'finalising')`

const COLUMNS = 'p.row, p.id, p.scope_kind, p.scope_id, p.reason, p.applied_at'

/**
 * Finds the holds in force on a device and all that it belongs to, the oldest first. Several small look-ups by index
 * take a fifth of the time of one query over all kinds of scope, and most of the time no hold is in force at all.
 */
export function openHolds(db: Sqlite) {
  // the partial index holds nothing else; by itself SQLite looks for each state in the index of all plans
  const any = db.prepare<[], unknown>(`SELECT 1 FROM plans INDEXED BY plans_scope WHERE ${IN_FORCE} LIMIT 1`)
  const onScope = db.prepare<[string, string], HoldRow>(
    `SELECT ${COLUMNS} FROM plans p WHERE p.${IN_FORCE} AND p.scope_kind = ? AND p.scope_id = ?`,
  )
  const onMember = db.prepare<[string], HoldRow>(
    `SELECT ${COLUMNS} FROM plan_members m CROSS JOIN plans p ON p.id = m.plan
     WHERE m.device = ? AND p.${IN_FORCE}`,
  )

  function on({ device, batch, fleet, issuer }: Holdable): ActiveHold[] {
    if (any.get() === undefined) return []
    const scopes = Object.entries({ device, batch, fleet, issuer })
    const rows = scopes.flatMap(([kind, id]) => (id === null ? [] : onScope.all(kind, id)))
    if (device !== null) rows.push(...onMember.all(device))
    return rows.sort((a, b) => a.applied_at - b.applied_at || a.row - b.row).map(activeHold)
  }

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

function activeHold(row: HoldRow): ActiveHold {
  return {
    id: row.id,
    scope: { kind: row.scope_kind, id: row.scope_id },
    reason: row.reason,
    since: row.applied_at,
  }
}
