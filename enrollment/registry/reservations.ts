import type { Sqlite } from '#shared/sqlite'
import type { Issuance, IssuingCa } from './registry.ts'
import type { CertificateRow, DeviceRow } from './rows.ts'
import { isExpired, validity } from './validity.ts'

/** A certificate that is about to be recorded as `reserved`. */
export interface Reservation {
  readonly now: number
  readonly serial: string
  readonly issuer: IssuingCa
  readonly device: DeviceRow
  readonly spki: string
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
  token: number | null
  predecessor: number | null
  line: string
  activates: 0 | 1
  created_at: number
}

function prepare(db: Sqlite) {
  return {
    lifetime: db.prepare<[string], { lifetime_ms: number }>('SELECT lifetime_ms FROM fleets WHERE id = ?'),
    der: db.prepare<[number], { der: Buffer | null }>('SELECT der FROM certificates WHERE row = ?'),
    insert: db.prepare<[ReservedColumns]>(
      `INSERT INTO certificates
         (serial, issuer, device, spki, state, not_before, not_after, token, predecessor, line, activates, created_at)
       VALUES (@serial, @issuer, @device, @spki, 'reserved', @not_before, @not_after, @token, @predecessor, @line,
         @activates, @created_at)`,
    ),
    redate: db.prepare<[string, number, number, number]>(
      'UPDATE certificates SET issuer = ?, not_before = ?, not_after = ? WHERE row = ?',
    ),
  }
}

/** Records what is about to be signed, and takes it up again when it was interrupted. */
export function openReservations(db: Sqlite) {
  const statements = prepare(db)
  const dates = (of: { now: number; issuer: IssuingCa; fleet: string }) => {
    const fleet = statements.lifetime.get(of.fleet)
    if (fleet === undefined) throw new Error(`no fleet ${of.fleet}`) // a foreign key keeps this from happening
    return validity({ now: of.now, lifetimeMs: fleet.lifetime_ms, issuerNotAfter: of.issuer.notAfter })
  }
  return {
    reserve(of: Reservation): Issuance {
      const { notBefore, notAfter } = dates({ now: of.now, issuer: of.issuer, fleet: of.device.fleet })
      statements.insert.run(columns(of, { notBefore, notAfter }))
      const { id: device, kind, fleet } = of.device
      return {
        serial: of.serial,
        device,
        kind,
        fleet,
        issuer: of.issuer.id,
        notBefore,
        notAfter,
        certificate: null,
      }
    },
    /**
     * The issuance of a certificate that was asked for before. One that expired unsigned gets new dates:
     * nobody can be signing it any more, and its request would otherwise be refused for ever.
     */
    resume(found: CertificateRow, at: { device: DeviceRow; now: number; issuer: IssuingCa }): Issuance {
      const { device } = at
      let { issuer, not_before: notBefore, not_after: notAfter } = found
      if (found.state === 'reserved' && isExpired(notAfter, at.now)) {
        ;({ notBefore, notAfter } = dates({ now: at.now, issuer: at.issuer, fleet: device.fleet }))
        issuer = at.issuer.id
        statements.redate.run(issuer, notBefore, notAfter, found.row)
      }
      const { id, kind, fleet } = device
      const certificate = statements.der.get(found.row)?.der ?? null
      return { serial: found.serial, device: id, kind, fleet, issuer, notBefore, notAfter, certificate }
    },
  }
}
export type Reservations = ReturnType<typeof openReservations>

function columns(of: Reservation, dates: { notBefore: number; notAfter: number }): ReservedColumns {
  return {
    serial: of.serial,
    issuer: of.issuer.id,
    device: of.device.row,
    spki: of.spki,
    not_before: dates.notBefore,
    not_after: dates.notAfter,
    token: of.token,
    predecessor: of.predecessor,
    line: of.line,
    activates: of.activates ? 1 : 0,
    created_at: of.now,
  }
}
