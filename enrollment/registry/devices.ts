import { setImmediate } from 'node:timers/promises'
import type { DeviceDetail, DevicePage, DeviceView } from '#shared/api'
import { MusterError } from '#shared/errors'
import { isAllowed } from '#shared/identity/device'
import type { Sqlite } from '#shared/sqlite'
import type { Attributes } from './attributes.ts'
import type { Certificates } from './certificates.ts'
import type { Holds } from './holds.ts'
import type { Intent } from './ledger.ts'
import type { RefusalLog } from './refusals.ts'
import type { Credential, Registry } from './registry.ts'
import {
  type CertificateRow,
  certificateView,
  DEVICE_VIEW_COLUMNS,
  type DeviceViewRow,
  deviceRecord,
  deviceView,
} from './rows.ts'
import type { Store } from './store.ts'

/** Comes after every id. */
const END = '\u{10ffff}'

interface Filter {
  readonly fleet: string | null
  readonly batch: string | null
  readonly state: string | null
  readonly after: string
  /** The last id that is looked at. */
  readonly until: string
  readonly limit: number
}

type Statements = ReturnType<typeof prepare>

function prepare(db: Sqlite) {
  /** `driver` is the condition whose index finds the page; the other filters only thin it out. */
  const page = (driver: string) => ({
    rows: db.prepare<[Filter], DeviceViewRow>(
      `SELECT ${DEVICE_VIEW_COLUMNS} FROM devices d WHERE ${driver} AND d.id > @after AND d.id <= @until
         AND (@fleet IS NULL OR d.fleet = @fleet) AND (@batch IS NULL OR d.batch = @batch)
         AND (@state IS NULL OR d.state = @state)
       ORDER BY d.id LIMIT @limit`,
    ),
    /** The id with which a turn ends, none when there are no more rows. */
    until: db
      .prepare<[Omit<Filter, 'until' | 'limit'> & { before: number }], string>(
        `SELECT d.id FROM devices d WHERE ${driver} AND d.id > @after ORDER BY d.id LIMIT 1 OFFSET @before`,
      )
      .pluck(),
  })
  return {
    page: page('TRUE'),
    pageOfFleet: page('d.fleet = @fleet'),
    pageOfBatch: page('d.batch = @batch'),
    show: db.prepare<[string], DeviceViewRow>(`SELECT ${DEVICE_VIEW_COLUMNS} FROM devices d WHERE d.id = ?`),
    retire: db.prepare<[number]>(`UPDATE devices SET state = 'retired' WHERE row = ?`),
    /** A certificate that is being signed no longer takes the device back into service. */
    disarm: db.prepare<[number]>(
      `UPDATE certificates SET activates = 0 WHERE device = ? AND state = 'reserved'`,
    ),
    cancelReissues: db.prepare<[number, string]>(
      'UPDATE tokens SET cancelled_at = ? WHERE device = ? AND cancelled_at IS NULL AND used < uses',
    ),
  }
}

interface DeviceParts {
  readonly store: Store
  readonly rowsInTurn: number
  readonly attributes: Attributes
  readonly certificates: Certificates
  readonly holds: Holds
  readonly refusals: RefusalLog
}

type DeviceIntents = Pick<Registry, 'listDevices' | 'showDevice' | 'retireDevice' | 'findCredential'>

export function openDevices(parts: DeviceParts): DeviceIntents {
  const statements = prepare(parts.store.db)
  return {
    listDevices: (page) => listDevices(parts, { statements, page }),
    showDevice: (id) =>
      parts.store.read((): DeviceDetail => {
        const row = find(statements, id)
        const holds = parts.holds.on(holdable(row))
        return {
          ...deviceView(row, holds.length > 0),
          attributes: parts.attributes.of(row.row),
          certificates: parts.certificates.ofDevice(row.row).map(certificateView),
          holds,
          refusals: parts.refusals.of({ device: id }),
        }
      }),
    retireDevice: (id, act) => parts.store.write(act, (log) => retire(statements, { id, now: act.now, log })),
    findCredential: (key) =>
      parts.store.read(() => {
        const { byFingerprint, bySerial } = parts.certificates
        const certificate = 'serial' in key ? bySerial(key.serial) : byFingerprint(key.fingerprint)
        return certificate === undefined ? null : credential(parts, { statements, certificate })
      }),
  }
}

/** Each device as it is at one moment; a filter that few pass makes the page take several turns of the event loop. */
async function listDevices(
  parts: DeviceParts,
  { statements, page }: { statements: Statements; page: Parameters<Registry['listDevices']>[0] },
): Promise<DevicePage> {
  const { fleet = null, batch = null, state = null, limit } = page
  const whole = fleet === null ? statements.page : statements.pageOfFleet
  const { rows, until } = batch === null ? whole : statements.pageOfBatch
  const isThinned = state !== null || (fleet !== null && batch !== null)
  const devices: DeviceView[] = []
  for (let after = page.after ?? ''; ; await setImmediate()) {
    const filter = { fleet, batch, state, after }
    const turn = await parts.store.read(() => {
      const last = (isThinned ? until.get({ ...filter, before: parts.rowsInTurn - 1 }) : undefined) ?? END
      const found = rows.all({ ...filter, until: last, limit: limit + 1 - devices.length })
      return { last, found: found.map((row) => deviceView(row, parts.holds.on(holdable(row)).length > 0)) }
    })
    devices.push(...turn.found)
    if (turn.last === END || devices.length > limit) break
    after = turn.last
  }
  const shown = devices.slice(0, limit)
  return { devices: shown, next: devices.length > limit ? (shown.at(-1)?.id ?? null) : null }
}

/** @throws MusterError not_found */
function find(statements: Statements, id: string): DeviceViewRow {
  const row = statements.show.get(id)
  if (row === undefined) throw new MusterError('not_found', `Cannot find the device "${id}"`)
  return row
}

function holdable({ id, batch, fleet, issuer }: DeviceViewRow) {
  return { device: id, batch, fleet, issuer }
}

/** @throws MusterError not_found, conflict */
function retire(statements: Statements, { id, now, log }: { id: string; now: number; log: Intent }): void {
  const row = find(statements, id)
  if (!isAllowed('retire', row.state))
    throw new MusterError('conflict', `Cannot retire "${id}": it is ${row.state}`)
  statements.retire.run(row.row)
  statements.disarm.run(row.row)
  statements.cancelReissues.run(now, id)
  log.change({ kind: 'device', device: { ...deviceRecord(row), state: 'retired' } })
  log.audit({ action: 'device.retire', subject: `device:${id}` })
}

/** Null while the certificate is only reserved: nobody can hold it. */
function credential(
  { certificates, holds }: DeviceParts,
  { statements, certificate }: { statements: Statements; certificate: CertificateRow },
): Credential | null {
  const der = certificates.der(certificate.row)
  if (der === null) return null
  const row = find(statements, certificate.device)
  const [hold] = holds.on({ ...holdable(row), issuer: certificate.issuer })
  return {
    certificate: certificateView(certificate),
    device: deviceView(row, hold !== undefined),
    hold: hold === undefined ? null : { id: hold.id, scope: hold.scope },
    der,
  }
}
