import { type Static, Type } from 'typebox'
import { Id, orNull, Time } from './fields.ts'

/** SHA-256 of a SubjectPublicKeyInfo, lower-case hex. */
export const KeyHash = Type.String({ pattern: '^[0-9a-f]{64}$' })

export const CompromiseRequest = Type.Object(
  { keys: Type.Array(KeyHash, { minItems: 1, maxItems: 900 }) },
  { additionalProperties: false },
)
export type CompromiseRequest = Static<typeof CompromiseRequest>

export const CompromiseReply = Type.Object({
  added: Type.Integer(),
  /** On the list already. */
  known: Type.Integer(),
  /** Whose live certificates are for one of the keys: they stay good until they are revoked. */
  devices: Type.Array(Id),
})
export type CompromiseReply = Static<typeof CompromiseReply>

export const CompromisedKey = Type.Object({
  key: KeyHash,
  /** `revocation`, or who has put it on the list. */
  source: Type.String(),
  createdAt: Time,
})
export const CompromisedKeyPage = Type.Object({
  keys: Type.Array(CompromisedKey),
  next: orNull(Type.String()),
})
export type CompromisedKeyPage = Static<typeof CompromisedKeyPage>
