import type { PlanView } from '#shared/api'
import type { Sqlite } from '#shared/sqlite'
import type { Slices } from './long-reads.ts'
import type { NewPlan } from './registry.ts'

export type PlanCounts = PlanView['counts']
/** What a plan is for, unless it has a list of its own. */
export type CountedScope = Extract<NewPlan['target'], { scope: unknown }>

/** Of a token that still lets a device in. */
const OPEN = 'cancelled_at IS NULL AND used < uses AND (expires_at IS NULL OR expires_at > @now)'

const ofDevices = (where: string) =>
  `SELECT d.id AS key, d.row AS device, TRUE AS counts FROM devices d
   WHERE ${where} AND d.id > @after ORDER BY d.id LIMIT @rows`
const LIVE = `IN ('issued', 'active')`

/**
 * A slice of each kind of scope, in an order that a cursor follows. Of an issuer a device counts with its oldest
 * certificate; the plus makes SQLite look among those of the device, not among all of the issuer. `cost`: that of a row
 * beside that of one that is only counted.
 */
const SLICES = {
  device: { start: '', cost: 1, devices: ofDevices('d.id = @id') },
  batch: { start: '', cost: 1, devices: ofDevices('d.batch = @id') },
  fleet: { start: '', cost: 1, devices: ofDevices('d.fleet = @id') },
  issuer: {
    start: 0,
    cost: 4,
    devices: `SELECT c.row AS key, c.device, (c.state ${LIVE} AND NOT EXISTS (SELECT 1 FROM certificates o
        WHERE o.device = c.device AND +o.issuer = c.issuer AND o.state ${LIVE} AND o.row < c.row)) AS counts
      FROM certificates c WHERE c.issuer = @id AND c.row > @after ORDER BY c.row LIMIT @rows`,
  },
} as const satisfies Record<CountedScope['scope'], { start: Key; cost: number; devices: string }>

type Key = string | number

type Counted = CountedScope & {
  readonly now: number
  /** Of a slice. */
  readonly rows: number
}

interface DevicesRow {
  readonly batch: string | null
  readonly devices: number
  readonly online: number
}

interface SliceRow extends DevicesRow {
  /** Of the whole slice: how many rows, and where the next one begins. */
  readonly read: number
  readonly last: Key
}

/**
 * What a plan for a scope would stop: every device that is not retired, because it would no longer connect or enroll,
 * and the tokens that would bring another one.
 */
export function* countScope(db: Sqlite, counted: Counted): Slices<PlanCounts> {
  const rows = yield* countDevices(db, counted)
  return countsOf(rows, yield* countTokens(db, counted))
}

/** Several rows may be of one batch. */
function countsOf(rows: readonly DevicesRow[], tokens: number): PlanCounts {
  const byBatch = new Map<string, number>()
  for (const { batch, devices } of rows) {
    if (batch !== null && devices > 0) byBatch.set(batch, (byBatch.get(batch) ?? 0) + devices)
  }
  return {
    devices: rows.reduce((sum, { devices }) => sum + devices, 0),
    online: rows.reduce((sum, { online }) => sum + online, 0),
    tokens,
    byBatch: Object.fromEntries([...byBatch].sort()),
  }
}

/** Of scopes that have no device in common. */
export function together(some: PlanCounts, others: PlanCounts): PlanCounts {
  const rows = [some, others].flatMap(({ byBatch }) =>
    Object.entries(byBatch).map(([batch, devices]) => ({ batch, devices, online: 0 })),
  )
  return {
    devices: some.devices + others.devices,
    online: some.online + others.online,
    tokens: some.tokens + others.tokens,
    byBatch: countsOf(rows, 0).byBatch,
  }
}

/** In each slice a row for each batch. */
function* countDevices(db: Sqlite, { scope, id, rows: most }: Counted): Slices<DevicesRow[]> {
  const { start, cost, devices } = SLICES[scope]
  const rows = Math.ceil(most / cost)
  const next = db.prepare<[{ id: string; rows: number; after: Key }], SliceRow>(
    `SELECT d.batch, SUM(COUNT(*)) OVER () AS read, MAX(MAX(n.key)) OVER () AS last, SUM(n.counts AND d.state <> 'retired') AS devices,
       SUM(n.counts AND d.state <> 'retired' AND EXISTS (SELECT 1 FROM connections x WHERE x.device = d.row)) AS online
     FROM (${devices}) n CROSS JOIN devices d ON d.row = n.device GROUP BY d.batch`,
  )
  const all: DevicesRow[] = []
  for (let after: Key = start; ; ) {
    const sums = next.all({ id, rows, after })
    all.push(...sums)
    const [slice] = sums
    if (slice === undefined || slice.read < rows) return all
    after = slice.last
    yield
  }
}

function* countTokens(db: Sqlite, { scope, id, now, rows }: Counted): Slices<number> {
  switch (scope) {
    case 'issuer': // they may be the way to a certificate of another one
      return 0
    case 'device':
      return tokensOfDevice(db)({ id, now })
    case 'batch':
      return yield* countTokensOf(db, { batch: id, now, rows })
    case 'fleet': {
      let tokens = 0
      const batches = db.prepare<[string], string>('SELECT id FROM batches WHERE fleet = ?').pluck()
      for (const batch of batches.all(id)) {
        tokens += yield* countTokensOf(db, { batch, now, rows })
        yield
      }
      return tokens
    }
  }
}

function* countTokensOf(db: Sqlite, of: { batch: string; now: number; rows: number }): Slices<number> {
  const slice = db.prepare<
    [{ batch: string; now: number; rows: number; after: number }],
    { tokens: number | null; read: number; last: number }
  >(
    `SELECT SUM(is_open) AS tokens, COUNT(*) AS read, MAX(row) AS last
     FROM (SELECT row, ${OPEN} AS is_open FROM tokens WHERE batch = @batch AND row > @after
       ORDER BY row LIMIT @rows)`,
  )
  let tokens = 0
  for (let after = 0; ; ) {
    const row = slice.get({ ...of, after })
    tokens += row?.tokens ?? 0
    if (row === undefined || row.read < of.rows) return tokens
    after = row.last
    yield
  }
}

/** Those that would bring it back. */
function tokensOfDevice(db: Sqlite): (of: { id: string; now: number }) => number {
  const count = db
    .prepare<[{ id: string; now: number }], number>(
      `SELECT COUNT(*) FROM tokens WHERE device = @id AND ${OPEN}`,
    )
    .pluck()
  return (of) => count.get(of) ?? 0
}

/** Counts devices that are named one by one. */
export function prepareMemberCounts(db: Sqlite) {
  const tokens = tokensOfDevice(db)
  const device = db.prepare<[string], DevicesRow>(
    `SELECT d.batch, d.state <> 'retired' AS devices,
       (d.state <> 'retired' AND EXISTS (SELECT 1 FROM connections x WHERE x.device = d.row)) AS online
     FROM devices d WHERE d.id = ?`,
  )
  return (devices: readonly string[], now: number): PlanCounts => {
    const rows = devices.flatMap((id) => device.get(id) ?? [])
    return countsOf(
      rows,
      devices.reduce((sum, id) => sum + tokens({ id, now }), 0),
    )
  }
}
