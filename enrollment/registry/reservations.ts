import type { CertificateRecord } from '#shared/feed'
import type { Sqlite } from '#shared/sqlite'
import type { DeviceRows } from './device-rows.ts'
import type { Finishing } from './finish.ts'
import type { Intent } from './ledger.ts'
import type { Dates } from './profile-rules.ts'
import type { Profiles } from './profiles.ts'
import type { Actor, DeviceWish, Issuance, IssuingCa, SignedCertificate, SignNow } from './registry.ts'
import { type CertificateRow, type DeviceRow, deviceRecord, type NewDeviceRow } from './rows.ts'
import { isExpired } from './validity.ts'

/** A certificate that is about to be recorded. */
export interface Reservation {
  readonly now: number
  readonly serial: string
  readonly issuer: IssuingCa
  readonly device: DeviceRow | NewDeviceRow
  readonly spki: string
  /** Null for a service, which has no profile to ask for more of. */
  readonly wish: DeviceWish | null
  readonly token: number | null
  readonly predecessor: number | null
  /** A sighting of it supersedes the older certificates of the same device and line. */
  readonly line: string
  /** Once signed it takes an expected or retired device into service. */
  readonly activates: boolean
}

/** Within which intent it is recorded, and who signs it there. */
export interface Recording {
  readonly log: Intent
  readonly signNow: SignNow | undefined
}

/** One that was asked for before, by the same caller. */
export interface Resumption {
  readonly device: DeviceRow
  readonly now: number
  readonly issuer: IssuingCa
  readonly by: Actor
}

/** What stands in the row, in the order of its columns. */
type Columns = (string | number | Buffer | null)[]

function prepare(db: Sqlite) {
  return {
    der: db.prepare<[number], { der: Buffer | null }>('SELECT der FROM certificates WHERE row = ?'),
    insert: db.prepare<Columns>(
      `INSERT INTO certificates
         (serial, fingerprint, issuer, device, spki, state, not_before, not_after, renew_after, renew_before, token,
          predecessor, line, activates, created_at, der)
       VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)`,
    ),
    redate: db.prepare<[Dates & { issuer: string; row: number }]>(
      `UPDATE certificates SET issuer = @issuer, not_before = @notBefore, not_after = @notAfter,
         renew_after = @renewAfter, renew_before = @renewBefore WHERE row = @row`,
    ),
  }
}

interface ReservationParts {
  readonly profiles: Profiles
  readonly devices: DeviceRows
  readonly finishing: Finishing
}

/** Records what is being signed, or about to be, and takes it up again when it was interrupted. */
export function openReservations(db: Sqlite, { profiles, devices, finishing }: ReservationParts) {
  const statements = prepare(db)

  /** What was asked for before; one that expired unsigned gets new dates: nobody can be signing it any more. */
  function found(row: CertificateRow, { device, now, issuer }: Resumption): Issuance {
    const { serial } = row
    const names = profiles.names(device, null)
    const certificate = statements.der.get(row.row)?.der ?? null
    if (row.state !== 'reserved' || !isExpired(row.not_after, now)) {
      return issuanceOf(device, { serial, issuer: row.issuer, ...datesIn(row), ...names, certificate })
    }
    const dates = profiles.dates({ now, issuer, serial, fleet: device.fleet })
    statements.redate.run({ ...dates, issuer: issuer.id, row: row.row })
    return issuanceOf(device, { serial, issuer: issuer.id, ...dates, ...names, certificate })
  }

  return {
    /** @throws MusterError csr_key, csr_subject: what the profile of the fleet does not grant; what `signNow` throws */
    reserve(of: Reservation, { log, signNow }: Recording): Issuance {
      const { names, dates } = profiles.grant(of)
      const { serial, issuer } = of
      const issuance = issuanceOf(of.device, {
        serial,
        issuer: issuer.id,
        ...dates,
        ...names,
        certificate: null,
      })
      const signed = signNow?.(issuance) ?? null
      const isIn = of.activates && signed !== null
      const device = isIn ? devices.takeIn(of.device) : devices.expect(of.device)
      statements.insert.run(...columns({ ...of, device }, { dates, signed }))
      if (signed === null) return issuance
      log.change({ kind: 'device', device: deviceRecord(device) })
      log.change({ kind: 'certificate', certificate: issuedRecord(issuance, signed) })
      return { ...issuance, certificate: signed.der }
    },
    /** The issuance of a certificate that was asked for before. */
    resume(row: CertificateRow, at: Resumption, { log, signNow }: Recording): Issuance {
      const issuance = found(row, at)
      const signed = issuance.certificate === null ? signNow?.(issuance) : null
      if (!signed) return issuance
      finishing.finish({ reserved: row, signed, by: at.by }, log)
      return { ...issuance, certificate: signed.der }
    },
  }
}
export type Reservations = ReturnType<typeof openReservations>

function issuanceOf(
  of: DeviceRow | NewDeviceRow,
  signed: Omit<Issuance, 'device' | 'kind' | 'fleet'>,
): Issuance {
  const { id: device, kind, fleet } = of
  return { device, kind, fleet, ...signed }
}

function datesIn(row: CertificateRow): Dates {
  const { not_before: notBefore, not_after: notAfter } = row
  return { notBefore, notAfter, renewAfter: row.renew_after, renewBefore: row.renew_before }
}

function columns(
  of: Reservation & { device: DeviceRow },
  { dates, signed }: { dates: Dates; signed: SignedCertificate | null },
): Columns {
  return [
    of.serial,
    signed?.fingerprint ?? null,
    of.issuer.id,
    of.device.row,
    of.spki,
    signed === null ? 'reserved' : 'issued',
    dates.notBefore,
    dates.notAfter,
    dates.renewAfter,
    dates.renewBefore,
    of.token,
    of.predecessor,
    of.line,
    of.activates ? 1 : 0,
    of.now,
    signed?.der ?? null,
  ]
}

/** What `certificateRecord` reads from the row that has just been written. */
function issuedRecord(issuance: Issuance, { fingerprint }: SignedCertificate): CertificateRecord {
  const { serial, issuer, device, notBefore, notAfter, renewAfter, renewBefore } = issuance
  const dates = { notBefore, notAfter, renewAfter, renewBefore }
  return {
    fingerprint,
    serial,
    issuer,
    device,
    state: 'issued',
    ...dates,
    supersededFrom: null,
    revokedAt: null,
    reason: null,
  }
}
