import { MusterError } from '#shared/errors'
import type { DeviceState } from '#shared/identity/device'
import { type DeviceId, isAllowed } from '#shared/identity/device'
import type { Sqlite } from '#shared/sqlite'
import { apply, findApplication, redeem, refuseOtherRequest } from './applications.ts'
import type { Approvals } from './approvals.ts'
import { type Certificates, isAnswerable } from './certificates.ts'
import type { Holds } from './holds.ts'
import type { Intent } from './ledger.ts'
import type { Profiles } from './profiles.ts'
import type { Application, EnrollmentIntent, Issuance, Registry } from './registry.ts'
import type { Reservations } from './reservations.ts'
import { DEVICE_COLUMNS, type DeviceRow } from './rows.ts'
import type { Store } from './store.ts'

/** A token with the batch that it is for. */
interface TokenRow {
  readonly row: number
  readonly id: string
  readonly batch: string
  readonly fleet: string
  readonly naming: 'csr' | 'list' | 'assigned'
  readonly uses: number
  readonly used: number
  readonly expires_at: number | null
  readonly cancelled_at: number | null
  readonly device: DeviceId | null
  readonly listed: number
  /** 1 when the token or its batch demands that an operator approves. */
  readonly approval: 0 | 1
}

export interface IssuanceParts {
  readonly store: Store
  readonly certificates: Certificates
  readonly reservations: Reservations
  readonly holds: Holds
  readonly approvals: Approvals
  readonly profiles: Profiles
}

type Statements = ReturnType<typeof prepare>

function prepare(db: Sqlite) {
  return {
    token: db.prepare<[string], TokenRow>(
      `SELECT t.row, t.id, t.batch, t.uses, t.used, t.expires_at, t.cancelled_at, t.device, t.listed,
         (SELECT b.fleet FROM batches b WHERE b.id = t.batch) AS fleet,
         (SELECT b.naming FROM batches b WHERE b.id = t.batch) AS naming,
         t.approval OR (SELECT b.approval FROM batches b WHERE b.id = t.batch) AS approval
       FROM tokens t WHERE t.hash = ?`,
    ),
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
    insertDevice: db.prepare<[string, string, string, number]>(
      `INSERT INTO devices (id, kind, fleet, batch, state, created_at) VALUES (?, 'device', ?, ?, 'expected', ?)`,
    ),
  }
}

export interface Enrolling extends IssuanceParts {
  readonly statements: Statements
  readonly intent: EnrollmentIntent
  readonly token: TokenRow
}

/** The first certificate of a device: spends a use of its token and reserves the certificate, both or neither. */
export function openIssuance(parts: IssuanceParts): Pick<Registry, 'beginIssuance'> {
  const statements = prepare(parts.store.db)
  return {
    beginIssuance: (intent) =>
      parts.store.write({ now: intent.now, by: 'plane' }, (log) => {
        const enrolling = { ...parts, statements, intent, token: findToken(statements, intent) }
        return repeat(enrolling) ?? reapply(enrolling, log) ?? begin(enrolling, log)
      }),
  }
}

/** @throws MusterError token_unknown, token_cancelled, token_batch */
function findToken(statements: Statements, intent: EnrollmentIntent): TokenRow {
  const token = statements.token.get(intent.tokenHash)
  if (token === undefined)
    throw new MusterError('token_unknown', 'Cannot enroll with the token: it is not known')
  if (token.cancelled_at !== null) {
    throw new MusterError('token_cancelled', `Cannot enroll with the token "${token.id}": it is cancelled`, {
      evidence: { token: token.id, cancelledAt: token.cancelled_at },
    })
  }
  if (intent.label !== null && intent.label !== token.batch) {
    throw new MusterError(
      'token_batch',
      `Cannot enroll with the token "${token.id}": it is for another batch`,
      {
        evidence: { token: token.id, label: intent.label },
      },
    )
  }
  return token
}

/**
 * The answer to a request that was made before with the same token and key; null when this is the first, or when
 * that certificate has been replaced or has expired since (then the token counts like any other).
 * @throws MusterError token_tombstone, held
 */
function repeat({
  statements,
  certificates,
  reservations,
  holds,
  intent,
  token,
}: Enrolling): Issuance | null {
  const found = certificates.ofToken(intent.spkiHash, token.row)
  if (found === undefined) return null
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
  return reservations.resume(found, { now: intent.now, issuer: intent.issuer, device })
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
  certificates.refuseForeignKey(intent.spkiHash, id)
  if (found.state === 'approved') return issue(enrolling, device, log)
  profiles.names(device, intent.wish)
  return { waitsFor: 'approval', device: id, spki: intent.spkiHash, since: found.created_at }
}

