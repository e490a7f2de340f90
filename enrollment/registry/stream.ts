import type { Change, HoldRecord, IssuerRecord } from '#shared/feed'
import { openSqliteForReading, type Sqlite } from '#shared/sqlite'
import type { TrustRecord } from '#shared/trust-bundle'
import { type FleetRow, fleetRecord } from './fleets.ts'
import { IN_FORCE } from './holds.ts'
import { holdRecord, type PlanRow } from './plan-rows.ts'
import { purgeOrders } from './purge-orders.ts'
import type { PositionedChange, Registry } from './registry.ts'
import {
  CERTIFICATE_COLUMNS,
  CERTIFICATES,
  type CertificateRow,
  certificateRecord,
  DEVICE_COLUMNS,
  type DeviceRow,
  deviceRecord,
} from './rows.ts'
import { BUSY_TIMEOUT_MS, type Store } from './store.ts'

/** Changes of a snapshot come in chunks of about this size; members of a hold as many to a change. */
const CHUNK = 1000

interface ChangeRow {
  readonly position: number
  readonly at: number
  readonly change: string
}

export interface StreamParts {
  readonly store: Store
  readonly epoch: string
  readonly path: string
  /** Snapshots that are being read; closed with the registry. */
  readonly snapshots: Set<Sqlite>
}

type StreamIntents = Pick<Registry, 'cursor' | 'changesAfter' | 'snapshot' | 'onCommit'>

export function openStream({ store, epoch, path, snapshots }: StreamParts): StreamIntents {
  const head = headOf(store.db)
  const after = store.db.prepare<[number, number], ChangeRow>(
    'SELECT position, at, change FROM changes WHERE position > ? ORDER BY position LIMIT ?',
  )
  return {
    cursor: () => store.read(() => ({ epoch, position: head() })),
    changesAfter: (position, limit) => store.read(() => after.all(position, limit).map(positionedChange)),
    snapshot: (now) =>
      store.read(() => {
        const db = openSqliteForReading(path, BUSY_TIMEOUT_MS)
        snapshots.add(db)
        const close = () => {
          snapshots.delete(db)
          db.close()
        }
        try {
          db.exec('BEGIN')
          const cursor = { epoch, position: headOf(db)() } // the first read fixes the state that is read
          return { cursor, changes: closing(state(db, now), close) }
        } catch (error) {
          close()
          throw error
        }
      }),
    onCommit: (listener) => store.onCommit(listener),
  }
}

function headOf(db: Sqlite): () => number {
  const head = db.prepare<[], { position: number | null }>('SELECT MAX(position) AS position FROM changes')
  return () => head.get()?.position ?? 0
}

function positionedChange({ position, at, change }: ChangeRow): PositionedChange {
  return { position, at, change: JSON.parse(change) as Change } // written by the ledger only
}

/** Ends with the last value, with an error, or when the reader gives up, even before it has begun. */
function closing<T>(values: Iterator<T>, close: () => void): AsyncIterable<T> {
  let isOpen = true
  const end = () => {
    if (isOpen) close()
    isOpen = false
  }
  const iterator: AsyncIterator<T, undefined> = {
    async next() {
      if (!isOpen) return { done: true, value: undefined }
      try {
        const result = values.next()
        if (result.done !== true) return result
      } catch (error) {
        end()
        throw error
      }
      end()
      return { done: true, value: undefined }
    },
    async return() {
      end()
      return { done: true, value: undefined }
    },
  }
  return { [Symbol.asyncIterator]: () => iterator }
}

/** Everything that brokers know, each thing after those that it refers to. */
function* state(db: Sqlite, now: number): Generator<readonly Change[], void> {
  const issuers = db.prepare<[], { id: string; pem: string; trusted: 0 | 1 }>(
    'SELECT * FROM issuers ORDER BY id',
  )
  const trust = db.prepare<[], { bundle: string }>('SELECT bundle FROM trust_bundle')
  yield [
    ...issuers.all().map((row) => ({ kind: 'issuer', issuer: issuerRecord(row) }) as const),
    ...trust.all().map(({ bundle }) => ({ kind: 'trust', trust: trustRecord(bundle) }) as const),
  ]
  const fleets = db.prepare<[], FleetRow>('SELECT * FROM fleets ORDER BY row')
  yield fleets.all().map((row) => ({ kind: 'fleet', fleet: fleetRecord(row) }))
  for (const rows of pages<DeviceRow>(db, DEVICES)) {
    yield rows.map((row) => ({ kind: 'device', device: deviceRecord(row) }))
  }
  for (const rows of pages<CertificateRow>(db, certificatesAt(now))) {
    yield rows.flatMap((row) => {
      const certificate = certificateRecord(row)
      return certificate === null ? [] : [{ kind: 'certificate', certificate } as const]
    })
  }
  yield* purgeOrders(db)
  yield* members(db)
  const holds = db.prepare<[], PlanRow>(`SELECT * FROM plans WHERE ${IN_FORCE} ORDER BY row`)
  yield holds.all().map((row) => ({ kind: 'hold', hold: activeHold(row) }))
}

/** An expected device has no certificate yet: brokers hear of it when it has one. */
const DEVICES = `SELECT ${DEVICE_COLUMNS} FROM devices d WHERE d.state <> 'expected' AND d.row > ? ORDER BY d.row LIMIT ${CHUNK}`

/** One second more than notAfter, which names the last valid second; `now` is a number of the caller's. */
function certificatesAt(now: number): string {
  return `SELECT ${CERTIFICATE_COLUMNS} FROM ${CERTIFICATES}
    WHERE c.fingerprint IS NOT NULL AND c.not_after > ${Math.floor(now) - 1000} AND c.row > ? ORDER BY c.row LIMIT ${CHUNK}`
}

function* pages<Row extends { readonly row: number }>(db: Sqlite, sql: string): Generator<Row[], void> {
  const page = db.prepare<[number], Row>(sql)
  for (let rows = page.all(0); rows.length > 0; rows = page.all(rows.at(-1)?.row ?? 0)) yield rows
}

/** Of proposed plans too: when one is applied, only the hold itself is told. */
function* members(db: Sqlite): Generator<readonly Change[], void> {
  const plans = db.prepare<[], { id: string }>(
    `SELECT id FROM plans WHERE scope_kind = 'plan' AND state IN ('freezing', 'proposed', 'applied', 'finalising') ORDER BY row`,
  )
  const page = db.prepare<[string, string], { device: string }>(
    `SELECT device FROM plan_members WHERE plan = ? AND device > ? ORDER BY device LIMIT ${CHUNK}`,
  )
  for (const { id } of plans.all()) {
    for (let rows = page.all(id, ''); rows.length > 0; rows = page.all(id, rows.at(-1)?.device ?? '')) {
      yield [{ kind: 'members', hold: id, devices: rows.map(({ device }) => device) }]
    }
  }
}

function issuerRecord(row: { id: string; pem: string; trusted: 0 | 1 }): IssuerRecord {
  return { id: row.id, pem: row.pem, trusted: row.trusted === 1 }
}

function trustRecord(bundle: string): TrustRecord {
  return JSON.parse(bundle) as TrustRecord // written by `recordTrust` only
}

function activeHold(row: PlanRow): HoldRecord {
  return holdRecord(row, 'active')
}
