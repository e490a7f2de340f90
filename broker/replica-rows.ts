import type {
  CertificateRecord,
  Change,
  DeviceRecord,
  FleetRecord,
  HoldRecord,
  IssuerRecord,
} from '#shared/feed'
import type { Sqlite } from '#shared/sqlite'

/** Writes one change under a generation; the caller owns the transaction. Writing it again changes nothing. */
export type WriteChange = (generation: number, change: Change) => void

export function prepareWriter(db: Sqlite): WriteChange {
  const issuer = db.prepare('INSERT OR REPLACE INTO issuers VALUES (?, ?, ?, ?)')
  const fleet = db.prepare('INSERT OR REPLACE INTO fleets VALUES (?, ?, ?, ?)')
  const device = db.prepare('INSERT OR REPLACE INTO devices VALUES (?, ?, ?, ?, ?, ?)')
  const certificate = db.prepare(
    'INSERT OR REPLACE INTO certificates VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)',
  )
  const member = db.prepare('INSERT OR IGNORE INTO members VALUES (?, ?, ?)')
  // An upsert, because a hold that is delivered again keeps its `reported`.
  const hold = db.prepare(
    `INSERT INTO holds (generation, id, kind, scope, state) VALUES (?, ?, ?, ?, ?)
     ON CONFLICT DO UPDATE SET kind = excluded.kind, scope = excluded.scope, state = excluded.state`,
  )
  const trust = db.prepare('INSERT OR REPLACE INTO trust VALUES (?, ?, ?)')
  const forgetCertificates = db.prepare('DELETE FROM certificates WHERE generation = ? AND device = ?')
  const forgetDevice = db.prepare('DELETE FROM devices WHERE generation = ? AND id = ?')

  return (generation, change) => {
    switch (change.kind) {
      case 'issuer':
        issuer.run(generation, change.issuer.id, change.issuer.pem, change.issuer.trusted ? 1 : 0)
        return
      case 'fleet': {
        const { id, policy, policyEpoch } = change.fleet
        fleet.run(generation, id, JSON.stringify(policy), policyEpoch)
        return
      }
      case 'device': {
        const { id, kind, fleet, batch, state } = change.device
        device.run(generation, id, kind, fleet, batch, state)
        return
      }
      case 'certificate':
        certificate.run(generation, ...certificateColumns(change.certificate))
        return
      case 'members':
        for (const id of change.devices) member.run(generation, change.hold, id)
        return
      case 'hold': {
        const { id, scope, state } = change.hold
        hold.run(generation, id, scope.kind, scope.id, state)
        return
      }
      case 'forgotten':
        forgetCertificates.run(generation, change.device)
        forgetDevice.run(generation, change.device)
        return
      case 'trust':
        trust.run(generation, change.trust.version, JSON.stringify(change.trust))
        return
      default:
        change satisfies never
        throw new TypeError('A change of an unknown kind passed the schema')
    }
  }
}

