import { MusterError } from '#shared/errors'
import type { DeviceState } from '#shared/identity/device'
import { type DeviceId, isAllowed } from '#shared/identity/device'
import type { Sqlite } from '#shared/sqlite'
import { apply, findApplication, redeem, refuseOtherRequest } from './applications.ts'
import type { Approvals } from './approvals.ts'
import {
  type BootstrapCredentials,
  refuseEnrolled,
  refuseUsedUp,
  type TokenRow,
} from './bootstrap-credential.ts'
import { type Certificates, isAnswerable } from './certificates.ts'
import type { DeviceRows } from './device-rows.ts'
import type { Holds } from './holds.ts'
import type { Intent } from './ledger.ts'
import type { Profiles } from './profiles.ts'
import type { Application, EnrollmentIntent, Issuance, Registry, SignNow } from './registry.ts'
import { replaceKey } from './replace-key.ts'
import type { Reservations } from './reservations.ts'
import { DEVICE_COLUMNS, type DeviceRow, type NewDeviceRow } from './rows.ts'
import type { ServerKeys } from './server-keys.ts'
import type { Store } from './store.ts'
import { tombstone } from './tombstone.ts'

export interface IssuanceParts {
  readonly store: Store
  readonly certificates: Certificates
  readonly devices: DeviceRows
  readonly reservations: Reservations
  readonly holds: Holds
  readonly approvals: Approvals
  readonly profiles: Profiles
  readonly credentials: BootstrapCredentials
  readonly serverKeys: ServerKeys
}

type Statements = ReturnType<typeof prepare>

function prepare(db: Sqlite) {
  return {
    spend: db.prepare<[number]>('UPDATE tokens SET used = used + 1 WHERE row = ?'),
    /** Two are enough to know that there is not exactly one. */
    listed: db.prepare<[number], { device: DeviceId }>(
      'SELECT device FROM token_devices WHERE token = ? LIMIT 2',
    ),
    isListed: db.prepare<[number, string], { one: 1 }>(
      'SELECT 1 AS one FROM token_devices WHERE token = ? AND device = ?',
    ),
    device: db.prepare<[string], DeviceRow>(`SELECT ${DEVICE_COLUMNS} FROM devices d WHERE d.id = ?`),
    deviceAt: db.prepare<[number], DeviceRow>(`SELECT ${DEVICE_COLUMNS} FROM devices d WHERE d.row = ?`),
    setState: db.prepare<[DeviceState, number]>('UPDATE devices SET state = ? WHERE row = ?'),
  }
}

export interface Enrolling extends IssuanceParts {
  readonly statements: Statements
  readonly intent: EnrollmentIntent
  readonly signNow: SignNow | undefined
  readonly token: TokenRow
  /** The device that the list of a manufacturer names; null for another kind of credential. */
  readonly made: DeviceId | null
}

/** The first certificate of a device: spends a use of its token and reserves the certificate, both or neither. */
export function openIssuance(parts: IssuanceParts): Pick<Registry, 'beginIssuance'> {
  const statements = prepare(parts.store.db)
  return {
    beginIssuance: (intent, signNow) =>
      parts.store.write({ now: intent.now, by: 'plane' }, (log) => {
        const enrolling = opened({ ...parts, statements, signNow }, intent)
        const again = intent.serverKey === undefined ? repeat(enrolling, log) : keyAgain(enrolling, log)
        return again ?? reapply(enrolling, log) ?? begin(enrolling, log)
      }),
  }
}

/** @throws MusterError token_unknown, token_cancelled, token_batch, idevid_unlisted, csr_key (the claim's own is compromised) */
function opened(parts: Omit<Enrolling, 'intent' | 'token' | 'made'>, intent: EnrollmentIntent): Enrolling {
  const token = parts.credentials.find(intent)
  if (token.claim_spki !== null) parts.certificates.refuseCompromised(token.claim_spki, token.id)
  return { ...parts, intent, token, made: parts.credentials.madeBy(token, intent) }
}

