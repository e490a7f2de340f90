import type {
  CertificateRecord,
  Change,
  Cursor,
  DeviceRecord,
  FleetRecord,
  HoldRecord,
  IssuerRecord,
} from '#shared/feed'
import type { Sqlite, Statement } from '#shared/sqlite'
import { prepareOrders } from './purge-rows.ts'

/** Where a change stands. */
export interface Place extends Cursor {
  /** When it was committed. */
  readonly at: number
}

/** Writes one change; the caller owns the transaction. Writing it again changes nothing. */
export type WriteChange = (change: Change, place: Place) => void

const INSERT_DEVICE = 'INSERT INTO devices (id, kind, fleet, batch, state, also) VALUES (?, ?, ?, ?, ?, ?)'
const INSERT_CERTIFICATE = `INSERT INTO certificates (fingerprint, serial, issuer, device, state, not_before, not_after,
  superseded_from, revoked_at, reason, renew_after, renew_before) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)`

/** How devices and certificates are written. */
export interface Inserts {
  readonly device: Statement<unknown[], unknown>
  readonly certificate: Statement<unknown[], unknown>
}

/** For a state with its indexes. */
export function upserting(db: Sqlite): Inserts {
  const device = db.prepare(
    `${INSERT_DEVICE} ON CONFLICT (id) DO UPDATE SET
       kind = excluded.kind, fleet = excluded.fleet, batch = excluded.batch, state = excluded.state, also = excluded.also`,
  )
  const certificate = db.prepare(
    `${INSERT_CERTIFICATE} ON CONFLICT (fingerprint) DO UPDATE SET
       serial = excluded.serial, issuer = excluded.issuer, device = excluded.device, state = excluded.state,
       not_before = excluded.not_before, not_after = excluded.not_after, superseded_from = excluded.superseded_from,
       revoked_at = excluded.revoked_at, reason = excluded.reason, renew_after = excluded.renew_after,
       renew_before = excluded.renew_before`,
  )
  return { device, certificate }
}

/** For a state without indexes: every device and every certificate is appended, also those that are there already. */
export function appending(db: Sqlite): Inserts {
  return { device: db.prepare(INSERT_DEVICE), certificate: db.prepare(INSERT_CERTIFICATE) }
}

export function prepareWriter(db: Sqlite, { device, certificate }: Inserts): WriteChange {
  const issuer = db.prepare('INSERT OR REPLACE INTO issuers VALUES (?, ?, ?)')
  const fleet = db.prepare('INSERT OR REPLACE INTO fleets VALUES (?, ?, ?, ?)')
  const member = db.prepare('INSERT OR IGNORE INTO members VALUES (?, ?)')
  // An upsert, because a hold that is delivered again keeps its `reported`.
  const hold = db.prepare(
    `INSERT INTO holds (id, kind, scope, state, purge_retained) VALUES (?, ?, ?, ?, ?)
     ON CONFLICT DO UPDATE SET kind = excluded.kind, scope = excluded.scope, state = excluded.state,
       purge_retained = excluded.purge_retained`,
  )
  const trust = db.prepare('INSERT OR REPLACE INTO trust VALUES (1, ?, ?)')
  const forgetCertificates = db.prepare('DELETE FROM certificates WHERE device = ?')
  const forgetDevice = db.prepare('DELETE FROM devices WHERE id = ?')
  const orders = prepareOrders(db)

  return (change, place) => {
    switch (change.kind) {
      case 'issuer':
        issuer.run(change.issuer.id, change.issuer.pem, change.issuer.trusted ? 1 : 0)
        return
      case 'fleet': {
        const { id, policy, policyEpoch, factor } = change.fleet
        const asked = factor === undefined ? null : JSON.stringify(factor)
        fleet.run(id, JSON.stringify(policy), policyEpoch, asked)
        return
      }
      case 'device':
        device.run(deviceColumns(change.device))
        return
      case 'certificate':
        certificate.run(certificateColumns(change.certificate))
        return
      case 'members':
        for (const id of change.devices) member.run(change.hold, id)
        return
      case 'hold': {
        const { id, scope, state, purgeRetained = false } = change.hold
        hold.run(id, scope.kind, scope.id, state, purgeRetained ? 1 : 0)
        if (state === 'active') orders.byHold(change.hold, place)
        return
      }
      case 'purge':
        orders.byRecord(change.purge)
        return
      case 'forgotten':
        forgetCertificates.run(change.device)
        forgetDevice.run(change.device)
        return
      case 'trust':
        trust.run(change.trust.version, JSON.stringify(change.trust))
        return
      default:
        change satisfies never
        throw new TypeError('A change of an unknown kind passed the schema')
    }
  }
}

/** A value of a column of type ANY. */
type Octets = Buffer | string

/** Hex as octets takes half the room; what is not hex of whole octets stays as it is. */
function octets(hex: string): Octets {
  const bytes = Buffer.from(hex, 'hex')
  return bytes.length * 2 === hex.length ? bytes : hex
}

function hexOf(value: Octets): string {
  return typeof value === 'string' ? value : value.toString('hex')
}

function deviceColumns({ id, kind, fleet, batch, state, ...also }: DeviceRecord): unknown[] {
  let rest: string | null = null
  for (const _ in also) rest ??= JSON.stringify(also)
  return [id, kind, fleet, batch, state, rest]
}

function certificateColumns(record: CertificateRecord): unknown[] {
  const { device, state, notBefore, notAfter } = record
  const { supersededFrom, revokedAt, reason, renewAfter = null, renewBefore = null } = record
  const names = [octets(record.fingerprint), octets(record.serial), octets(record.issuer)]
  const life = [state, notBefore, notAfter, supersededFrom, revokedAt, reason, renewAfter, renewBefore]
  return [...names, device, ...life]
}

