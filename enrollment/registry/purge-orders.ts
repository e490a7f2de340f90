import type { Change, PurgeRecord, Scope } from '#shared/feed'
import type { Sqlite } from '#shared/sqlite'
import { IN_FORCE } from './holds.ts'
import type { PlanRow } from './plan-rows.ts'
import type { Registry } from './registry.ts'
import type { Store } from './store.ts'

interface PurgeRow {
  readonly scope_kind: Scope['kind']
  readonly scope_id: string
  readonly retained: 0 | 1
  readonly epoch: string
  readonly position: number
  readonly at: number
  readonly plan: string
  readonly spread: string
}
type NewPurge = Omit<PurgeRow, 'spread'>

/** Members of a plan, or rows, that are read at once. */
const PAGE = 1_000

/** Of one scope the newest order counts, and one that takes more makes an older one that takes less needless. */
function prepareOrder(db: Sqlite): (row: NewPurge) => void {
  const put = db.prepare<[NewPurge]>(
    `INSERT INTO purges (scope_kind, scope_id, retained, epoch, position, at, plan)
     VALUES (@scope_kind, @scope_id, @retained, @epoch, @position, @at, @plan)
     ON CONFLICT DO UPDATE SET epoch = excluded.epoch, position = excluded.position, at = excluded.at, plan = excluded.plan
     WHERE excluded.position > position`,
  )
  const dropLesser = db.prepare<[NewPurge]>(
    `DELETE FROM purges WHERE scope_kind = @scope_kind AND scope_id = @scope_id AND retained < @retained
     AND position <= @position`,
  )
  return (row) => {
    put.run(row)
    dropLesser.run(row)
  }
}

/** What was ordered to be forgotten, for brokers that miss both the hold and its end: one row for each scope, not for each device. */
export function openPurgeOrders(db: Sqlite, epoch: string) {
  const order = prepareOrder(db)
  const next = db.prepare<[], number>('SELECT COALESCE(MAX(position), 0) + 1 FROM changes').pluck()
  return {
    /** Called by the intent whose only change puts the hold in force. */
    order({ id, scope_kind, scope_id, purge_retained }: PlanRow, now: number): void {
      const position = next.get() as number // MAX gives a row
      order({ scope_kind, scope_id, retained: purge_retained, epoch, position, at: now, plan: id })
    },
  }
}
export type PurgeOrders = ReturnType<typeof openPurgeOrders>

/** Of a plan that is in force brokers are told the hold, which says the same. */
const OVER = `NOT EXISTS (SELECT 1 FROM plans h WHERE h.id = p.plan AND h.${IN_FORCE})`

const MEMBERS = `SELECT device FROM plan_members WHERE plan = ? AND device > ? ORDER BY device LIMIT ?`

/** The orders of plans that are over, for a snapshot. */
export function* purgeOrders(db: Sqlite): Generator<readonly Change[], void> {
  const page = db.prepare<[number, string, string, number, number], PurgeRow>(
    `SELECT p.* FROM purges p WHERE (position, scope_kind, scope_id, retained) > (?, ?, ?, ?)
     ORDER BY position, scope_kind, scope_id, retained LIMIT ?`,
  )
  const inForce = db.prepare<[], string>(`SELECT id FROM plans WHERE ${IN_FORCE}`).pluck()
  const held = new Set(inForce.all())
  const members = db.prepare<[string, string, number], { device: string }>(MEMBERS)
  for (let rows = page.all(-1, '', '', 0, PAGE); rows.length > 0; ) {
    const over = rows.filter(({ plan }) => !held.has(plan))
    yield changesOf(over.filter(({ scope_kind }) => scope_kind !== 'plan'))
    for (const row of over.filter(({ scope_kind }) => scope_kind === 'plan')) {
      for (let after = row.spread, some = PAGE; some === PAGE; ) {
        const devices = members.all(row.scope_id, after, PAGE).map(({ device }) => device)
        if (devices.length > 0) yield [{ kind: 'purge', purge: recordOf(row, devices) }]
        some = devices.length
        after = devices.at(-1) ?? after
      }
    }
    const last = rows.at(-1)
    rows = last ? page.all(last.position, last.scope_kind, last.scope_id, last.retained, PAGE) : []
  }
}

/** Devices that were in one plan come in one change. */
function changesOf(rows: readonly PurgeRow[]): Change[] {
  const ofPlan = Map.groupBy(rows, (row) => (row.scope_kind === 'device' ? keyOf(row) : null))
  const records: PurgeRecord[] = []
  for (const [key, [first, ...others]] of ofPlan) {
    if (first === undefined) continue
    if (key === null) records.push(recordOf(first), ...others.map((row) => recordOf(row)))
    else if (others.length === 0) records.push(recordOf(first))
    else {
      const devices = [first, ...others].map(({ scope_id }) => scope_id)
      records.push(recordOf({ ...first, scope_kind: 'plan', scope_id: first.plan }, devices))
    }
  }
  return records.map((purge) => ({ kind: 'purge', purge }))
}

const keyOf = ({ position, plan, retained }: PurgeRow) => `${position} ${plan} ${retained}`

function recordOf(row: PurgeRow, devices?: string[]): PurgeRecord {
  const { epoch, position, at, retained } = row
  const scope = { kind: row.scope_kind, id: row.scope_id }
  return { scope, ...(devices ? { devices } : {}), epoch, position, at, retained: retained === 1 }
}

/**
 * Lists of devices that are over are spread to the devices in slices, so that of one that was in many lists the newest
 * counts alone: however many lists there were, a snapshot tells of a device at most twice.
 */
export function openPurgeSpreading({ store }: { store: Store }): Pick<Registry, 'spreadPurges'> {
  const { db } = store
  const order = prepareOrder(db)
  const first = db.prepare<[], PurgeRow>(
    `SELECT p.* FROM purges p WHERE p.scope_kind = 'plan' AND ${OVER} LIMIT 1`,
  )
  const members = db.prepare<[string, string, number], { device: string }>(MEMBERS)
  const note = db.prepare<[string, string]>(
    `UPDATE purges SET spread = ? WHERE scope_kind = 'plan' AND scope_id = ?`,
  )
  const drop = db.prepare<[string]>(`DELETE FROM purges WHERE scope_kind = 'plan' AND scope_id = ?`)
  return {
    async spreadPurges(limit, act) {
      if ((await store.read(() => first.get())) === undefined) return false
      return store.write(act, () => {
        const plan = first.get()
        if (plan === undefined) return false
        const { spread, scope_id, scope_kind: _, ...row } = plan
        const devices = members.all(scope_id, spread, limit).map(({ device }) => device)
        for (const device of devices) order({ ...row, scope_kind: 'device', scope_id: device })
        if (devices.length < limit) drop.run(scope_id)
        else note.run(devices.at(-1) ?? spread, scope_id)
        return true
      })
    },
  }
}