/**
 * The answer to a request that was made before with the same token and key; null when this is the first, or when
 * that certificate has been replaced or has expired since (then the token counts like any other).
 * @throws MusterError token_tombstone, held
 */
function repeat(enrolling: Enrolling, log: Intent): Issuance | null {
  const { statements, certificates, reservations, holds, intent, signNow, token, made } = enrolling
  const found = certificates.ofToken(intent.spkiHash, token.row)
  if (found === undefined || (made !== null && made !== found.device)) return null
  const device = statements.device.get(found.device)
  if (device === undefined) throw new Error(`no device ${found.device}`) // a foreign key keeps this from happening
  const returns = found.state === 'reserved' && found.activates === 1
  if (found.state === 'revoked' || (device.state === 'retired' && !returns)) throw tombstone(device)
  if (!isAnswerable(found, intent.now)) return null
  holds.refuseHeld(
    { device: device.id, batch: device.batch, fleet: device.fleet, issuer: found.issuer },
    device.id,
  )
  certificates.refuseCompromised(intent.spkiHash, device.id)
  const { now, issuer } = intent
  return reservations.resume(
    found,
    { now, issuer, device, by: `${token.kind}:${token.id}` },
    { log, signNow },
  )
}

/** The same for a key that the plane makes: a new one each time, on the same use of the token. */
function keyAgain(enrolling: Enrolling, log: Intent): Issuance | null {
  const device = replaceKey(enrolling, { log, idOf: () => determineId(enrolling) })
  if (device === null) return null
  const { intent, token } = enrolling
  log.audit({
    action: 'enroll.again',
    subject: `device:${device.id} certificate:${intent.serial}`,
    by: `${token.kind}:${token.id}`,
  })
  return reserve(enrolling, device, log)
}

/**
 * The answer to an application that was repeated: still pending, or approved, and then the certificate.
 * @throws MusterError rejected, token_tombstone, held, csr_key, csr_subject, csr_link
 */
function reapply(enrolling: Enrolling, log: Intent): Issuance | Application | null {
  const application = findApplication(enrolling)
  if (application === null) return null
  const { found, device } = application
  const { holds, certificates, profiles, intent } = enrolling
  if (device.state === 'retired') throw tombstone(device)
  const { id, batch, fleet } = device
  holds.refuseHeld({ device: id, batch, fleet, issuer: intent.issuer.id }, id)
  certificates.refuseForeignKey(intent.serverKey ?? intent.spkiHash, id)
  if (found.state === 'approved') return issue(enrolling, device, log)
  profiles.names(device, intent.wish)
  return { waitsFor: 'approval', device: id, spki: intent.spkiHash, since: found.created_at }
}

function begin(enrolling: Enrolling, log: Intent): Issuance | Application {
  const { statements, certificates, devices, approvals, holds, credentials, intent, token } = enrolling
  const scope = { batch: token.batch, fleet: token.fleet, issuer: intent.issuer.id }
  holds.refuseHeld({ ...scope, device: token.device }, token.device ?? token.batch)
  refuseUsedUp(token, intent.now)
  const id = determineId(enrolling)
  credentials.refuseManufactured(token, id)
  const known = statements.device.get(id)
  holds.refuseHeld({ ...scope, device: id, batch: known?.batch ?? token.batch }, id)
  if (known !== undefined) refuseKnown(enrolling, known)
  certificates.refuseForeignKey(intent.serverKey ?? intent.spkiHash, id)
  approvals.refuseForeignKey(intent.spkiHash, id)
  if (known !== undefined) refuseOtherRequest(enrolling, known)
  const device = known ?? newDevice(enrolling, id)
  const isApproved = token.approval === 0 || (known && approvals.ofDevice(known.row)?.state === 'approved')
  if (token.device !== null || isApproved) return issue(enrolling, device, log)
  enrolling.profiles.names(device, intent.wish) // nobody is asked to approve what is not granted afterwards
  return apply(enrolling, { row: devices.expect(device), isNew: known === undefined }, log)
}

