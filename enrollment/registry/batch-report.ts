import type { BatchReport } from '#shared/api/bootstrap'
import { MusterError } from '#shared/errors'
import type { DeviceState } from '#shared/identity/device'
import type { Sqlite } from '#shared/sqlite'
import type { Fleets } from './fleets.ts'
import { type LongReadParts, readInSlices, type Slices } from './long-reads.ts'
import type { CredentialKind, Registry } from './registry.ts'

interface TokenSum {
  readonly kind: CredentialKind
  readonly state: 'open' | 'spent' | 'expired' | 'cancelled'
  readonly tokens: number
  readonly uses: number
  readonly used: number
  /** Of the whole slice: how many tokens, and the row of the last. */
  readonly read: number
  readonly last: number
}

interface DeviceSum {
  readonly state: DeviceState
  readonly devices: number
  /** Of the whole slice: how many devices, and the id of the last. */
  readonly read: number
  readonly last: string
}

/** Columns that are the same in each group of a slice. */
const SLICE = (key: string) => `SUM(COUNT(*)) OVER () AS read, MAX(MAX(${key})) OVER () AS last`

/** Tokens after one row, with what the states of their view are made of. */
const TOKENS = `SELECT t.row, t.kind, t.uses, t.used, CASE
    WHEN t.cancelled_at IS NOT NULL THEN 'cancelled'
    WHEN t.used >= t.uses AND t.uses > 0 THEN 'spent'
    WHEN t.expires_at IS NOT NULL AND t.expires_at <= @now THEN 'expired'
    ELSE 'open' END AS state
  FROM tokens t WHERE t.batch = @batch AND t.row > @after ORDER BY t.row LIMIT @rows`

function prepare(db: Sqlite) {
  return {
    tokens: db.prepare<[Counted & { after: number }], TokenSum>(
      `SELECT kind, state, COUNT(*) AS tokens, SUM(uses) AS uses, SUM(used) AS used, ${SLICE('row')}
       FROM (${TOKENS}) GROUP BY kind, state`,
    ),
    reserved: db.prepare<[string], { reserved: number }>(
      `SELECT COUNT(*) AS reserved FROM approvals a CROSS JOIN tokens t ON t.row = a.token
       WHERE a.device IS NOT NULL AND t.batch = ?`,
    ),
    devices: db.prepare<[Omit<Counted, 'now'> & { after: string }], DeviceSum>(
      `SELECT state, COUNT(*) AS devices, ${SLICE('id')}
       FROM (SELECT d.id, d.state FROM devices d WHERE d.batch = @batch AND d.id > @after
         ORDER BY d.id LIMIT @rows) GROUP BY state`,
    ),
    alarms: db.prepare<[{ batch: string; after: number; last: number }], BatchReport['alarms'][number]>(
      `SELECT t.batch, t.kind, t.id AS token, a.code, a.attempts, a.last_at AS lastAt
       FROM tokens t CROSS JOIN token_attempts a ON a.token = t.row
       WHERE t.batch = @batch AND t.row > @after AND t.row <= @last ORDER BY a.token, a.code`,
    ),
  }
}

interface Counted {
  readonly batch: string
  readonly now: number
  /** Of a slice. */
  readonly rows: number
}

type Statements = ReturnType<typeof prepare>
type ReportParts = LongReadParts & { readonly fleets: Fleets }

/** Counts of a batch, read at one moment, so that they add up. */
export function openBatchReports(parts: ReportParts): Pick<Registry, 'batchReport'> {
  return {
    async batchReport(id, now) {
      const batch = await parts.store.read(() => parts.fleets.findBatch(id))
      if (batch === undefined) throw new MusterError('not_found', `Cannot find the batch "${id}"`)
      const counts = await readInSlices(parts, (db, rows) =>
        countBatch(prepare(db), { batch: id, now, rows }),
      )
      return { batch: batch.id, fleet: batch.fleet, ...counts }
    },
  }
}

function* countBatch(statements: Statements, counted: Counted): Slices<Omit<BatchReport, 'batch' | 'fleet'>> {
  const { tokens, alarms } = yield* readTokens(statements, counted)
  const reserved = statements.reserved.get(counted.batch)?.reserved ?? 0
  yield
  const devices = yield* readDevices(statements, counted)
  return { ...tokensOf(tokens, reserved), devices: devicesOf(devices), alarms }
}

function* readTokens(
  statements: Statements,
  counted: Counted,
): Slices<{ tokens: TokenSum[]; alarms: BatchReport['alarms'] }> {
  const [tokens, alarms]: [TokenSum[], BatchReport['alarms']] = [[], []]
  for (let after = 0; ; ) {
    const sums = statements.tokens.all({ ...counted, after })
    const [slice] = sums
    if (slice === undefined) return { tokens, alarms }
    tokens.push(...sums)
    alarms.push(...statements.alarms.all({ batch: counted.batch, after, last: slice.last }))
    if (slice.read < counted.rows) return { tokens, alarms }
    after = slice.last
    yield
  }
}

function* readDevices(statements: Statements, { batch, rows }: Counted): Slices<DeviceSum[]> {
  const all: DeviceSum[] = []
  for (let after = ''; ; ) {
    const sums = statements.devices.all({ batch, rows, after })
    all.push(...sums)
    const [slice] = sums
    if (slice === undefined || slice.read < rows) return all
    after = slice.last
    yield
  }
}

function tokensOf(rows: readonly TokenSum[], reserved: number) {
  const sum = (of: (row: TokenSum) => number, state?: TokenSum['state']) =>
    rows.reduce((total, row) => total + (state === undefined || row.state === state ? of(row) : 0), 0)
  const stated = (kind: CredentialKind, state?: TokenSum['state']) =>
    sum((row) => (row.kind === kind ? row.tokens : 0), state)
  const credentials = (kind: CredentialKind) => ({
    total: stated(kind),
    open: stated(kind, 'open'),
    spent: stated(kind, 'spent'),
    expired: stated(kind, 'expired'),
    cancelled: stated(kind, 'cancelled'),
  })
  const unused = (state: TokenSum['state']) => sum((row) => row.uses - row.used, state)
  return {
    tokens: credentials('token'),
    claims: credentials('claim'),
    manufacturers: credentials('manufacturer'),
    uses: {
      total: sum((row) => row.uses),
      enrolled: sum((row) => row.used) - reserved,
      reserved,
      open: unused('open'),
      expired: unused('expired'),
      cancelled: unused('cancelled'),
    },
  }
}

function devicesOf(rows: readonly DeviceSum[]): BatchReport['devices'] {
  const sum = (some: readonly DeviceSum[]) => some.reduce((total, { devices }) => total + devices, 0)
  const inState = (state: DeviceState) => sum(rows.filter((row) => row.state === state))
  return {
    total: sum(rows),
    expected: inState('expected'),
    pending: inState('pending'),
    enrolled: inState('active'),
    retired: inState('retired'),
  }
}
