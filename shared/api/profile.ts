import { type Static, Type } from 'typebox'
import { MAX_GRACE_MS, MAX_LIFETIME_MS } from './fields.ts'

export const KeyTypeName = Type.Union([
  Type.Literal('P-256'),
  Type.Literal('P-384'),
  Type.Literal('Ed25519'),
  Type.Literal('ML-DSA-44'),
  Type.Literal('ML-DSA-65'),
  Type.Literal('RSA'),
])

/** `${device.id}`, `${device.fleet}` and `${device.batch}` stand for the device's own. */
const Template = Type.String({ minLength: 1, maxLength: 256 })
const Share = Type.Number({ minimum: 0, maximum: 1 })

const SubjectTemplate = Type.Object(
  { organization: Type.Optional(Template), organizationalUnit: Type.Optional(Template) },
  { additionalProperties: false },
)
const SanTemplate = Type.Union([
  Type.Object({ uri: Template }, { additionalProperties: false }),
  Type.Object({ dns: Template }, { additionalProperties: false }),
])
/** Shares of a certificate's life. It begins between `after` and `after + jitter`, and ends at `before`. */
const RenewalShares = Type.Object(
  { after: Share, jitter: Share, before: Share },
  { additionalProperties: false },
)

/** What the certificates of a fleet are like, and which requests are granted; checked at every issuance. */
export const FleetProfile = Type.Object({
  /** RSA is 2048 to 4096 bits with the exponent 65537. */
  keys: Type.Array(KeyTypeName),
  lifetimeMs: Type.Integer(),
  /** Share of the life by which a certificate may end earlier, so that a batch does not expire at once. */
  lifetimeJitter: Type.Number(),
  renewal: RenewalShares,
  subject: SubjectTemplate,
  /** Names beside the SPIFFE id. */
  san: Type.Array(SanTemplate),
  /** So long after its end a certificate can still be renewed, ms; 0 for not at all. */
  graceMs: Type.Integer(),
  /** Whether a request must carry the tls-unique of its connection (RFC 7030 section 3.5), which TLS 1.3 does not have. */
  linkedToTls: Type.Boolean(),
  /** Whether the plane makes the key of a device that asks for it (EST `serverkeygen`). */
  serverKeys: Type.Boolean(),
})
export type FleetProfile = Static<typeof FleetProfile>

/** What is left out is as in a new fleet. */
export const ProfileRequest = Type.Object(
  {
    keys: Type.Optional(Type.Array(KeyTypeName, { minItems: 1, maxItems: 6 })),
    lifetimeMs: Type.Optional(Type.Integer({ minimum: 60_000, maximum: MAX_LIFETIME_MS })),
    lifetimeJitter: Type.Optional(Type.Number({ minimum: 0, maximum: 0.5 })),
    renewal: Type.Optional(RenewalShares),
    subject: Type.Optional(SubjectTemplate),
    san: Type.Optional(Type.Array(SanTemplate, { maxItems: 8 })),
    graceMs: Type.Optional(Type.Integer({ minimum: 0, maximum: MAX_GRACE_MS })),
    linkedToTls: Type.Optional(Type.Boolean()),
    serverKeys: Type.Optional(Type.Boolean()),
  },
  { additionalProperties: false },
)
export type ProfileRequest = Static<typeof ProfileRequest>
