import type { RotationView } from '#shared/api'
import { MusterError } from '#shared/errors'
import type { Sqlite } from '#shared/sqlite'
import type { Intent } from './ledger.ts'
import type { NewRotation, Registry, RotationMember } from './registry.ts'
import { CERTIFICATE_COLUMNS, CERTIFICATES, type CertificateRow, certificateRecord } from './rows.ts'
import type { Store } from './store.ts'
import { isExpired } from './validity.ts'

interface RotationRow {
  readonly row: number
  readonly id: string
  readonly scope_kind: RotationView['scope']['kind']
  readonly scope_id: string
  readonly over_ms: number
  readonly state: RotationView['state']
  readonly progress: string
  readonly by: string
  readonly created_at: number
}

interface MemberRow extends CertificateRow {
  readonly device_state: string
}

/** Share of the whole time that one device has for its own rotation. */
const OWN_SHARE = 0.1

type Statements = ReturnType<typeof prepare>

function prepare(db: Sqlite) {
  /** The next devices of a scope by id; each has an index that begins with the column. */
  const page = (from: string) =>
    db.prepare<[string | number, string, number], { row: number; id: string }>(
      `SELECT d.row, d.id FROM ${from} AND d.id > ? AND d.kind = 'device' AND d.state = 'active' ORDER BY d.id LIMIT ?`,
    )
  const named = (table: string) =>
    db.prepare<[string], { one: 1 }>(`SELECT 1 AS one FROM ${table} WHERE id = ?`)
  return {
    insert: db.prepare<[string, string, string, number, string, number]>(
      `INSERT INTO rotations (id, scope_kind, scope_id, over_ms, state, by, created_at)
       VALUES (?, ?, ?, ?, 'pacing', ?, ?)`,
    ),
    insertMember: db.prepare<[number, string]>('INSERT OR IGNORE INTO rotation_members VALUES (?, ?)'),
    find: db.prepare<[string], RotationRow>('SELECT * FROM rotations WHERE id = ?'),
    list: db.prepare<[], RotationRow>('SELECT * FROM rotations ORDER BY row DESC LIMIT 100'),
    pacing: db.prepare<[], { id: string }>(`SELECT id FROM rotations WHERE state = 'pacing' ORDER BY row`),
    advance: db.prepare<[string, string, number]>(
      'UPDATE rotations SET progress = ?, state = ? WHERE row = ?',
    ),
    exists: { device: named('devices'), batch: named('batches'), fleet: named('fleets') },
    devices: {
      device: page('devices d WHERE d.id = ?'),
      batch: page('devices d WHERE d.batch = ?'),
      fleet: page('devices d WHERE d.fleet = ?'),
      devices: page('rotation_members m JOIN devices d ON d.id = m.device WHERE m.rotation = ?'),
    },
    newest: db.prepare<[number], CertificateRow>(
      `SELECT ${CERTIFICATE_COLUMNS} FROM ${CERTIFICATES}
       WHERE c.device = ? AND c.state IN ('issued', 'active') AND c.superseded_from IS NULL ORDER BY c.row DESC LIMIT 1`,
    ),
    move: db.prepare<[number, number, number, number]>(
      'UPDATE certificates SET renew_after = ?, renew_before = ?, rotation = ? WHERE row = ?',
    ),
    members: db.prepare<[number, number, number], MemberRow>(
      `SELECT ${CERTIFICATE_COLUMNS}, (SELECT o.state FROM devices o WHERE o.row = c.device) AS device_state FROM ${CERTIFICATES}
       WHERE c.rotation = ? AND c.row > ? ORDER BY c.row LIMIT ?`,
    ),
  }
}

type RotationIntents = Pick<
  Registry,
  'beginRotation' | 'pacingRotations' | 'paceRotation' | 'showRotation' | 'listRotations' | 'rotationMembers'
>

