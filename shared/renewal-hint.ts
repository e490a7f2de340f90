/** When a device is to ask for its next certificate, as brokers tell it: a retained message under its own topic. */
import { type Static, Type } from 'typebox'
import { Compile } from 'typebox/compile'

const Time = Type.Integer({ minimum: 0 })

/** Of the certificate with which the device is connected; times are ms since 1970. */
export const RenewalHint = Type.Object({
  serial: Type.String(),
  renewAfter: Time,
  renewBefore: Time,
  notAfter: Time,
})
export type RenewalHint = Static<typeof RenewalHint>

/** Below `devices/<id>/muster/` only the broker itself publishes. */
export function hintTopic(device: string): string {
  return `devices/${device}/muster/renewal`
}

const validator = Compile(RenewalHint)

/** Null for a payload that is none. */
export function readHint(payload: Uint8Array): RenewalHint | null {
  try {
    const value: unknown = JSON.parse(Buffer.from(payload).toString('utf8'))
    return validator.Check(value) ? value : null
  } catch {
    return null // whatever it is, it is no hint
  }
}
