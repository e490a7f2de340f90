import { MusterError } from '#shared/errors'
import type { Scope } from '#shared/feed'
import type { Sqlite } from '#shared/sqlite'
import { prepareRevokeClaims } from './claim-revocation.ts'
import { CERTIFICATE_COLUMNS, type CertificateRow } from './rows.ts'

interface Of {
  readonly id: string
}

/** Which devices `d` are in each kind of scope: asked of one at a time. */
const IS_IN = {
  device: 'd.id = @id',
  batch: 'd.batch = @id',
  fleet: 'd.fleet = @id',
  issuer: `EXISTS (SELECT 1 FROM certificates x
    WHERE x.device = d.row AND +x.issuer = @id AND x.state IN ('issued', 'active'))`,
  plan: 'EXISTS (SELECT 1 FROM plan_members m WHERE m.plan = @id AND m.device = d.id)',
} as const satisfies Record<Scope['kind'], string>

/**
 * The tokens of each kind of scope: of a device only those that would bring it back, of an issuer none, because
 * they may be the way to a certificate of another one.
 */
const TOKENS = {
  device: 'device = @id',
  batch: 'batch = @id',
  fleet: 'batch IN (SELECT b.id FROM batches b WHERE b.fleet = @id)',
  issuer: 'FALSE AND @id IS NULL',
  plan: 'device IN (SELECT m.device FROM plan_members m WHERE m.plan = @id)',
} as const satisfies Record<Scope['kind'], string>

const OF_DEVICES = 'devices d CROSS JOIN certificates c ON c.device = d.row'

/**
 * Certificates that are not revoked yet, in an order that a cursor can follow, so that no slice reads again what the
 * slices before it have done. CROSS JOIN fixes the order of the loops: the scope outside, its certificates inside.
 */
const SLICES = {
  device: { from: `${OF_DEVICES} WHERE d.id = @id AND d.id >= @from`, key: 'd.id' },
  batch: { from: `${OF_DEVICES} WHERE d.batch = @id AND d.id >= @from`, key: 'd.id' },
  fleet: { from: `${OF_DEVICES} WHERE d.fleet = @id AND d.id >= @from`, key: 'd.id' },
  issuer: {
    from: `certificates c CROSS JOIN devices d ON d.row = c.device
      WHERE c.issuer = @id AND c.row >= CAST(@from AS INTEGER)`,
    key: 'c.row',
  },
  plan: {
    from: `plan_members m CROSS JOIN devices d ON d.id = m.device CROSS JOIN certificates c ON c.device = d.row
      WHERE m.plan = @id AND m.device >= @from`,
    key: 'm.device',
  },
} as const satisfies Record<Scope['kind'], { from: string; key: string }>

const EXISTS = {
  device: 'SELECT 1 FROM devices WHERE id = @id',
  batch: 'SELECT 1 FROM batches WHERE id = @id',
  fleet: 'SELECT 1 FROM fleets WHERE id = @id',
  issuer:
    'SELECT 1 FROM issuers WHERE id = @id UNION ALL SELECT 1 FROM certificates WHERE issuer = @id LIMIT 1',
  plan: 'SELECT 1 FROM plans WHERE id = @id',
} as const satisfies Record<Scope['kind'], string>

function prepare(db: Sqlite, kind: Scope['kind']) {
  const slice = SLICES[kind]
  return {
    exists: db.prepare<[Of], unknown>(EXISTS[kind]),
    cancel: db.prepare<[Of & { now: number }]>(
      `UPDATE tokens SET cancelled_at = @now WHERE ${TOKENS[kind]} AND cancelled_at IS NULL AND used < uses`,
    ),
    withdraw: db.prepare<[Of]>(
      `UPDATE approvals SET state = 'rejected', device = NULL WHERE device IS NOT NULL
         AND EXISTS (SELECT 1 FROM devices d WHERE d.row = approvals.device AND ${IS_IN[kind]})`,
    ),
    unsettle: db.prepare<[Of]>(
      `UPDATE devices AS d SET state = 'expected'
         WHERE row IN (SELECT a.device FROM approvals a WHERE a.device IS NOT NULL)
         AND state = 'pending' AND ${IS_IN[kind]}`,
    ),
    slice: db.prepare<[Of & { from: string; limit: number }], CertificateRow & { key: string | number }>(
      `SELECT ${CERTIFICATE_COLUMNS}, ${slice.key} AS key FROM ${slice.from}
         AND c.state <> 'revoked' ORDER BY ${slice.key} LIMIT @limit`,
    ),
  }
}

/** What a plan covers. */
export function openPlanScopes(db: Sqlite) {
  const statements = {
    device: prepare(db, 'device'),
    batch: prepare(db, 'batch'),
    fleet: prepare(db, 'fleet'),
    issuer: prepare(db, 'issuer'),
    plan: prepare(db, 'plan'),
  } satisfies Record<Scope['kind'], ReturnType<typeof prepare>>

  const revokeClaims = prepareRevokeClaims(db)
  return {
    /** @throws MusterError not_found */
    require({ kind, id }: Scope): void {
      if (statements[kind].exists.get({ id }) === undefined) {
        throw new MusterError('not_found', `Cannot plan for the ${kind} "${id}": it is not known`)
      }
    },
    /** Spent ones stay: whoever repeats a request with one learns that the device was revoked. */
    cancelTokens({ kind, id }: Scope, now: number): void {
      statements[kind].cancel.run({ id, now })
      revokeClaims()
    },
    /** Nobody in the scope gets a certificate by what was asked or approved before. Looks through what was asked, not through the fleet. */
    withdrawApprovals({ kind, id }: Scope): void {
      statements[kind].unsettle.run({ id })
      statements[kind].withdraw.run({ id })
    },
    /** Up to `limit` certificates that are not revoked, from where the slice before ended (`key` of its last one). */
    slice: ({ kind, id }: Scope, at: { from: string; limit: number }) =>
      statements[kind].slice.all({ id, ...at }),
  }
}
export type PlanScopes = ReturnType<typeof openPlanScopes>
