import { MusterError } from '#shared/errors'
import type { DeviceRow } from './rows.ts'

/** A device that was revoked or retired comes back by `device reissue` alone. */
export function tombstone(device: DeviceRow): MusterError {
  const state = device.state === 'retired' ? 'retired' : 'revoked'
  return new MusterError('token_tombstone', `Cannot enroll "${device.id}" with this token: it was ${state}`, {
    evidence: { device: device.id, state },
  })
}