function begin(enrolling: Enrolling, log: Intent): Issuance | Application {
  const { statements, certificates, approvals, holds, intent, token } = enrolling
  const scope = { batch: token.batch, fleet: token.fleet, issuer: intent.issuer.id }
  holds.refuseHeld({ ...scope, device: token.device }, token.device ?? token.batch)
  refuseUsedUp(token, intent.now)
  const id = determineId(enrolling)
  const known = statements.device.get(id)
  holds.refuseHeld({ ...scope, device: id, batch: known?.batch ?? token.batch }, id)
  if (known !== undefined) refuseKnown(enrolling, known)
  certificates.refuseForeignKey(intent.spkiHash, id)
  approvals.refuseForeignKey(intent.spkiHash, id)
  if (known !== undefined) refuseOtherRequest(enrolling, known)
  if (known === undefined) statements.insertDevice.run(id, token.fleet, token.batch, intent.now)
  const device = known ?? newDevice(statements, id)
  const isApproved = token.approval === 0 || approvals.ofDevice(device.row)?.state === 'approved'
  if (token.device === null && !isApproved) {
    enrolling.profiles.names(device, intent.wish) // nobody is asked to approve what is not granted afterwards
    return apply(enrolling, { row: device, isNew: known === undefined }, log)
  }
  return issue(enrolling, device, log)
}

/** Spends a use, unless one is reserved for this device, and records what will be signed. */
function issue(enrolling: Enrolling, device: DeviceRow, log: Intent): Issuance {
  const { statements, reservations, intent, token } = enrolling
  if (!redeem(enrolling, device)) statements.spend.run(token.row)
  log.audit({
    action: token.device === null ? 'enroll' : 'reenroll',
    subject: `device:${device.id}`,
    by: `token:${token.id}`,
  })
  return reservations.reserve({
    now: intent.now,
    serial: intent.serial,
    issuer: intent.issuer,
    device,
    spki: intent.spkiHash,
    wish: intent.wish,
    token: token.row,
    predecessor: null,
    line: device.id,
    activates: true,
  })
}

function newDevice(statements: Statements, id: DeviceId): DeviceRow {
  const row = statements.device.get(id)
  if (row === undefined) throw new Error(`no device ${id}`) // inserted in this transaction
  return row
}

/** @throws MusterError token_expired, token_spent */
function refuseUsedUp(token: TokenRow, now: number): void {
  if (token.expires_at !== null && token.expires_at <= now) {
    throw new MusterError('token_expired', `Cannot enroll with the token "${token.id}": it has expired`, {
      evidence: { token: token.id, expiresAt: token.expires_at },
    })
  }
  if (token.used >= token.uses) {
    throw new MusterError(
      'token_spent',
      `Cannot enroll with the token "${token.id}": all its uses are spent`,
      {
        evidence: { token: token.id, uses: token.uses },
      },
    )
  }
}

/**
 * Where a device id comes from: the token's device or list, the key that a device is expected with, the CSR's CN, or
 * the server.
 * @throws MusterError csr_subject
 */
function determineId({ statements, approvals, intent, token }: Enrolling): DeviceId {
  const wish = intent.commonName
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
 * @throws MusterError token_tombstone, id_taken
 */
function refuseKnown({ certificates, token }: Enrolling, known: DeviceRow): void {
  if (token.device !== null) return
  const issued = certificates.ofDevice(known.row)
  if (known.state === 'retired' || issued.some(({ state }) => state === 'revoked')) throw tombstone(known)
  const isOurs = known.kind === 'device' && known.batch === token.batch
  if (known.state === 'pending' && isOurs) return
  if (isAllowed('enroll', known.state) && isOurs && issued.length === 0) return
  throw new MusterError(
    'id_taken',
    `Cannot enroll "${known.id}": a device with this id is enrolled already`,
    {
      evidence: { device: known.id },
    },
  )
}

function wrongSubject(wish: string, why: string): MusterError {
  return new MusterError('csr_subject', `Cannot enroll "${wish}": ${why}`, { evidence: { wish, why } })
}

function tombstone(device: DeviceRow): MusterError {
  const state = device.state === 'retired' ? 'retired' : 'revoked'
  return new MusterError('token_tombstone', `Cannot enroll "${device.id}" with this token: it was ${state}`, {
    evidence: { device: device.id, state },
  })
}
