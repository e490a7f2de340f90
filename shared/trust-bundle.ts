/** What a device is to trust, as brokers tell it: a retained message under its own topic, from the first rollover on. */
import { type Static, Type } from 'typebox'
import { Compile } from 'typebox/compile'

/** A CA certificate, PEM. */
const Pem = Type.String({ maxLength: 16_384 })

export const TrustRecord = Type.Object({
  /** Rises whenever a CA comes or goes. */
  version: Type.Integer({ minimum: 1 }),
  /** Trust anchors; the one that the plane's certificates end in is the first. */
  roots: Type.Array(Pem, { minItems: 1, maxItems: 16 }),
  /** NewWithOld and OldWithNew of roots in overlap (RFC 4210 section 4.4): by them an old root vouches for a new one. */
  links: Type.Array(Pem, { maxItems: 16 }),
})
export type TrustRecord = Static<typeof TrustRecord>

/** Below `devices/<id>/muster/` only the broker itself publishes. */
export function trustTopic(device: string): string {
  return `devices/${device}/muster/trust`
}

const validator = Compile(TrustRecord)

/** Null for a payload that is none. */
export function readTrust(payload: Uint8Array): TrustRecord | null {
  try {
    const value: unknown = JSON.parse(Buffer.from(payload).toString('utf8'))
    return validator.Check(value) ? value : null
  } catch {
    return null // whatever it is, it is no bundle
  }
}
