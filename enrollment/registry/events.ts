import type { EventView } from '#shared/api'
import { MusterError } from '#shared/errors'
import type { Sqlite } from '#shared/sqlite'
import type { EventBounds, EventIntents } from './event-records.ts'
import type { Store } from './store.ts'

interface EventRow {
  readonly sequence: number
  readonly at: number
  readonly kind: EventView['kind']
  readonly scope: string
  readonly device_sequence: number | null
  readonly detail: string
}

interface DeviceScope {
  readonly row: number
  readonly fleet: string
  readonly batch: string | null
}

function prepare(db: Sqlite) {
  return {
    bounds: db.prepare<[], { oldest: number | null; newest: number | null }>(
      `SELECT (SELECT MIN(sequence) FROM events) AS oldest,
        (SELECT seq FROM sqlite_sequence WHERE name = 'events') AS newest`,
    ),
    after: db.prepare<[number, number], EventRow>(
      'SELECT * FROM events WHERE sequence > ? ORDER BY sequence LIMIT ?',
    ),
    scopeAfter: db.prepare<[string, number, number], EventRow>(
      'SELECT * FROM events WHERE scope = ? AND sequence > ? ORDER BY sequence LIMIT ?',
    ),
    scopeBefore: db.prepare<[string, number, number], EventRow>(
      'SELECT * FROM events WHERE scope = ? AND sequence < ? ORDER BY sequence DESC LIMIT ?',
    ),
    device: db.prepare<[string], DeviceScope>('SELECT row, fleet, batch FROM devices WHERE id = ?'),
    issuers: db.prepare<[number], { issuer: string }>(
      'SELECT DISTINCT issuer FROM certificates WHERE device = ?',
    ),
    plans: db.prepare<[string], { plan: string }>(
      'SELECT plan FROM plan_members WHERE device = ? ORDER BY plan LIMIT 100',
    ),
  }
}
type Statements = ReturnType<typeof prepare>

/** Reads the stream of events; the steps of a reading do not depend on the size of the fleet. */
export function openEvents({ store, epoch }: { store: Store; epoch: string }): EventIntents {
  const statements = prepare(store.db)
  return {
    eventBounds: () => store.readOne(() => boundsOf(statements, epoch)),
    eventsAfter: (after, { limit, device }) =>
      store.read(() => {
        if (device === undefined) return statements.after.all(after, limit).map(eventView)
        const rows = scopesOf(statements, device).flatMap((scope) =>
          statements.scopeAfter.all(scope, after, limit),
        )
        return inOrder(rows).slice(0, limit).map(eventView)
      }),
    timelineOf: (device, { before = Number.MAX_SAFE_INTEGER, limit }) =>
      store.read(() => {
        const scopes = scopesOf(statements, device)
        if (scopes.length === 0) {
          throw new MusterError('not_found', `Cannot show the timeline of "${device}": it is not known`)
        }
        const rows = scopes.flatMap((scope) => statements.scopeBefore.all(scope, before, limit))
        return inOrder(rows).slice(-limit).map(eventView)
      }),
  }
}

function boundsOf({ bounds }: Statements, epoch: string): EventBounds {
  const { oldest = null, newest = null } = bounds.get() ?? {}
  return { epoch, oldest: oldest ?? (newest ?? 0) + 1, newest: newest ?? 0 }
}

/** What a device is covered by: itself, its batch, fleet and issuers, and at most a hundred plans that name it. */
function scopesOf(statements: Statements, id: string): string[] {
  const device = statements.device.get(id)
  if (device === undefined) return []
  const { row, fleet, batch } = device
  return [
    `device:${id}`,
    `fleet:${fleet}`,
    ...(batch === null ? [] : [`batch:${batch}`]),
    ...statements.issuers.all(row).map(({ issuer }) => `issuer:${issuer}`),
    ...statements.plans.all(id).map(({ plan }) => `plan:${plan}`),
  ]
}

function inOrder(rows: readonly EventRow[]): EventRow[] {
  return rows.toSorted((a, b) => a.sequence - b.sequence)
}

function eventView({ sequence, at, kind, scope, device_sequence, detail }: EventRow): EventView {
  const [, device = null] = /^device:(.*)$/s.exec(scope) ?? []
  const more = JSON.parse(detail) as object // written by the event log only
  return { sequence, at, kind, scope, device, deviceSequence: device_sequence, ...more }
}
