import type { BatchReport } from '#shared/api/bootstrap'
import { MusterError } from '#shared/errors'
import type { DeviceState } from '#shared/identity/device'
import type { Sqlite } from '#shared/sqlite'
import type { Fleets } from './fleets.ts'
import type { CredentialKind, Registry } from './registry.ts'
import type { Store } from './store.ts'

interface TokenSum {
  readonly kind: CredentialKind
  readonly state: 'open' | 'spent' | 'expired' | 'cancelled'
  readonly tokens: number
  readonly uses: number
  readonly used: number
}

function prepare(db: Sqlite) {
  return {
    /** The states are those of a token's view. */
    tokens: db.prepare<[number, string], TokenSum>(
      `SELECT kind, COUNT(*) AS tokens, SUM(uses) AS uses, SUM(used) AS used, CASE
         WHEN cancelled_at IS NOT NULL THEN 'cancelled'
         WHEN used >= uses AND uses > 0 THEN 'spent'
         WHEN expires_at IS NOT NULL AND expires_at <= ? THEN 'expired'
         ELSE 'open' END AS state
       FROM tokens WHERE batch = ? GROUP BY kind, state`,
    ),
    reserved: db.prepare<[string], { reserved: number }>(
      `SELECT COUNT(*) AS reserved FROM approvals
       WHERE device IS NOT NULL AND token IN (SELECT t.row FROM tokens t WHERE t.batch = ?)`,
    ),
    devices: db.prepare<[string], { state: DeviceState; devices: number }>(
      'SELECT state, COUNT(*) AS devices FROM devices WHERE batch = ? GROUP BY state',
    ),
    alarms: db.prepare<[string], BatchReport['alarms'][number]>(
      `SELECT t.batch, t.kind, t.id AS token, a.code, a.attempts, a.last_at AS lastAt
       FROM tokens t CROSS JOIN token_attempts a ON a.token = t.row WHERE t.batch = ? ORDER BY a.token, a.code`,
    ),
  }
}

type Statements = ReturnType<typeof prepare>

/** Counts of a batch, read at one moment, so that they add up. */
export function openBatchReports(parts: { store: Store; fleets: Fleets }): Pick<Registry, 'batchReport'> {
  const statements = prepare(parts.store.db)
  return {
    batchReport: (id, now) =>
      parts.store.read((): BatchReport => {
        const batch = parts.fleets.findBatch(id)
        if (batch === undefined) throw new MusterError('not_found', `Cannot find the batch "${id}"`)
        return {
          batch: batch.id,
          fleet: batch.fleet,
          ...tokensOf(statements, { batch: id, now }),
          devices: devicesOf(statements, id),
          alarms: statements.alarms.all(id),
        }
      }),
  }
}

function tokensOf(statements: Statements, { batch, now }: { batch: string; now: number }) {
  const rows = statements.tokens.all(now, batch)
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
  const reserved = statements.reserved.get(batch)?.reserved ?? 0
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

function devicesOf(statements: Statements, batch: string): BatchReport['devices'] {
  const rows = statements.devices.all(batch)
  const inState = (state: DeviceState) => rows.find((row) => row.state === state)?.devices ?? 0
  return {
    total: rows.reduce((total, { devices }) => total + devices, 0),
    expected: inState('expected'),
    pending: inState('pending'),
    enrolled: inState('active'),
    retired: inState('retired'),
  }
}
