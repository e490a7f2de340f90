import type { CertificateView, DeviceView } from '#shared/api'
import type { CertificateRecord, DeviceRecord } from '#shared/feed'
import type { CertificateState, DeviceId, DeviceState, IdentityKind } from '#shared/identity/device'

/** Rows as SQLite returns them; only the registry writes these columns, so their unions hold. */
export interface DeviceRow {
  readonly row: number
  readonly id: DeviceId
  readonly kind: IdentityKind
  readonly fleet: string
  readonly batch: string | null
  readonly state: DeviceState
  readonly last_seen_at: number | null
  readonly created_at: number
  /** As JSON: `{}` for none, and null for a policy that is the fleet's. */
  readonly attributes: string
  readonly policy: string | null
  readonly factor: string | null
}

/** One that is about to be recorded. */
export type NewDeviceRow = Omit<
  DeviceRow,
  'row' | 'state' | 'last_seen_at' | 'attributes' | 'policy' | 'factor'
> & {
  readonly row: null
}

export const DEVICE_COLUMNS = `d.row, d.id, d.kind, d.fleet, d.batch, d.state, d.last_seen_at, d.created_at, d.policy, d.factor,
  (SELECT json_group_object(a.name, a.value) FROM device_attributes a WHERE a.device = d.row) AS attributes`

/** Without the DER, which few readers need; `device` is the id. */
export interface CertificateRow {
  readonly row: number
  readonly serial: string
  readonly fingerprint: string | null
  readonly issuer: string
  readonly device_row: number
  readonly device: DeviceId
  readonly spki: string
  readonly state: CertificateState
  readonly not_before: number
  readonly not_after: number
  readonly renew_after: number
  readonly renew_before: number
  readonly superseded_from: number | null
  readonly revoked_at: number | null
  readonly reason: string | null
  readonly first_seen_at: number | null
  readonly predecessor: number | null
  readonly line: string
  readonly activates: 0 | 1
  readonly created_at: number
}

/**
 * The id of the device is looked up in a query of its own: a join with a bound value makes SQLite prepare the statement
 * anew at every call (better-sqlite3 clears what is bound, and the plan of a join may depend on it), for ten times the price.
 */
export const CERTIFICATE_COLUMNS = `c.row, c.serial, c.fingerprint, c.issuer, c.device AS device_row,
  (SELECT d.id FROM devices d WHERE d.row = c.device) AS device, c.spki, c.state, c.not_before, c.not_after, c.renew_after,
  c.renew_before, c.superseded_from, c.revoked_at, c.reason, c.first_seen_at, c.predecessor, c.line, c.activates, c.created_at`

export const CERTIFICATES = 'certificates c'

/** What `ORDER BY row DESC` says; with a bound value that too would make SQLite prepare the statement at every call. */
export function newestFirst<Row extends { readonly row: number }>(rows: readonly Row[]): Row[] {
  return rows.toSorted((a, b) => b.row - a.row)
}

export function deviceRecord(row: DeviceRow): DeviceRecord {
  const { id, kind, fleet, batch, state, attributes, policy, factor } = row
  return {
    ...{ id, kind, fleet, batch, state },
    // Written by the registry only; left out where there is nothing, as brokers of older versions know it.
    ...(attributes === '{}' ? {} : { attributes: JSON.parse(attributes) }),
    ...(policy === null ? {} : { policy: JSON.parse(policy) }),
    ...(factor === null ? {} : { factor: JSON.parse(factor) }),
  }
}

/** Null for one that has not been signed: nobody outside the registry hears of it. */
export function certificateRecord(row: CertificateRow): CertificateRecord | null {
  if (row.fingerprint === null || row.state === 'reserved') return null
  return {
    fingerprint: row.fingerprint,
    serial: row.serial,
    issuer: row.issuer,
    device: row.device,
    state: row.state,
    notBefore: row.not_before,
    notAfter: row.not_after,
    renewAfter: row.renew_after,
    renewBefore: row.renew_before,
    supersededFrom: row.superseded_from,
    revokedAt: row.revoked_at,
    reason: row.reason,
  }
}

export function certificateView(row: CertificateRow): CertificateView {
  return {
    serial: row.serial,
    fingerprint: row.fingerprint,
    issuer: row.issuer,
    device: row.device,
    state: row.state,
    notBefore: row.not_before,
    notAfter: row.not_after,
    renewAfter: row.renew_after,
    renewBefore: row.renew_before,
    supersededFrom: row.superseded_from,
    revokedAt: row.revoked_at,
    reason: row.reason,
    firstSeenAt: row.first_seen_at,
  }
}

/** A device with what is computed about it. */
export interface DeviceViewRow extends DeviceRow {
  readonly online: 0 | 1
  readonly expires_at: number | null
  /** Issuer of its newest live certificate. */
  readonly issuer: string | null
  /** Of one that is pending: the key that it asked for, and when. */
  readonly applied_spki: string | null
  readonly applied_at: number | null
}

export const DEVICE_VIEW_COLUMNS = `${DEVICE_COLUMNS},
  EXISTS (SELECT 1 FROM connections n WHERE n.device = d.row) AS online,
  (SELECT MAX(x.not_after) FROM certificates x WHERE x.device = d.row AND x.state IN ('issued', 'active')) AS expires_at,
  (SELECT x.issuer FROM certificates x WHERE x.device = d.row AND x.state IN ('issued', 'active')
     ORDER BY x.row DESC LIMIT 1) AS issuer,
  CASE d.state WHEN 'pending' THEN (SELECT a.spki FROM approvals a WHERE a.device = d.row) END AS applied_spki,
  CASE d.state WHEN 'pending' THEN (SELECT a.created_at FROM approvals a WHERE a.device = d.row) END AS applied_at`

export function deviceView(row: DeviceViewRow, held: boolean): DeviceView {
  const { applied_spki: spki, applied_at: since } = row
  return {
    id: row.id,
    kind: row.kind,
    fleet: row.fleet,
    batch: row.batch,
    state: row.state,
    held,
    online: row.online === 1,
    lastSeenAt: row.last_seen_at,
    expiresAt: row.expires_at,
    createdAt: row.created_at,
    application: spki === null || since === null ? null : { spki, since },
  }
}
