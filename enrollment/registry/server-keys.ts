import { MusterError } from '#shared/errors'
import type { DeviceId } from '#shared/identity/device'
import type { Sqlite } from '#shared/sqlite'
import { type Certificates, isAnswerable } from './certificates.ts'
import type { Intent } from './ledger.ts'
import {
  CERTIFICATE_COLUMNS,
  CERTIFICATES,
  type CertificateRow,
  certificateRecord,
  type DeviceRow,
  newestFirst,
} from './rows.ts'

/** Keys that the plane makes for one use of a token, or one renewal: a device that asks for more never connects. */
const MOST_KEYS = 3

function prepare(db: Sqlite) {
  const find = (where: string) =>
    db.prepare<[number, number], CertificateRow>(
      `SELECT ${CERTIFICATE_COLUMNS} FROM ${CERTIFICATES} WHERE c.server_key = 1 AND c.device = ? AND ${where}`,
    )
  return {
    ofToken: find('c.token = ?'),
    successors: find('c.predecessor = ?'),
    deviceOf: db.prepare<[number], { device: DeviceId }>(
      `SELECT (SELECT d.id FROM devices d WHERE d.row = c.device) AS device FROM certificates c
       WHERE c.server_key = 1 AND c.token = ? LIMIT 1`,
    ),
    mark: db.prepare<[string | null, string]>(
      'UPDATE certificates SET server_key = 1, request_key = ? WHERE serial = ?',
    ),
    requestKey: db.prepare<[number], { request_key: string | null }>(
      'SELECT request_key FROM certificates WHERE row = ?',
    ),
    revoke: db.prepare<[number, number]>(
      `UPDATE certificates SET state = 'revoked', revoked_at = ?, reason = 'superseded' WHERE row = ?`,
    ),
    list: db.prepare<[string, string, number, number]>(
      `INSERT INTO revocations (issuer, serial, revoked_at, reason, not_after) VALUES (?, ?, ?, 'superseded', ?)`,
    ),
  }
}

/**
 * Certificates for keys that the plane has made. The key is nowhere but in the reply: when that is lost, the request
 * that is repeated gets another, and the certificate before it, whose key may be in wrong hands, is revoked.
 */
export function openServerKeys(db: Sqlite, certificates: Certificates) {
  const statements = prepare(db)
  return {
    /** The newest certificate that the token, or the presented certificate, got for the device with a key made here. */
    newest: (of: Asked): CertificateRow | null => earlier(statements, of)[0] ?? null,
    /** The device that a token made known, when its name comes from the plane: nothing in the request tells it. */
    deviceOf: (token: number): DeviceId | null => statements.deviceOf.get(token)?.device ?? null,
    /** As long as no broker has seen it, and the device has got no other since. */
    isReplaceable: (found: CertificateRow, now: number): boolean =>
      isAnswerable(found, now) &&
      found.first_seen_at === null &&
      certificates.ofDevice(found.device_row)[0]?.row === found.row,
    /** Revokes it, so that another can take its place. @throws MusterError successors */
    replace(found: CertificateRow, of: Asked & { now: number; log: Intent }): void {
      refuseMany(found, earlier(statements, of).length)
      const { now, log } = of
      statements.revoke.run(now, found.row)
      statements.list.run(found.issuer, found.serial, now, found.not_after)
      const revoked = { ...found, state: 'revoked', revoked_at: now, reason: 'superseded' } as const
      const record = certificateRecord(revoked)
      if (record !== null && found.fingerprint !== null)
        log.change({ kind: 'certificate', certificate: record })
    },
    /** True when the request that got it carried this key: whoever else may have the token does not know that. */
    isAskedWith: (found: CertificateRow, requestKey: string): boolean =>
      statements.requestKey.get(found.row)?.request_key === requestKey,
    /** Says of a reservation that its key was made here, and which key the request carried that got it. */
    mark: (serial: string, requestKey: string | null) => void statements.mark.run(requestKey, serial),
  }
}
export type ServerKeys = ReturnType<typeof openServerKeys>

/** By rows: what a device asked with. */
type Asked = { readonly device: DeviceRow['row'] } & (
  | { readonly token: number }
  | { readonly presented: number }
)

function earlier(statements: ReturnType<typeof prepare>, of: Asked): CertificateRow[] {
  const rows =
    'token' in of
      ? statements.ofToken.all(of.device, of.token)
      : statements.successors.all(of.device, of.presented)
  return newestFirst(rows)
}

/** @throws MusterError successors */
function refuseMany({ device, serial }: CertificateRow, made: number): void {
  if (made < MOST_KEYS) return
  throw new MusterError(
    'successors',
    `Cannot make another key for "${device}": it has not connected with its last ${made}`,
    { evidence: { serial, unseen: made } },
  )
}
