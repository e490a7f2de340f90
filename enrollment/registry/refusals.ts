import type { RefusalView } from '#shared/api'
import type { Evidence, RefusalErrorCode } from '#shared/errors'
import { refusalCode } from '#shared/refusals'
import type { EventLog } from './event-log.ts'
import type { Registry } from './registry.ts'
import type { Store } from './store.ts'

/** So many are kept of a device, and shown of anybody. */
const KEPT_PER_DEVICE = 20
/** So many are kept of all strangers together, so that nobody can fill the disk by being refused. */
const KEPT_OF_STRANGERS = 1000
/** So many of them from one address, so that one stranger does not push out all others. */
const KEPT_PER_ADDRESS = 20
const STRANGERS = 0
const MINUTE_MS = 60_000
const HOUR_MINUTES = 60

interface RefusalRow {
  readonly bucket: number
  readonly at: number
  readonly code: string
  readonly evidence: string
  readonly device: string | null
  readonly fingerprint: string | null
  readonly address: string
  readonly by: string
}

type Subject = Parameters<Registry['refusalsOf']>[0]

/** Refusals are what was seen, not state: bounded, in no change and no audit entry. */
export function openRefusalLog({ db }: Store) {
  const bucketOf = db.prepare<[string], { row: number }>('SELECT row FROM devices WHERE id = ?')
  const insert = db.prepare<[RefusalRow]>(
    `INSERT INTO refusals (bucket, at, code, evidence, device, fingerprint, address, by)
     VALUES (@bucket, @at, @code, @evidence, @device, @fingerprint, @address, @by)`,
  )
  const trim = db.prepare<[number, number, number]>(
    `DELETE FROM refusals WHERE bucket = ? AND row <=
       (SELECT row FROM refusals WHERE bucket = ? ORDER BY row DESC LIMIT 1 OFFSET ?)`,
  )
  const trimAddress = db.prepare<[string, string, number]>(
    `DELETE FROM refusals WHERE bucket = 0 AND address = ? AND row <=
       (SELECT row FROM refusals WHERE bucket = 0 AND address = ? ORDER BY row DESC LIMIT 1 OFFSET ?)`,
  )
  const count = db.prepare<[number]>(
    'INSERT INTO refused_minutes VALUES (?, 1) ON CONFLICT (minute) DO UPDATE SET refused = refused + 1',
  )
  const forgetMinutes = db.prepare<[number]>('DELETE FROM refused_minutes WHERE minute < ?')
  const lastHour = db.prepare<[number, number], { refused: number }>(
    'SELECT COALESCE(SUM(refused), 0) AS refused FROM refused_minutes WHERE minute > ? AND minute <= ?',
  )
  const select = (column: string) =>
    db.prepare<[string], RefusalRow>(
      `SELECT * FROM refusals WHERE ${column} = ? ORDER BY at DESC, row DESC LIMIT ${KEPT_PER_DEVICE}`,
    )
  const byDevice = select('device')
  const byFingerprint = select('fingerprint')
  const byAddress = select('address')

  return {
    /** Within the caller's transaction. */
    add(refusal: RefusalView): void {
      const { at, code, device, fingerprint, address, by } = refusal
      const bucket = (device === null ? undefined : bucketOf.get(device)?.row) ?? STRANGERS
      insert.run({
        bucket,
        at,
        code,
        evidence: JSON.stringify(refusal.evidence),
        device,
        fingerprint,
        address,
        by,
      })
      if (bucket === STRANGERS) trimAddress.run(address, address, KEPT_PER_ADDRESS)
      trim.run(bucket, bucket, bucket === STRANGERS ? KEPT_OF_STRANGERS : KEPT_PER_DEVICE)
      const minute = Math.floor(at / MINUTE_MS)
      count.run(minute)
      forgetMinutes.run(minute - 2 * HOUR_MINUTES)
    },
    of(subject: Subject): RefusalView[] {
      if ('device' in subject) return byDevice.all(subject.device).map(refusalView)
      if ('fingerprint' in subject) return byFingerprint.all(subject.fingerprint).map(refusalView)
      return byAddress.all(subject.address).map(refusalView)
    },
    inLastHour(now: number): number {
      const minute = Math.floor(now / MINUTE_MS)
      return lastHour.get(minute - HOUR_MINUTES, minute)?.refused ?? 0
    },
  }
}
export type RefusalLog = ReturnType<typeof openRefusalLog>

/** Codes of a token, claim or manufacturer that is over, or of a device it never had: who tries it may have found it. */
const OVER: readonly RefusalErrorCode[] = [
  'token_spent',
  'token_expired',
  'token_cancelled',
  'idevid_unlisted',
  'idevid_used',
]

export function openRefusals(parts: {
  store: Store
  refusals: RefusalLog
  events: EventLog
}): Pick<Registry, 'recordRefusal' | 'refusalsOf'> {
  const { store, refusals, events } = parts
  const countAttempt = store.db.prepare<[string, number, string]>(
    `INSERT INTO token_attempts (token, code, attempts, last_at) SELECT row, ?, 1, ? FROM tokens WHERE id = ?
     ON CONFLICT (token, code) DO UPDATE SET attempts = attempts + 1, last_at = excluded.last_at`,
  )
  return {
    recordRefusal: ({ now, code, ...seen }) =>
      store.write({ now, by: 'plane' }, () => {
        refusals.add({ ...seen, at: now, code: refusalCode(code), by: 'enrollment' })
        const detail = { reason: refusalCode(code), address: seen.address }
        events.addRefused(seen.device, { at: now, detail })
        const { token } = seen.evidence
        if (OVER.includes(code) && typeof token === 'string') countAttempt.run(refusalCode(code), now, token)
      }),
    refusalsOf: (subject) => store.read(() => refusals.of(subject)),
  }
}

function refusalView(row: RefusalRow): RefusalView {
  const { at, code, device, fingerprint, address, by } = row
  const evidence = JSON.parse(row.evidence) as Evidence // written by add only
  return { at, code, evidence, device, fingerprint, address, by }
}
