import { MusterError } from '#shared/errors'
import type { DeviceId } from '#shared/identity/device'
import type { Sqlite } from '#shared/sqlite'
import type { CredentialKind, EnrollmentIntent } from './registry.ts'
import type { DeviceRow } from './rows.ts'

/** What a device enrolls with, and the batch that it is for: a token, a claim certificate, the list of a manufacturer. */
export interface TokenRow {
  readonly row: number
  readonly id: string
  readonly kind: CredentialKind
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
  /** Of a claim: SHA-256 of its key. */
  readonly claim_spki: string | null
}

interface Numbers {
  readonly token: number
  readonly serialNumber: string | null
  readonly certificateSerial: string
}

const NAMES = {
  token: 'token',
  claim: 'claim certificate',
  manufacturer: 'manufacturer',
} as const satisfies Record<CredentialKind, string>

/** `token "t-1"`: for sentences. */
export function credentialName({ kind, id }: Pick<TokenRow, 'kind' | 'id'>): string {
  return `${NAMES[kind]} "${id}"`
}

/** Finds what a device enrolls with, and says whether it is good. */
export function openBootstrapCredentials(db: Sqlite) {
  const byHash = db.prepare<[string], TokenRow>(
    `SELECT t.row, t.id, t.kind, t.batch, t.uses, t.used, t.expires_at, t.cancelled_at, t.device, t.listed,
       (SELECT b.fleet FROM batches b WHERE b.id = t.batch) AS fleet,
       (SELECT b.naming FROM batches b WHERE b.id = t.batch) AS naming,
       t.approval OR (SELECT b.approval FROM batches b WHERE b.id = t.batch) AS approval,
       CASE t.kind WHEN 'claim' THEN (SELECT c.spki FROM claims c WHERE c.token = t.row) END AS claim_spki
     FROM tokens t WHERE t.hash = ?`,
  )
  /** A row with both numbers wants both; two are enough to know that there is not exactly one. */
  const manufactured = db.prepare<[Numbers], { device: DeviceId }>(
    `SELECT device FROM manufactured
     WHERE token = @token AND (serial_number = @serialNumber OR certificate_serial = @certificateSerial)
       AND (serial_number IS NULL OR serial_number = @serialNumber)
       AND (certificate_serial IS NULL OR certificate_serial = @certificateSerial) LIMIT 2`,
  )
  const maker = db.prepare<[string], { id: string; cancelled_at: number | null }>(
    'SELECT id, cancelled_at FROM tokens WHERE row = (SELECT token FROM manufactured WHERE device = ?)',
  )

  return {
    /** @throws MusterError token_unknown, token_cancelled, token_batch */
    find(intent: EnrollmentIntent): TokenRow {
      const token = byHash.get(intent.tokenHash)
      if (token === undefined || (token.kind === 'manufacturer') !== (intent.idevid !== undefined)) {
        throw new MusterError('token_unknown', 'Cannot enroll with the token: it is not known')
      }
      refuseEnded(token, intent)
      return token
    },
    /**
     * The device that the list of the manufacturer has for these numbers; null for a token that is no manufacturer.
     * @throws MusterError idevid_unlisted
     */
    madeBy(token: TokenRow, { idevid }: EnrollmentIntent): DeviceId | null {
      if (idevid === undefined) return null
      const { serialNumber, certificateSerial } = idevid
      const [only, second] = manufactured.all({ token: token.row, serialNumber, certificateSerial })
      if (only !== undefined && second === undefined) return only.device
      throw new MusterError(
        'idevid_unlisted',
        `Cannot enroll the device "${serialNumber ?? certificateSerial}": the list of the ${credentialName(token)} does not have it`,
        { evidence: { token: token.id, serialNumber: serialNumber ?? '', certificateSerial } },
      )
    },
    /**
     * Who holds a token of the batch does not become a device that its manufacturer has a certificate for.
     * @throws MusterError csr_subject
     */
    refuseManufactured(token: TokenRow, id: DeviceId): void {
      if (token.kind === 'manufacturer' || token.device !== null) return
      const made = maker.get(id)
      if (made === undefined || made.cancelled_at !== null) return
      const why = `it enrolls with the certificate of its manufacturer "${made.id}"`
      throw new MusterError('csr_subject', `Cannot enroll "${id}": ${why}`, { evidence: { wish: id, why } })
    },
  }
}
export type BootstrapCredentials = ReturnType<typeof openBootstrapCredentials>

/** @throws MusterError token_cancelled, token_batch */
function refuseEnded(token: TokenRow, intent: EnrollmentIntent): void {
  if (token.cancelled_at !== null) {
    throw new MusterError(
      'token_cancelled',
      `Cannot enroll with the ${credentialName(token)}: it is cancelled`,
      {
        evidence: { token: token.id, cancelledAt: token.cancelled_at },
      },
    )
  }
  if (intent.label === null || intent.label === token.batch) return
  throw new MusterError(
    'token_batch',
    `Cannot enroll with the ${credentialName(token)}: it is for another batch`,
    {
      evidence: { token: token.id, label: intent.label },
    },
  )
}

/** The list of a manufacturer has a use for each of its devices. @throws MusterError token_expired, token_spent */
export function refuseUsedUp(token: TokenRow, now: number): void {
  if (token.expires_at !== null && token.expires_at <= now) {
    throw new MusterError(
      'token_expired',
      `Cannot enroll with the ${credentialName(token)}: it has expired`,
      {
        evidence: { token: token.id, expiresAt: token.expires_at },
      },
    )
  }
  if (token.kind === 'manufacturer' || token.used < token.uses) return
  throw new MusterError(
    'token_spent',
    `Cannot enroll with the ${credentialName(token)}: all its uses are spent`,
    {
      evidence: { token: token.id, uses: token.uses },
    },
  )
}

/** @throws MusterError idevid_used, id_taken */
export function refuseEnrolled(token: TokenRow, known: DeviceRow): never {
  if (token.kind === 'manufacturer') {
    throw new MusterError(
      'idevid_used',
      `Cannot enroll "${known.id}": it has enrolled already, with another key`,
      {
        evidence: { token: token.id, device: known.id },
      },
    )
  }
  throw new MusterError(
    'id_taken',
    `Cannot enroll "${known.id}": a device with this id is enrolled already`,
    {
      evidence: { device: known.id },
    },
  )
}
