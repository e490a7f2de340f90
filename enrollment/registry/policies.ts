import { ATTRIBUTES_MAX } from '#shared/api/bootstrap'
import { MusterError } from '#shared/errors'
import type { Sqlite } from '#shared/sqlite'
import type { Attributes } from './attributes.ts'
import type { Fleets } from './fleets.ts'
import type { Intent } from './ledger.ts'
import type { PolicyIntents, PolicySubject } from './policy-records.ts'
import { DEVICE_COLUMNS, type DeviceRow, deviceRecord } from './rows.ts'
import type { SecondFactorIntents } from './second-factors.ts'
import type { Store } from './store.ts'

interface PolicyParts {
  readonly store: Store
  readonly fleets: Fleets
  readonly attributes: Attributes
}

interface SubjectRow extends DeviceRow {
  readonly online: 0 | 1
}

const SUBJECT_COLUMNS = `${DEVICE_COLUMNS}, EXISTS (SELECT 1 FROM connections n WHERE n.device = d.row) AS online`

function prepare(db: Sqlite) {
  return {
    find: db.prepare<[string], SubjectRow>(`SELECT ${SUBJECT_COLUMNS} FROM devices d WHERE d.id = ?`),
    setPolicy: db.prepare<[string | null, number]>('UPDATE devices SET policy = ? WHERE row = ?'),
    count: db.prepare<[string], { n: number }>(
      `SELECT count(*) AS n FROM devices WHERE fleet = ? AND state <> 'retired'`,
    ),
    sample: db.prepare<[string, number, number], SubjectRow>(
      `SELECT ${SUBJECT_COLUMNS} FROM devices d WHERE d.row IN (
         SELECT row FROM (SELECT row, row_number() OVER (ORDER BY row) AS n FROM devices
           WHERE fleet = ? AND state <> 'retired') WHERE n % ? = 0 LIMIT ?)
       ORDER BY d.row`,
    ),
  }
}
type Statements = ReturnType<typeof prepare>

export function openPolicyIntents({
  store,
  fleets,
  attributes,
}: PolicyParts): Omit<PolicyIntents, keyof SecondFactorIntents> {
  const statements = prepare(store.db)
  return {
    setDevicePolicy: (id, policy, act) =>
      store.write(act, (log) => {
        const device = required(statements, id)
        statements.setPolicy.run(policy === null ? null : JSON.stringify(policy), device.row)
        log.audit({ action: 'device.policy', subject: `${device.kind}:${id}` })
        return told(statements, { id, log })
      }),
    tagDevice: (id, tags, act) =>
      store.write(act, (log) => {
        const device = required(statements, id)
        attributes.set(device.row, tags)
        const held = Object.keys(attributes.of(device.row)).length
        if (held > ATTRIBUTES_MAX) {
          throw new MusterError(
            'invalid_request',
            `Cannot tag "${id}": it would have more than ${ATTRIBUTES_MAX} attributes`,
          )
        }
        const names = Object.keys(tags).sort().join(',')
        log.audit({ action: 'device.tag', subject: `${device.kind}:${id} attributes:${names}` })
        return told(statements, { id, log })
      }),
    policySubject: (id) => store.read(() => subject(required(statements, id))),
    samplePolicySubjects: (fleet, limit) =>
      store.read(() => {
        fleets.require(fleet)
        const total = statements.count.get(fleet)?.n ?? 0
        const every = Math.max(1, Math.ceil(total / limit))
        return { total, sample: statements.sample.all(fleet, every, limit).map(subject) }
      }),
  }
}

/** Brokers hear of a device once it has a certificate: before it, there is nothing to tell. */
function told(statements: Statements, { id, log }: { id: string; log: Intent }): PolicySubject {
  const now = subject(required(statements, id))
  if (now.device.state !== 'expected') log.change({ kind: 'device', device: now.device })
  return now
}

function required({ find }: Statements, id: string): SubjectRow {
  const row = find.get(id)
  if (row === undefined) throw new MusterError('not_found', `Cannot find the device "${id}"`)
  return row
}

function subject(row: SubjectRow): PolicySubject {
  return { device: deviceRecord(row), isOnline: row.online === 1 }
}