/** What the registry says about one certificate and its device; the fleet and the holds are in memory. */
export interface CredentialRow {
  readonly certificate: CertificateRecord
  readonly device: DeviceRecord
}

/** What devices are to trust, as JSON. */
export interface TrustRow {
  readonly version: number
  readonly bundle: string
}

/** Point reads of a state, each a few microseconds. */
export interface StateReader {
  credential(fingerprint: string): CredentialRow | null
  device(id: string): DeviceRecord | null
  /** Ids of the holds, of any state, that have the device as a member. */
  holdsWithMember(device: string): string[]
  isMember(hold: string, device: string): boolean
  /** How many members the hold has, counted up to `limit`. */
  countMembers(hold: string, limit: number): number
  members(hold: string): string[]
  hasLiveCertificate(device: string): boolean
  trust(): TrustRow | null
}

type CertificateColumns = [
  ...[serial: Octets, issuer: Octets, device: string, state: CertificateRecord['state']],
  ...[notBefore: number, notAfter: number, supersededFrom: number | null, revokedAt: number | null],
  ...[reason: string | null, renewAfter: number | null, renewBefore: number | null],
]
type DeviceColumns = [
  ...[kind: DeviceRecord['kind'], fleet: string, batch: string | null],
  ...[state: DeviceRecord['state'], also: string | null],
]

export function prepareReader(db: Sqlite): StateReader {
  // Two point reads: a join of the two costs three times as much.
  const certificate = db
    .prepare<[Octets], CertificateColumns>(
      `SELECT serial, issuer, device, state, not_before, not_after, superseded_from, revoked_at, reason,
         renew_after, renew_before FROM certificates WHERE fingerprint = ?`,
    )
    .raw()
  const device = db
    .prepare<[string], DeviceColumns>('SELECT kind, fleet, batch, state, also FROM devices WHERE id = ?')
    .raw()
  const holds = db.prepare<[string], string>('SELECT hold FROM members WHERE device = ?').pluck()
  const member = db
    .prepare<[string, string], number>('SELECT 1 FROM members WHERE hold = ? AND device = ?')
    .pluck()
  const count = db
    .prepare<[string, number], number>('SELECT count(*) FROM (SELECT 1 FROM members WHERE hold = ? LIMIT ?)')
    .pluck()
  const members = db.prepare<[string], string>('SELECT device FROM members WHERE hold = ?').pluck()
  const live = db
    .prepare<[string], number>(
      `SELECT 1 FROM certificates WHERE device = ? AND state IN ('issued', 'active') LIMIT 1`,
    )
    .pluck()
  const trust = db.prepare<[], TrustRow>('SELECT version, bundle FROM trust')

  return {
    credential(fingerprint) {
      const row = certificate.get(octets(fingerprint))
      if (row === undefined) return null
      const owner = device.get(row[2])
      return owner === undefined ? null : toCredential(fingerprint, row, owner)
    },
    device(id) {
      const row = device.get(id)
      return row === undefined ? null : toDevice(id, row)
    },
    holdsWithMember: (device) => holds.all(device),
    isMember: (hold, device) => member.get(hold, device) !== undefined,
    countMembers: (hold, limit) => count.get(hold, limit) ?? 0,
    members: (hold) => members.all(hold),
    hasLiveCertificate: (device) => live.get(device) !== undefined,
    trust: () => trust.get() ?? null,
  }
}

function toCredential(fingerprint: string, row: CertificateColumns, owner: DeviceColumns): CredentialRow {
  const [, , id, certificateState, notBefore, notAfter, supersededFrom, revokedAt, reason] = row
  const [serial, issuer] = [hexOf(row[0]), hexOf(row[1])]
  const [renewAfter, renewBefore] = [row[9], row[10]]
  const window = renewAfter === null || renewBefore === null ? {} : { renewAfter, renewBefore }
  const life = { notBefore, notAfter, supersededFrom, revokedAt, reason }
  return {
    certificate: { fingerprint, serial, issuer, device: id, state: certificateState, ...life, ...window },
    device: toDevice(id, owner),
  }
}

function toDevice(id: string, [kind, fleet, batch, state, also]: DeviceColumns): DeviceRecord {
  return { id, kind, fleet, batch, state, ...(also === null ? {} : JSON.parse(also)) }
}

/** What is kept in memory of a state: it is small, and read at every CONNECT. */
export interface StateMemory {
  readonly issuers: IssuerRecord[]
  readonly fleets: FleetRecord[]
  /** Active ones only. */
  readonly holds: HoldRecord[]
}

export function readMemory(db: Sqlite): StateMemory {
  const issuers = db
    .prepare<[], { id: string; pem: string; trusted: number }>('SELECT id, pem, trusted FROM issuers')
    .all()
  const fleets = db
    .prepare<[], { id: string; policy: string; policyEpoch: number; factor: string | null }>(
      'SELECT id, policy, policy_epoch AS policyEpoch, factor FROM fleets',
    )
    .all()
  const holds = db
    .prepare<[], { id: string; kind: HoldRecord['scope']['kind']; scope: string; purge: 0 | 1 }>(
      "SELECT id, kind, scope, purge_retained AS purge FROM holds WHERE state = 'active'",
    )
    .all()
  return {
    issuers: issuers.map((row) => ({ ...row, trusted: row.trusted === 1 })),
    fleets: fleets.map(({ factor, ...row }) => ({
      ...row,
      policy: JSON.parse(row.policy),
      ...(factor === null ? {} : { factor: JSON.parse(factor) }),
    })),
    holds: holds.map(({ id, kind, scope, purge }) => ({
      ...{ id, scope: { kind, id: scope }, state: 'active' as const },
      ...(purge === 1 ? { purgeRetained: true } : {}),
    })),
  }
}