function certificateColumns(record: CertificateRecord) {
  const { fingerprint, serial, issuer, device, state, notBefore, notAfter } = record
  const { supersededFrom, revokedAt, reason, renewAfter = null, renewBefore = null } = record
  const life = [state, notBefore, notAfter, supersededFrom, revokedAt, reason, renewAfter, renewBefore]
  return [fingerprint, serial, issuer, device, ...life]
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

/** Point reads of the replica, each a few microseconds. */
export interface ReplicaReader {
  credential(generation: number, fingerprint: string): CredentialRow | null
  /** Ids of the holds, of any state, that have the device as a member. */
  holdsWithMember(generation: number, device: string): string[]
  isMember(generation: number, hold: string, device: string): boolean
  /** How many members the hold has, counted up to `limit`. */
  countMembers(generation: number, hold: string, limit: number): number
  members(generation: number, hold: string): string[]
  hasLiveCertificate(generation: number, device: string): boolean
  trust(generation: number): TrustRow | null
}

type CertificateColumns = [
  ...[serial: string, issuer: string, device: string, state: CertificateRecord['state']],
  ...[notBefore: number, notAfter: number, supersededFrom: number | null, revokedAt: number | null],
  ...[reason: string | null, renewAfter: number | null, renewBefore: number | null],
]
type DeviceColumns = [
  ...[kind: DeviceRecord['kind'], fleet: string, batch: string | null],
  state: DeviceRecord['state'],
]

export function prepareReader(db: Sqlite): ReplicaReader {
  // Two point reads: a join of the two costs three times as much.
  const certificate = db
    .prepare<[number, string], CertificateColumns>(
      `SELECT serial, issuer, device, state, not_before, not_after, superseded_from, revoked_at, reason,
         renew_after, renew_before FROM certificates WHERE generation = ? AND fingerprint = ?`,
    )
    .raw()
  const device = db
    .prepare<[number, string], DeviceColumns>(
      'SELECT kind, fleet, batch, state FROM devices WHERE generation = ? AND id = ?',
    )
    .raw()
  const holds = db
    .prepare<[number, string], string>('SELECT hold FROM members WHERE generation = ? AND device = ?')
    .pluck()
  const member = db
    .prepare<[number, string, string], number>(
      'SELECT 1 FROM members WHERE generation = ? AND hold = ? AND device = ?',
    )
    .pluck()
  const count = db
    .prepare<[number, string, number], number>(
      'SELECT count(*) FROM (SELECT 1 FROM members WHERE generation = ? AND hold = ? LIMIT ?)',
    )
    .pluck()
  const members = db
    .prepare<[number, string], string>('SELECT device FROM members WHERE generation = ? AND hold = ?')
    .pluck()
  const live = db
    .prepare<[number, string], number>(
      `SELECT 1 FROM certificates WHERE generation = ? AND device = ? AND state IN ('issued', 'active') LIMIT 1`,
    )
    .pluck()
  const trust = db.prepare<[number], TrustRow>('SELECT version, bundle FROM trust WHERE generation = ?')

  return {
    credential(generation, fingerprint) {
      const row = certificate.get(generation, fingerprint)
      if (row === undefined) return null
      const owner = device.get(generation, row[2])
      return owner === undefined ? null : toCredential(fingerprint, row, owner)
    },
    holdsWithMember: (generation, device) => holds.all(generation, device),
    isMember: (generation, hold, device) => member.get(generation, hold, device) !== undefined,
    countMembers: (generation, hold, limit) => count.get(generation, hold, limit) ?? 0,
    members: (generation, hold) => members.all(generation, hold),
    hasLiveCertificate: (generation, device) => live.get(generation, device) !== undefined,
    trust: (generation) => trust.get(generation) ?? null,
  }
}

function toCredential(fingerprint: string, row: CertificateColumns, owner: DeviceColumns): CredentialRow {
  const [serial, issuer, id, certificateState, notBefore, notAfter, supersededFrom, revokedAt, reason] = row
  const [renewAfter, renewBefore] = [row[9], row[10]]
  const window = renewAfter === null || renewBefore === null ? {} : { renewAfter, renewBefore }
  const [kind, fleet, batch, state] = owner
  const life = { notBefore, notAfter, supersededFrom, revokedAt, reason }
  return {
    certificate: { fingerprint, serial, issuer, device: id, state: certificateState, ...life, ...window },
    device: { id, kind, fleet, batch, state },
  }
}

/** What is kept in memory of a generation: it is small, and read at every CONNECT. */
export interface ReplicaMemory {
  readonly issuers: IssuerRecord[]
  readonly fleets: FleetRecord[]
  /** Active ones only. */
  readonly holds: HoldRecord[]
}

export function readMemory(db: Sqlite, generation: number): ReplicaMemory {
  const issuers = db
    .prepare<[number], { id: string; pem: string; trusted: number }>(
      'SELECT id, pem, trusted FROM issuers WHERE generation = ?',
    )
    .all(generation)
  const fleets = db
    .prepare<[number], { id: string; policy: string; policyEpoch: number }>(
      'SELECT id, policy, policy_epoch AS policyEpoch FROM fleets WHERE generation = ?',
    )
    .all(generation)
  const holds = db
    .prepare<[number], { id: string; kind: HoldRecord['scope']['kind']; scope: string }>(
      "SELECT id, kind, scope FROM holds WHERE generation = ? AND state = 'active'",
    )
    .all(generation)
  return {
    issuers: issuers.map((row) => ({ ...row, trusted: row.trusted === 1 })),
    fleets: fleets.map((row) => ({ ...row, policy: JSON.parse(row.policy) })),
    holds: holds.map(({ id, kind, scope }) => ({ id, scope: { kind, id: scope }, state: 'active' as const })),
  }
}
