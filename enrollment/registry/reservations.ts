import type { Sqlite } from '#shared/sqlite'
import type { Dates } from './profile-rules.ts'
import type { Profiles } from './profiles.ts'
import type { DeviceWish, Issuance, IssuingCa } from './registry.ts'
import type { CertificateRow, DeviceRow } from './rows.ts'
import { isExpired } from './validity.ts'

/** A certificate that is about to be recorded as `reserved`. */
export interface Reservation {
  readonly now: number
  readonly serial: string
  readonly issuer: IssuingCa
  readonly device: DeviceRow
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

interface ReservedColumns {
  serial: string
  issuer: string
  device: number
  spki: string
  not_before: number
  not_after: number
  renew_after: number
  renew_before: number
  token: number | null
  predecessor: number | null
  line: string
  activates: 0 | 1
  created_at: number
}

function prepare(db: Sqlite) {
  return {
    der: db.prepare<[number], { der: Buffer | null }>('SELECT der FROM certificates WHERE row = ?'),
    insert: db.prepare<[ReservedColumns]>(
      `INSERT INTO certificates
         (serial, issuer, device, spki, state, not_before, not_after, renew_after, renew_before, token, predecessor,
          line, activates, created_at)
       VALUES (@serial, @issuer, @device, @spki, 'reserved', @not_before, @not_after, @renew_after, @renew_before,
         @token, @predecessor, @line, @activates, @created_at)`,
    ),
    redate: db.prepare<[Dates & { issuer: string; row: number }]>(
      `UPDATE certificates SET issuer = @issuer, not_before = @notBefore, not_after = @notAfter,
         renew_after = @renewAfter, renew_before = @renewBefore WHERE row = @row`,
    ),
  }
}

/** Records what is about to be signed, and takes it up again when it was interrupted. */
export function openReservations(db: Sqlite, profiles: Profiles) {
  const statements = prepare(db)
  return {
    /** @throws MusterError csr_key, csr_subject: what the profile of the fleet does not grant */
    reserve(of: Reservation): Issuance {
      const names = profiles.names(of.device, of.wish)
      const dates = profiles.dates({ ...of, fleet: of.device.fleet })
      statements.insert.run(columns(of, dates))
      const { serial, issuer } = of
      return issuanceOf(of.device, { serial, issuer: issuer.id, ...dates, ...names, certificate: null })
    },
    /**
     * The issuance of a certificate that was asked for before. One that expired unsigned gets new dates:
     * nobody can be signing it any more, and its request would otherwise be refused for ever.
     */
    resume(found: CertificateRow, at: { device: DeviceRow; now: number; issuer: IssuingCa }): Issuance {
      const { device } = at
      const { serial } = found
      const names = profiles.names(device, null)
      const certificate = statements.der.get(found.row)?.der ?? null
      if (found.state !== 'reserved' || !isExpired(found.not_after, at.now)) {
        return issuanceOf(device, { serial, issuer: found.issuer, ...datesIn(found), ...names, certificate })
      }
      const dates = profiles.dates({ ...at, serial, fleet: device.fleet })
      const issuer = at.issuer.id
      statements.redate.run({ ...dates, issuer, row: found.row })
      return issuanceOf(device, { serial, issuer, ...dates, ...names, certificate })
    },
  }
}

function issuanceOf(of: DeviceRow, signed: Omit<Issuance, 'device' | 'kind' | 'fleet'>): Issuance {
  const { id: device, kind, fleet } = of
  return { device, kind, fleet, ...signed }
}

function datesIn(row: CertificateRow): Dates {
  const { not_before: notBefore, not_after: notAfter } = row
  return { notBefore, notAfter, renewAfter: row.renew_after, renewBefore: row.renew_before }
}
export type Reservations = ReturnType<typeof openReservations>

function columns(of: Reservation, dates: Dates): ReservedColumns {
  return {
    serial: of.serial,
    issuer: of.issuer.id,
    device: of.device.row,
    spki: of.spki,
    not_before: dates.notBefore,
    not_after: dates.notAfter,
    renew_after: dates.renewAfter,
    renew_before: dates.renewBefore,
    token: of.token,
    predecessor: of.predecessor,
    line: of.line,
    activates: of.activates ? 1 : 0,
    created_at: of.now,
  }
}
