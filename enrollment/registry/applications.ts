import { MusterError } from '#shared/errors'
import type { ApprovalRow } from './approvals.ts'
import type { Enrolling } from './issuance.ts'
import type { Intent } from './ledger.ts'
import type { Application } from './registry.ts'
import type { DeviceRow } from './rows.ts'

/**
 * Records that a device asks for approval: it is pending, the token's use is reserved, the key is bound to the id.
 * @throws MusterError as the statements of `Enrolling`
 */
export function apply(
  enrolling: Enrolling,
  device: { row: DeviceRow; isNew: boolean },
  log: Intent,
): Application {
  const { statements, approvals, intent, token } = enrolling
  const { row, id } = device.row
  statements.setState.run('pending', row)
  statements.spend.run(token.row)
  approvals.insert({
    device: row,
    token: token.row,
    spki: intent.spkiHash,
    state: 'pending',
    made: device.isNew ? 1 : 0,
    created_at: intent.now,
  })
  log.audit({ action: 'device.apply', subject: `device:${id}`, by: `${token.kind}:${token.id}` })
  return { waitsFor: 'approval', device: id, spki: intent.spkiHash, since: intent.now }
}

/** The device that an earlier request with this key and token was for, and what became of it. @throws MusterError rejected */
export function findApplication(enrolling: Enrolling): { found: ApprovalRow; device: DeviceRow } | null {
  const { statements, approvals, intent, token } = enrolling
  const found = approvals.ofRequest(intent.spkiHash, token.row)
  if (found === undefined) return null
  if (found.device === null) {
    throw new MusterError('rejected', 'Cannot enroll with this token and key: an operator rejected it', {
      evidence: { token: token.id, key: intent.spkiHash },
    })
  }
  const device = statements.deviceAt.get(found.device)
  if (device === undefined) throw new Error(`no device ${found.device}`) // a foreign key keeps this from happening
  return { found, device }
}

/**
 * Another token does not change what was approved, or waits for it.
 * @throws MusterError id_taken, pending, csr_key
 */
export function refuseOtherRequest(enrolling: Enrolling, known: DeviceRow): void {
  const { approvals, intent, token } = enrolling
  if (token.device !== null) return // an operator has said anew who it is
  const approval = approvals.ofDevice(known.row)
  // a key that the plane makes is never the one that was named beforehand
  const key = intent.serverKey ?? intent.spkiHash
  const isSameKey = approval === undefined || approval.spki === null || approval.spki === key
  if (known.state === 'pending' && isSameKey) {
    throw new MusterError(
      'pending',
      `Cannot enroll "${known.id}": it waits for approval with another token`,
      {
        evidence: { state: 'pending' },
      },
    )
  }
  if (known.state === 'pending') {
    throw new MusterError('id_taken', `Cannot enroll "${known.id}": it waits for approval with another key`, {
      evidence: { device: known.id },
    })
  }
  if (isSameKey) return
  const why = 'another key was approved for the device'
  throw new MusterError('csr_key', `Cannot use the key for "${known.id}": ${why}`, {
    evidence: { key: intent.spkiHash, why },
  })
}

/** The approval has served its purpose: the certificate takes its place. Returns whether a use was reserved with it. */
export function redeem({ approvals, token }: Enrolling, device: number): boolean {
  const approval = approvals.ofDevice(device)
  if (approval === undefined) return false
  approvals.remove(approval.row)
  if (approval.token === token.row) return true
  approvals.giveBack(approval)
  return false
}
