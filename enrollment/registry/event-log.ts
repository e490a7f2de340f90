import type { EventKind, EventView } from '#shared/api'
import type { Change } from '#shared/feed'
import type { Sqlite } from '#shared/sqlite'

/** So many are kept at most, and so long. */
export const EVENTS_KEPT = 500_000
export const EVENTS_KEPT_MS = 30 * 86_400_000
/** After so many more the oldest are looked at, and at most so many dropped: a write never pays for a full log. */
const TRIM_EVERY = 256
const TRIM_MOST = 1_024
/** A device that is refused over and over is an event so often, ms; the refusals themselves keep the last twenty. */
const REFUSED_EVERY_MS = 60_000

export type EventDetail = Omit<EventView, 'sequence' | 'at' | 'kind' | 'scope' | 'device' | 'deviceSequence'>

export interface NewEvent {
  readonly at: number
  readonly kind: EventKind
  readonly scope: string
  readonly detail?: EventDetail
}

interface Oldest {
  readonly sequence: number
  readonly at: number
}

/** A device, and its events so far; null before the first. */
interface Counted {
  readonly row: number
  readonly sequence: number | null
  readonly refused_at: number | null
}

function prepare(db: Sqlite) {
  return {
    insert: db.prepare<[number, string, string, number | null, string]>(
      'INSERT INTO events (at, kind, scope, device_sequence, detail) VALUES (?, ?, ?, ?, ?)',
    ),
    counted: db.prepare<[string], Counted>(
      `SELECT d.row, (SELECT e.sequence FROM event_counts e WHERE e.device = d.row) AS sequence,
         (SELECT e.refused_at FROM event_counts e WHERE e.device = d.row) AS refused_at
       FROM devices d WHERE d.id = ?`,
    ),
    // without RETURNING, for which SQLite makes a table at every call
    count: db.prepare<[number]>(
      `INSERT INTO event_counts (device, sequence) VALUES (?, 1)
       ON CONFLICT (device) DO UPDATE SET sequence = sequence + 1`,
    ),
    refused: db.prepare<[number, number]>('UPDATE event_counts SET refused_at = ? WHERE device = ?'),
    predecessor: db.prepare<[string], { predecessor: number | null }>(
      'SELECT predecessor FROM certificates WHERE serial = ?',
    ),
    oldest: db.prepare<[number], Oldest>('SELECT sequence, at FROM events ORDER BY sequence LIMIT ?'),
    drop: db.prepare<[number]>('DELETE FROM events WHERE sequence <= ?'),
  }
}

/** Writes events within the caller's transaction: they are there if, and only if, what they tell of is. */
export function openEventLog(db: Sqlite, kept = EVENTS_KEPT) {
  const statements = prepare(db)
  const trim = (newest: number, now: number) => {
    let last = 0
    for (const { sequence, at } of statements.oldest.all(TRIM_MOST)) {
      if (sequence > newest - kept && at >= now - EVENTS_KEPT_MS) break
      last = sequence
    }
    if (last > 0) statements.drop.run(last)
  }
  const insert = (event: NewEvent, deviceSequence: number | null) => {
    const { at, kind, scope, detail = {} } = event
    const { lastInsertRowid } = statements.insert.run(at, kind, scope, deviceSequence, JSON.stringify(detail))
    const sequence = Number(lastInsertRowid)
    if (sequence % TRIM_EVERY === 0) trim(sequence, at)
  }
  const ofDevice = ({ row, sequence }: Counted, event: NewEvent) => {
    statements.count.run(row)
    insert(event, (sequence ?? 0) + 1)
  }

  const log = {
    /** Of a device that is not known nothing is told: a stranger cannot fill the log. */
    add(event: NewEvent): void {
      const [, device] = /^device:(.*)$/s.exec(event.scope) ?? []
      if (device === undefined) {
        insert(event, null)
        return
      }
      const counted = statements.counted.get(device)
      if (counted !== undefined) ofDevice(counted, event)
    },
    /** At most one a minute of a device. */
    addRefused(device: string | null, event: Omit<NewEvent, 'kind' | 'scope'>): void {
      const counted = device === null ? undefined : statements.counted.get(device)
      if (counted === undefined) return
      const before = counted.refused_at
      if (before !== null && Math.abs(event.at - before) < REFUSED_EVERY_MS) return
      ofDevice(counted, { ...event, kind: 'refused', scope: `device:${device}` })
      statements.refused.run(event.at, counted.row)
    },
    /** What an intent's changes mean to devices; the action is that of its audit entry. */
    addChanges(action: string, changes: readonly Change[], at: number): void {
      for (const change of changes) {
        const event = eventOf(
          action,
          change,
          (serial) => statements.predecessor.get(serial)?.predecessor ?? null,
        )
        if (event !== null) log.add({ at, ...event })
      }
    },
  }
  return log
}
export type EventLog = ReturnType<typeof openEventLog>

/** Null for a change that is nothing to tell of: a window that moved, a policy. */
function eventOf(
  action: string,
  change: Change,
  predecessorOf: (serial: string) => number | null,
): Omit<NewEvent, 'at'> | null {
  if (change.kind === 'hold') {
    const { id, scope } = change.hold
    const event = { scope: `${scope.kind}:${scope.id}`, detail: { plan: id } }
    if (change.hold.state === 'active') return { kind: 'held', ...event }
    return action === 'plan.undo' ? { kind: 'released', ...event } : null
  }
  if (change.kind === 'device') {
    const retired = action === 'device.retire' && change.device.state === 'retired'
    return retired ? { kind: 'retired', scope: `device:${change.device.id}` } : null
  }
  if (change.kind !== 'certificate') return null
  const { device, serial, fingerprint, state, reason } = change.certificate
  const event = { scope: `device:${device}`, detail: { serial, fingerprint } }
  if (state === 'revoked') {
    return { kind: 'revoked', ...event, detail: { ...event.detail, ...(reason === null ? {} : { reason }) } }
  }
  if (state === 'superseded' && action === 'supersede') return { kind: 'superseded', ...event }
  if (state !== 'issued' || !ISSUED_BY.test(action)) return null
  if (FIRST_BY.test(action)) return { kind: 'enrolled', ...event }
  return { kind: predecessorOf(serial) === null ? 'enrolled' : 'rotated', ...event }
}

/** Actions whose changes are certificates that were not there before. */
const ISSUED_BY = /^(issue|enroll|enroll\.again|reenroll|service|(renew|rekey)(\.expired)?)$/
/** Those of them whose certificates never have a predecessor. */
const FIRST_BY = /^(enroll|enroll\.again|reenroll)$/
