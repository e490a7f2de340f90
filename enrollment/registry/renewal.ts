import { MusterError } from '#shared/errors'
import type { Sqlite } from '#shared/sqlite'
import { isAnswerable, isSuperseded } from './certificates.ts'
import type { IssuanceParts } from './issuance.ts'
import type { Intent } from './ledger.ts'
import type { Issuance, Registry, RenewalIntent, SignNow } from './registry.ts'
import { type CertificateRow, DEVICE_COLUMNS, type DeviceRow } from './rows.ts'
import { isExpired } from './validity.ts'

/** So many certificates may wait to be seen by a broker; a device that asks for more never connects with them. */
const UNSEEN_SUCCESSORS = 3

type Statements = ReturnType<typeof prepare>

function prepare(db: Sqlite) {
  return {
    device: db.prepare<[number], DeviceRow>(`SELECT ${DEVICE_COLUMNS} FROM devices d WHERE d.row = ?`),
    /** Newer certificates of the same line, but for the successor that is being asked for once more. */
    newer: db.prepare<[number, string, number, number, string], { one: 1 }>(
      `SELECT 1 AS one FROM certificates WHERE device = ? AND line = ? AND row > ?
         AND NOT (predecessor = ? AND spki = ?) LIMIT 1`,
    ),
    unseen: db.prepare<[number, string, number], { unseen: number }>(
      `SELECT COUNT(*) AS unseen FROM certificates
       WHERE device = ? AND line = ? AND predecessor IS NOT NULL AND first_seen_at IS NULL
         AND state IN ('reserved', 'issued') AND not_after > ?`,
    ),
  }
}

interface Renewing extends IssuanceParts {
  readonly statements: Statements
  readonly intent: RenewalIntent
  readonly signNow: SignNow | undefined
  readonly presented: CertificateRow
  readonly device: DeviceRow
}

/** The next certificate of a device, asked for with one that it has; for the same key (renew) or another (rekey). */
export function openRenewal(parts: IssuanceParts): Pick<Registry, 'beginRenewal'> {
  const statements = prepare(parts.store.db)
  return {
    beginRenewal: (intent, signNow) =>
      parts.store.write({ now: intent.now, by: 'plane' }, (log) => {
        const presented = parts.certificates.byFingerprint(intent.presented)
        const device = presented && statements.device.get(presented.device_row)
        if (presented === undefined || device === undefined) throw unrecorded(intent.presented)
        const renewing = { ...parts, statements, intent, signNow, presented, device }
        refuseDead(renewing)
        for (const key of [presented.spki, intent.spkiHash])
          parts.certificates.refuseCompromised(key, device.id)
        return repeat(renewing, log) ?? succeed(renewing, log)
      }),
  }
}

function unrecorded(fingerprint: string): MusterError {
  return new MusterError('unrecorded', `Cannot renew the certificate "${fingerprint}": it is not recorded`, {
    evidence: { fingerprint },
  })
}

/** @throws MusterError revoked, superseded, expired, notyet, held, retired, pending */
function refuseDead(renewing: Renewing): void {
  const { holds, intent, presented, device } = renewing
  const { serial } = presented
  const refuse = (
    code: 'revoked' | 'superseded' | 'expired' | 'notyet',
    evidence: Record<string, string | number>,
  ) => new MusterError(code, `Cannot renew the certificate "${serial}": ${code}`, { evidence })
  if (presented.state === 'revoked') {
    throw refuse('revoked', {
      serial,
      revokedAt: presented.revoked_at ?? 0,
      reason: presented.reason ?? 'unspecified',
    })
  }
  if (isSuperseded(presented, intent.now)) {
    throw refuse('superseded', { serial, supersededAt: presented.superseded_from ?? intent.now })
  }
  const { now } = intent
  if (isExpired(presented.not_after, now) && !isInGrace(renewing)) {
    throw refuse('expired', { notAfter: presented.not_after, now })
  }
  if (now < presented.not_before) throw refuse('notyet', { notBefore: presented.not_before, now })
  for (const issuer of new Set([presented.issuer, intent.issuer.id])) {
    holds.refuseHeld({ device: device.id, batch: device.batch, fleet: device.fleet, issuer }, device.id)
  }
  if (device.state === 'retired' || device.state === 'pending') {
    throw new MusterError(device.state, `Cannot renew "${device.id}": it is ${device.state}`, {
      evidence: { state: device.state },
    })
  }
}

/** The fleet allows it for a while, with the newest certificate of an active device. */
function isInGrace({ statements, profiles, intent, presented, device }: Renewing): boolean {
  const { row, line, not_after: notAfter } = presented
  if (device.state !== 'active' || isExpired(notAfter + profiles.graceMs(device.fleet), intent.now))
    return false
  return statements.newer.get(device.row, line, row, row, intent.spkiHash) === undefined
}

function repeat(renewing: Renewing, log: Intent): Issuance | null {
  const { certificates, reservations, intent, signNow, presented, device } = renewing
  const found = certificates.successor(intent.spkiHash, presented.row)
  if (found === undefined || !isAnswerable(found, intent.now)) return null
  const { now, issuer } = intent
  return reservations.resume(found, { now, issuer, device, by: `device:${device.id}` }, { log, signNow })
}

/** @throws MusterError successors, csr_key */
function succeed(renewing: Renewing, log: Intent): Issuance {
  const { statements, certificates, reservations, serverKeys, intent, signNow, presented, device } = renewing
  certificates.refuseForeignKey(intent.spkiHash, device.id)
  if (intent.wish.serverKey) replace(renewing, log)
  const unseen = statements.unseen.get(device.row, presented.line, intent.now)?.unseen ?? 0
  if (unseen >= UNSEEN_SUCCESSORS) {
    throw new MusterError(
      'successors',
      `Cannot renew "${device.id}": it has not connected with its last ${unseen}`,
      {
        evidence: { serial: presented.serial, unseen },
      },
    )
  }
  const verb = intent.spkiHash === presented.spki ? 'renew' : 'rekey'
  const action = isExpired(presented.not_after, intent.now) ? `${verb}.expired` : verb
  const { now, serial, issuer, spkiHash: spki, wish } = intent
  log.audit({ action, subject: `device:${device.id} certificate:${serial}`, by: `device:${device.id}` })
  const own = { device, token: null, predecessor: presented.row, line: presented.line, activates: false }
  const issuance = reservations.reserve({ now, serial, issuer, spki, wish, ...own }, { log, signNow })
  if (wish.serverKey) serverKeys.mark(issuance.serial, null)
  return issuance
}

/** The key of the last reply may be lost: another takes its place, as long as no broker has seen it. @throws MusterError successors */
function replace({ serverKeys, intent, presented, device }: Renewing, log: Intent): void {
  const asked = { device: device.row, presented: presented.row }
  const found = serverKeys.newest(asked)
  if (found && serverKeys.isReplaceable(found, intent.now)) {
    serverKeys.replace(found, { ...asked, now: intent.now, log })
  }
}
