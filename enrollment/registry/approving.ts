import type { DeviceView } from '#shared/api'
import { MusterError } from '#shared/errors'
import { type DeviceId, isAllowed } from '#shared/identity/device'
import type { Sqlite } from '#shared/sqlite'
import type { ApprovalRow, Approvals } from './approvals.ts'
import type { Certificates } from './certificates.ts'
import type { Fleets } from './fleets.ts'
import type { Intent } from './ledger.ts'
import type { Act, NewDevice, Registry } from './registry.ts'
import { DEVICE_VIEW_COLUMNS, type DeviceViewRow, deviceView } from './rows.ts'
import type { Store } from './store.ts'

type Statements = ReturnType<typeof prepareApproving>

export function prepareApproving(db: Sqlite) {
  return {
    device: db.prepare<[string], DeviceViewRow>(
      `SELECT ${DEVICE_VIEW_COLUMNS} FROM devices d WHERE d.id = ?`,
    ),
    insert: db.prepare<[string, string, string, number]>(
      `INSERT INTO devices (id, kind, fleet, batch, state, created_at) VALUES (?, 'device', ?, ?, 'expected', ?)`,
    ),
    expect: db.prepare<[number]>(`UPDATE devices SET state = 'expected' WHERE row = ?`),
    forget: ['DELETE FROM refusals WHERE bucket = ?', 'DELETE FROM devices WHERE row = ?'].map((sql) =>
      db.prepare<[number]>(sql),
    ),
  }
}

export interface ApprovingParts {
  readonly store: Store
  readonly fleets: Fleets
  readonly certificates: Certificates
  readonly approvals: Approvals
}

/** What an operator says about a device before it has a certificate. Brokers hear of none of it. */
export function openApproving(
  parts: ApprovingParts,
): Pick<Registry, 'approveDevice' | 'rejectDevice' | 'addDevice'> {
  const statements = prepareApproving(parts.store.db)
  const write = (act: Act, work: (of: { statements: Statements; log: Intent }) => DeviceId) =>
    parts.store.write(
      act,
      (log): DeviceView => deviceView(find(statements, work({ statements, log })), false),
    )
  return {
    approveDevice: (decision, act) => write(act, (at) => approve(parts, { ...at, ...decision })),
    rejectDevice: (decision, act) =>
      parts.store.write(act, (log) => reject(parts, { statements, log, ...decision })),
    addDevice: (device) =>
      write(device, ({ log }) => {
        expectDevice(parts, { statements, device })
        log.audit({ action: 'device.add', subject: `device:${device.id} batch:${device.batch}` })
        return device.id
      }),
  }
}

interface Deciding {
  readonly statements: Statements
  readonly log: Intent
  readonly id: string
  readonly spki: string
}

/** @throws MusterError not_found */
function find(statements: Statements, id: string): DeviceViewRow {
  const row = statements.device.get(id)
  if (row === undefined) throw new MusterError('not_found', `Cannot find the device "${id}"`)
  return row
}

/** The second of two approvers finds it done. @throws MusterError not_found, conflict */
function approve({ approvals }: ApprovingParts, { statements, log, id, spki }: Deciding): DeviceId {
  const device = find(statements, id)
  const approval = approvals.ofDevice(device.row)
  if (approval?.state === 'approved' && approval.spki === spki) return device.id
  const { row } = waiting('approve', { device, approval, spki })
  approvals.approve(row)
  statements.expect.run(device.row)
  log.audit({ action: 'device.approve', subject: `device:${id} key:${spki}` })
  return device.id
}

/** The use returns to the token, and a device that only the application had made is forgotten. @throws MusterError not_found, conflict */
function reject({ approvals }: ApprovingParts, { statements, log, id, spki }: Deciding): void {
  const device = find(statements, id)
  const approval = waiting('reject', { device, approval: approvals.ofDevice(device.row), spki })
  approvals.giveBack(approval)
  approvals.reject(approval.row)
  if (approval.made === 1) for (const statement of statements.forget) statement.run(device.row)
  else statements.expect.run(device.row)
  log.audit({ action: 'device.reject', subject: `device:${id} key:${spki}` })
}

/** A decision is about the key that was shown: another one may wait by now. @throws MusterError conflict */
function waiting(
  action: 'approve' | 'reject',
  of: { device: DeviceViewRow; approval: ApprovalRow | undefined; spki: string },
): ApprovalRow {
  const { device, approval, spki } = of
  if (!isAllowed(action, device.state) || approval === undefined) {
    throw new MusterError('conflict', `Cannot ${action} "${device.id}": it is ${device.state}`)
  }
  if (approval.spki === spki) return approval
  throw new MusterError('conflict', `Cannot ${action} "${device.id}": it waits with another key`)
}

/** @returns the row of the device that may now enroll without approval. @throws MusterError not_found (the batch), conflict, csr_key */
export function expectDevice(
  { fleets, certificates, approvals }: ApprovingParts,
  { statements, device }: { statements: Statements; device: NewDevice },
): DeviceViewRow {
  const { id, batch: name, spki, now } = device
  const batch = fleets.findBatch(name)
  if (batch === undefined) throw new MusterError('not_found', `Cannot find the batch "${name}"`)
  if (statements.device.get(id) === undefined) statements.insert.run(id, batch.fleet, batch.id, now)
  const known = find(statements, id)
  const isFree = approvals.ofDevice(known.row) === undefined && certificates.ofDevice(known.row).length === 0
  if (known.batch !== batch.id || known.state !== 'expected' || !isFree) {
    const why = known.batch === batch.id ? 'is known already' : 'belongs elsewhere'
    throw new MusterError('conflict', `Cannot add "${id}": a device or service with this id ${why}`)
  }
  if (spki !== null) {
    certificates.refuseForeignKey(spki, id)
    approvals.refuseForeignKey(spki, id)
    approvals.readmit(spki)
  }
  approvals.insert({ device: known.row, token: null, spki, state: 'approved', made: 0, created_at: now })
  return known
}