/** Spends a use, unless one is reserved for this device, and records what will be signed. */
function issue(enrolling: Enrolling, device: DeviceRow | NewDeviceRow, log: Intent): Issuance {
  const { statements, intent, token } = enrolling
  if (device.row === null || !redeem(enrolling, device.row)) statements.spend.run(token.row)
  const idevid = intent.idevid ? ` idevid:${intent.idevid.fingerprint}` : ''
  log.audit({
    action: token.device === null ? 'enroll' : 'reenroll',
    subject: `device:${device.id} certificate:${intent.serial}${idevid}`,
    by: `${token.kind}:${token.id}`,
  })
  return reserve(enrolling, device, log)
}

function reserve(enrolling: Enrolling, device: DeviceRow | NewDeviceRow, log: Intent): Issuance {
  const { reservations, serverKeys, intent, signNow, token } = enrolling
  const { now, serial, issuer, serverKey, wish } = intent
  const spki = serverKey ?? intent.spkiHash
  const own = { device, token: token.row, predecessor: null, line: device.id, activates: true }
  const issuance = reservations.reserve({ now, serial, issuer, spki, wish, ...own }, { log, signNow })
  if (serverKey !== undefined) serverKeys.mark(issuance.serial, intent.spkiHash)
  return issuance
}

function newDevice({ intent, token }: Enrolling, id: DeviceId): NewDeviceRow {
  const { fleet, batch } = token
  return { row: null, id, kind: 'device', fleet, batch, created_at: intent.now }
}

/**
 * Where a device id comes from: the token's device or list, the key that a device is expected with, the CSR's CN, or
 * the server.
 * @throws MusterError csr_subject
 */
function determineId({ statements, approvals, intent, token, made }: Enrolling): DeviceId {
  const wish = intent.commonName
  if (made !== null) {
    if (wish !== null && wish !== made)
      throw wrongSubject(wish, 'the list of the manufacturer has another id for it')
    return made
  }
  if (token.device !== null) {
    if (wish !== null && wish !== token.device) throw wrongSubject(wish, 'the token is for another device')
    return token.device
  }
  if (token.listed > 0) return listedId(statements, { token, wish })
  const expected = approvals.expectedWith(intent.spkiHash, token.batch)
  if (expected !== null && (wish === null || token.naming === 'assigned')) return expected
  if (token.naming === 'assigned') return intent.assignedId
  if (wish === null) throw wrongSubject('none', 'the request names no device')
  if (token.naming === 'list' && statements.device.get(wish)?.batch !== token.batch) {
    throw wrongSubject(wish, 'no list of the batch names it')
  }
  return wish
}

function listedId(statements: Statements, of: { token: TokenRow; wish: DeviceId | null }): DeviceId {
  if (of.wish !== null) {
    if (statements.isListed.get(of.token.row, of.wish) !== undefined) return of.wish
    throw wrongSubject(of.wish, 'it is not on the list of the token')
  }
  const [only, second] = statements.listed.all(of.token.row)
  if (only === undefined || second !== undefined)
    throw wrongSubject('none', 'the token is for several devices')
  return only.device
}

/**
 * A known id may enroll once, while it is expected; a reissue token may take it back.
 * @throws MusterError token_tombstone, id_taken, idevid_used
 */
function refuseKnown({ certificates, token }: Enrolling, known: DeviceRow): void {
  if (token.device !== null) return
  const issued = certificates.ofDevice(known.row)
  if (known.state === 'retired' || issued.some(({ state }) => state === 'revoked')) throw tombstone(known)
  const isOurs = known.kind === 'device' && known.batch === token.batch
  if (known.state === 'pending' && isOurs) return
  if (isAllowed('enroll', known.state) && isOurs && issued.length === 0) return
  refuseEnrolled(token, known)
}

function wrongSubject(wish: string, why: string): MusterError {
  return new MusterError('csr_subject', `Cannot enroll "${wish}": ${why}`, { evidence: { wish, why } })
}
