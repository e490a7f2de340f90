import type { DeviceId } from '#shared/identity/device'
import type { Enrolling } from './issuance.ts'
import type { Intent } from './ledger.ts'
import type { DeviceRow } from './rows.ts'
import { tombstone } from './tombstone.ts'

/**
 * Makes room for another key of a device that this token got one for, as long as nobody has used that: its certificate
 * is revoked. Null when there is nothing to repeat; then the token counts like any other.
 *
 * The key in the request is not looked at, so the device is known by its id; where the plane gives the id, by being the
 * only one that the token is for. Who has the token can repeat the request until the device first connects.
 * @throws MusterError token_tombstone, held, successors, csr_subject
 */
export function replaceKey(
  { statements, serverKeys, holds, intent, token }: Enrolling,
  { log, idOf }: { log: Intent; idOf(): DeviceId },
): DeviceRow | null {
  const isOnly = token.naming === 'assigned' && token.uses === 1
  const id = (isOnly ? serverKeys.deviceOf(token.row) : null) ?? idOf()
  const device = statements.device.get(id)
  const found = device && serverKeys.newest({ device: device.row, token: token.row })
  if (device === undefined || !found) return null
  const returns = found.state === 'reserved' && found.activates === 1
  if (found.state === 'revoked' || (device.state === 'retired' && !returns)) throw tombstone(device)
  if (!serverKeys.isReplaceable(found, intent.now)) return null
  const { batch, fleet } = device
  holds.refuseHeld({ device: id, batch, fleet, issuer: intent.issuer.id }, id)
  serverKeys.replace(found, { device: device.row, token: token.row, now: intent.now, log })
  return device
}
