import { MusterError } from '#shared/errors'
import type { Sqlite } from '#shared/sqlite'
import { CERTIFICATE_COLUMNS, CERTIFICATES, type CertificateRow, newestFirst } from './rows.ts'
import { isExpired } from './validity.ts'

function prepare(db: Sqlite) {
  const find = <P extends unknown[]>(where: string) =>
    db.prepare<P, CertificateRow>(`SELECT ${CERTIFICATE_COLUMNS} FROM ${CERTIFICATES} WHERE ${where}`)
  return {
    byFingerprint: find<[string]>('c.fingerprint = ?'),
    bySerial: find<[string]>('c.serial = ?'),
    ofToken: find<[string, number]>('c.spki = ? AND c.token = ?'),
    successor: find<[string, number]>('c.spki = ? AND c.predecessor = ?'),
    ofDevice: find<[number]>('c.device = ?'),
    ofAnother: db.prepare<[string, string], { one: 1 }>(
      `SELECT 1 AS one FROM ${CERTIFICATES}
       WHERE c.spki = ? AND (SELECT d.id FROM devices d WHERE d.row = c.device) <> ?`,
    ),
    claim: db.prepare<[string], { one: 1 }>('SELECT 1 AS one FROM claims WHERE spki = ?'),
    compromised: db.prepare<[string], { one: 1 }>('SELECT 1 AS one FROM compromised_keys WHERE spki = ?'),
    der: db.prepare<[number], { der: Buffer | null }>('SELECT der FROM certificates WHERE row = ?'),
  }
}

/** Finds certificates by their keys, and judges keys. */
export function openCertificates(db: Sqlite) {
  const statements = prepare(db)
  /** @throws MusterError csr_key */
  const refuseCompromised = (spki: string, device: string) => {
    if (statements.compromised.get(spki) === undefined) return
    throw keyRefused(spki, { device, why: 'it is compromised' })
  }
  return {
    byFingerprint: (fingerprint: string) => statements.byFingerprint.get(fingerprint),
    bySerial: (serial: string) => statements.bySerial.get(serial),
    /** The newest certificate for this key that the token was used for. */
    ofToken: (spki: string, token: number) => newestFirst(statements.ofToken.all(spki, token))[0],
    /** The newest certificate for this key that the presented one asked for. */
    successor: (spki: string, presented: number) => newestFirst(statements.successor.all(spki, presented))[0],
    /** Newest first. */
    ofDevice: (device: number) => newestFirst(statements.ofDevice.all(device)),
    /** The signed certificate; null while it is only reserved. */
    der: (row: number) => statements.der.get(row)?.der ?? null,
    refuseCompromised,
    /**
     * A key belongs to the device that first had a certificate for it, and to nobody once it is compromised, or when
     * it is that of a claim certificate, which a whole batch may have.
     * @throws MusterError csr_key
     */
    refuseForeignKey(spki: string, device: string): void {
      refuseCompromised(spki, device)
      if (statements.claim.get(spki))
        throw keyRefused(spki, { device, why: 'it is the key of a claim certificate' })
      if (statements.ofAnother.get(spki, device))
        throw keyRefused(spki, { device, why: 'it belongs to another device' })
    },
  }
}
function keyRefused(spki: string, { device, why }: { device: string; why: string }): MusterError {
  return new MusterError('csr_key', `Cannot use the key for "${device}": ${why}`, {
    evidence: { key: spki, why },
  })
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