/** Campaigns: the windows of the devices in a scope are moved, in slices, to be spread over a time. */
export function openRotations({ store }: { store: Store }): RotationIntents {
  const statements = prepare(store.db)
  return {
    beginRotation: (rotation) => store.write(rotation, (log) => begin(statements, rotation, log)),
    pacingRotations: () => store.read(() => statements.pacing.all().map(({ id }) => id)),
    paceRotation: (id, limit, act) =>
      store.write(act, (log) => {
        const rotation = require(statements, id)
        return rotation.state === 'paced' || pace(statements, { rotation, limit, now: act.now, log })
      }),
    showRotation: (id) => store.read(() => rotationView(require(statements, id))),
    listRotations: () => store.read(() => statements.list.all().map(rotationView)),
    rotationMembers: (id, { after, limit, now }) =>
      store.read(() => {
        const rows = statements.members.all(require(statements, id).row, after, limit)
        return rows.map((row) => ({ row: row.row, device: row.device, state: memberState(row, now) }))
      }),
  }
}

/** @throws MusterError not_found */
function require(statements: Statements, id: string): RotationRow {
  const row = statements.find.get(id)
  if (row === undefined) throw new MusterError('not_found', `Cannot find the rotation "${id}"`)
  return row
}

/** @throws MusterError not_found */
function begin(statements: Statements, rotation: NewRotation, log: Intent): RotationView {
  const { id, target, overMs, by, now } = rotation
  const scope = 'scope' in target ? { kind: target.scope, id: target.id } : { kind: 'devices' as const, id }
  const named = 'scope' in target ? [target.id] : target.devices
  const kind = 'scope' in target ? target.scope : 'device'
  const unknown = named.find((one) => statements.exists[kind].get(one) === undefined)
  if (unknown !== undefined) throw new MusterError('not_found', `Cannot find the ${kind} "${unknown}"`)
  statements.insert.run(id, scope.kind, scope.id, overMs, by, now)
  const made = require(statements, id)
  if ('devices' in target) for (const device of target.devices) statements.insertMember.run(made.row, device)
  log.audit({ action: 'rotation.begin', subject: `rotation:${id} ${scope.kind}:${scope.id}` })
  return rotationView(made)
}

/** Returns whether that was the last slice. */
function pace(
  statements: Statements,
  { rotation, limit, now, log }: { rotation: RotationRow; limit: number; now: number; log: Intent },
): boolean {
  const { scope_kind: kind, scope_id: scopeId, row, progress } = rotation
  const devices = statements.devices[kind].all(kind === 'devices' ? row : scopeId, progress, limit)
  let moved = 0
  for (const device of devices) {
    const certificate = statements.newest.get(device.row)
    // one that was issued since has been asked for already
    if (certificate === undefined || certificate.created_at > rotation.created_at) continue
    if (isExpired(certificate.not_after, now)) continue
    moveWindow(statements, { rotation, certificate, log })
    moved++
  }
  const isDone = devices.length < limit
  statements.advance.run(devices.at(-1)?.id ?? progress, isDone ? 'paced' : 'pacing', row)
  log.audit({
    action: isDone ? 'rotation.paced' : 'rotation.pace',
    subject: `rotation:${rotation.id} certificates:${moved}`,
  })
  return isDone
}

/** A window is never moved to a later time: a device that is due stays due. */
function moveWindow(
  statements: Statements,
  { rotation, certificate, log }: { rotation: RotationRow; certificate: CertificateRow; log: Intent },
): void {
  const { created_at: begin, over_ms: over, row } = rotation
  const own = Math.floor(over * OWN_SHARE)
  // the last digits of the serial, which is random: the same certificate has the same place
  const place = Number.parseInt(certificate.serial.slice(-8), 16) / 2 ** 32
  const from = begin + Math.floor((over - own) * place)
  const renewAfter = Math.min(from, certificate.renew_after)
  const renewBefore = Math.min(from + own, certificate.renew_before)
  statements.move.run(renewAfter, renewBefore, row, certificate.row)
  const record = certificateRecord({ ...certificate, renew_after: renewAfter, renew_before: renewBefore })
  if (record !== null) log.change({ kind: 'certificate', certificate: record })
}

function memberState(row: MemberRow, now: number): RotationMember['state'] {
  if (row.superseded_from !== null || row.state === 'superseded') return 'rotated'
  const isGone = row.state === 'revoked' || row.device_state === 'retired' || isExpired(row.not_after, now)
  if (isGone) return 'gone'
  return now < row.renew_before ? 'waiting' : 'late'
}

function rotationView(row: RotationRow): RotationView {
  const { id, over_ms: overMs, state, by, created_at: createdAt } = row
  return { id, scope: { kind: row.scope_kind, id: row.scope_id }, overMs, state, by, createdAt }
}
