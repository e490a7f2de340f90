import { MusterError } from '#shared/errors'
import type { Sqlite } from '#shared/sqlite'
import type { Issuance, IssuingCa } from './registry.ts'
import { CERTIFICATE_COLUMNS, CERTIFICATES, type CertificateRow, type DeviceRow } from './rows.ts'
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

/** Finds certificates by their keys, judges keys, and records what is about to be signed. */
export function openCertificates(db: Sqlite) {
  const find = <P extends unknown[]>(where: string) =>
    db.prepare<P, CertificateRow>(`SELECT ${CERTIFICATE_COLUMNS} FROM ${CERTIFICATES} WHERE ${where}`)
  const byFingerprint = find<[string]>('c.fingerprint = ?')
  const bySerial = find<[string]>('c.serial = ?')
  const ofToken = find<[string, number]>('c.spki = ? AND c.token = ? ORDER BY c.row DESC LIMIT 1')
  const successor = find<[string, number]>('c.spki = ? AND c.predecessor = ? ORDER BY c.row DESC LIMIT 1')
  const ofDevice = find<[number]>('c.device = ? ORDER BY c.row DESC')
  const byKey = find<[string]>('c.spki = ?')
  const readDer = db.prepare<[number], { der: Buffer | null }>('SELECT der FROM certificates WHERE row = ?')
  const readLifetime = db.prepare<[string], { lifetime_ms: number }>(
    'SELECT lifetime_ms FROM fleets WHERE id = ?',
  )
  const insert = db.prepare<[ReservedColumns]>(
    `INSERT INTO certificates
       (serial, issuer, device, spki, state, not_before, not_after, token, predecessor, line, activates, created_at)
     VALUES (@serial, @issuer, @device, @spki, 'reserved', @not_before, @not_after, @token, @predecessor, @line,
       @activates, @created_at)`,
  )
  const redate = db.prepare<[string, number, number, number]>(
    'UPDATE certificates SET issuer = ?, not_before = ?, not_after = ? WHERE row = ?',
  )

  const dates = (of: { now: number; issuer: IssuingCa; fleet: string }) => {
    const fleet = readLifetime.get(of.fleet)
    if (fleet === undefined) throw new Error(`no fleet ${of.fleet}`) // a foreign key keeps this from happening
    return validity({ now: of.now, lifetimeMs: fleet.lifetime_ms, issuerNotAfter: of.issuer.notAfter })
  }

  return {
    byFingerprint: (fingerprint: string) => byFingerprint.get(fingerprint),
    bySerial: (serial: string) => bySerial.get(serial),
    /** The newest certificate for this key that the token was used for. */
    ofToken: (spki: string, token: number) => ofToken.get(spki, token),
    /** The newest certificate for this key that the presented one asked for. */
    successor: (spki: string, presented: number) => successor.get(spki, presented),
    /** Newest first. */
    ofDevice: (device: number) => ofDevice.all(device),
    /** The signed certificate; null while it is only reserved. */
    der: (row: number) => readDer.get(row)?.der ?? null,

    /**
     * A key belongs to the device that first had a certificate for it, and to nobody once it is compromised.
     * @throws MusterError csr_key
     */
    refuseForeignKey(spki: string, device: string): void {
      for (const other of byKey.iterate(spki)) {
        const isCompromised = other.state === 'revoked' && other.reason === 'keyCompromise'
        if (other.device === device && !isCompromised) continue
        const why = isCompromised ? 'it is compromised' : 'it belongs to another device'
        throw new MusterError('csr_key', `Cannot use the key for "${device}": ${why}`, {
          evidence: { key: spki, why },
        })
      }
    },

    reserve(of: Reservation): Issuance {
      const { notBefore, notAfter } = dates({ now: of.now, issuer: of.issuer, fleet: of.device.fleet })
      insert.run({
        serial: of.serial,
        issuer: of.issuer.id,
        device: of.device.row,
        spki: of.spki,
        not_before: notBefore,
        not_after: notAfter,
        token: of.token,
        predecessor: of.predecessor,
        line: of.line,
        activates: of.activates ? 1 : 0,
        created_at: of.now,
      })
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
    resume(found: CertificateRow, device: DeviceRow, at: { now: number; issuer: IssuingCa }): Issuance {
      let { issuer, not_before: notBefore, not_after: notAfter } = found
      if (found.state === 'reserved' && isExpired(notAfter, at.now)) {
        ;({ notBefore, notAfter } = dates({ ...at, fleet: device.fleet }))
        issuer = at.issuer.id
        redate.run(issuer, notBefore, notAfter, found.row)
      }
      const { id, kind, fleet } = device
      const certificate = readDer.get(found.row)?.der ?? null
      return { serial: found.serial, device: id, kind, fleet, issuer, notBefore, notAfter, certificate }
    },
  }
}
export type Certificates = ReturnType<typeof openCertificates>

/** May it be answered again to a repeated request? Reserved ones are resumed, live ones returned. */
export function isAnswerable(found: CertificateRow, now: number): boolean {
  if (found.state === 'reserved') return true
  if (found.state !== 'issued' && found.state !== 'active') return false
  return !isExpired(found.not_after, now) && !isSuperseded(found, now)
}

/** Whether or not a change has said so yet. */
export function isSuperseded(found: CertificateRow, now: number): boolean {
  return found.state === 'superseded' || (found.superseded_from !== null && found.superseded_from <= now)
}
