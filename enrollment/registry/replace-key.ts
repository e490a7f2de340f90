import type { DeviceId } from '#shared/identity/device'
import type { Enrolling } from './issuance.ts'
import type { Intent } from './ledger.ts'
import type { DeviceRow } from './rows.ts'
import { tombstone } from './tombstone.ts'

/**
 * Makes room for another key of a device that this token got one for, as long as nobody has used that: its certificate
 * is revoked. Null when there is nothing to repeat; then the token counts like any other.
 *
 * The key in the request is not certified (RFC 7030 section 4.4.1), and is no proof of anything. But what a batch shares
 * could take the place of each of its devices that has not connected yet: so a credential that is good for several
 * devices repeats only the request that it made, which is known by id and key. One for a single device is enough by
 * itself; where the plane gives the id, too.
 * @throws MusterError token_tombstone, held, successors, csr_subject
 */
export function replaceKey(
  { statements, serverKeys, holds, intent, token, made }: Enrolling,
  { log, idOf }: { log: Intent; idOf(): DeviceId },
): DeviceRow | null {
  const isOnly = token.naming === 'assigned' && token.uses === 1
  const id = (isOnly ? serverKeys.deviceOf(token.row) : null) ?? idOf()
  const device = statements.device.get(id)
  const found = device && serverKeys.newest({ device: device.row, token: token.row })
  if (device === undefined || !found) return null
  const isSole = token.uses === 1 || token.device !== null || made !== null
  if (!isSole && !serverKeys.isAskedWith(found, intent.spkiHash)) return null
  const returns = found.state === 'reserved' && found.activates === 1
  if (found.state === 'revoked' || (device.state === 'retired' && !returns)) throw tombstone(device)
  if (!serverKeys.isReplaceable(found, intent.now)) return null
  const { batch, fleet } = device
  holds.refuseHeld({ device: id, batch, fleet, issuer: intent.issuer.id }, id)
  serverKeys.replace(found, { device: device.row, token: token.row, now: intent.now, log })
  return device
}
