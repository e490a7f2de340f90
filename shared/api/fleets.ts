import { type Static, Type } from 'typebox'
import { Policy } from '../feed.ts'
import { Expiry, Id, MAX_LIFETIME_MS, orNull, Time } from './fields.ts'
import { FleetProfile, ProfileRequest } from './profile.ts'

export const Naming = Type.Union([Type.Literal('csr'), Type.Literal('list'), Type.Literal('assigned')])
export type Naming = Static<typeof Naming>

export const FleetRequest = Type.Object(
  {
    id: Id,
    /** Life of its device certificates, ms; default 30 days, or what the profile says. */
    lifetimeMs: Type.Optional(Type.Integer({ minimum: 60_000, maximum: MAX_LIFETIME_MS })),
    policy: Type.Optional(Policy),
    profile: Type.Optional(ProfileRequest),
    /** Left out of counts and thresholds, and cleared by `muster demo clear`. */
    synthetic: Type.Optional(Type.Boolean()),
  },
  { additionalProperties: false },
)
export type FleetRequest = Static<typeof FleetRequest>

export const FleetView = Type.Object({
  id: Id,
  lifetimeMs: Type.Integer(),
  policy: Policy,
  policyEpoch: Type.Integer(),
  profile: FleetProfile,
  synthetic: Type.Boolean(),
  devices: Type.Integer(),
  createdAt: Time,
})
export type FleetView = Static<typeof FleetView>

export const BatchRequest = Type.Object(
  {
    id: Id,
    fleet: Type.Optional(Id),
    naming: Type.Optional(Naming),
    /** Whether an operator has to approve each of its devices. */
    approval: Type.Optional(Type.Boolean()),
  },
  { additionalProperties: false },
)
export type BatchRequest = Static<typeof BatchRequest>

export const BatchView = Type.Object({
  id: Id,
  fleet: Id,
  naming: Naming,
  approval: Type.Boolean(),
  devices: Type.Integer(),
  tokens: Type.Integer(),
  createdAt: Time,
})
export type BatchView = Static<typeof BatchView>

export const TokenRequest = Type.Object(
  {
    /** Made on first use, in fleet `default`, naming `csr` unless `naming` says otherwise. */
    batch: Id,
    uses: Type.Integer({ minimum: 1, maximum: 10_000_000 }),
    expiresAt: Type.Optional(Expiry),
    /** Only these ids may enroll with it. */
    devices: Type.Optional(Type.Array(Id, { minItems: 1, maxItems: 100_000 })),
    naming: Type.Optional(Naming),
    /** Whether an operator has to approve each device that enrolls with it, even if its batch does not demand it. */
    approval: Type.Optional(Type.Boolean()),
  },
  { additionalProperties: false },
)
export type TokenRequest = Static<typeof TokenRequest>

export const TokenView = Type.Object({
  /** Names the token in lists and audit; it is not the secret. */
  id: Type.String(),
  /** What a device enrolls with: a secret, a certificate that a batch shares, or one that its manufacturer gave it. */
  kind: Type.Union([Type.Literal('token'), Type.Literal('claim'), Type.Literal('manufacturer')]),
  batch: Id,
  uses: Type.Integer(),
  used: Type.Integer(),
  expiresAt: orNull(Time),
  state: Type.Union([
    Type.Literal('open'),
    Type.Literal('spent'),
    Type.Literal('expired'),
    Type.Literal('cancelled'),
  ]),
  /** Set for a token of `device reissue`. */
  device: orNull(Id),
  /** How many ids it is limited to; 0 for no list. */
  listed: Type.Integer(),
  approval: Type.Boolean(),
  createdAt: Time,
})
export type TokenView = Static<typeof TokenView>

/** The only reply that holds the secret. */
export const TokenReply = Type.Object({ token: Type.String(), ...TokenView.properties })
export type TokenReply = Static<typeof TokenReply>
