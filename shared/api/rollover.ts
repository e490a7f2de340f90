import { type Static, Type } from 'typebox'
import { Id, orNull, Time } from './fields.ts'

// ---- the CAs, and how one follows another ----

/** SHA-256 of the certificates of three CAs that belong together, hex; a rollover leads from one such set to another. */
export const Generation = Type.Object({
  root: Type.String(),
  device: Type.String(),
  infrastructure: Type.String(),
})
export type Generation = Static<typeof Generation>

/**
 * `published`: the new CAs are in the bundle and trusted; `cut-over`: they sign; `aborting`: the old ones sign again, and
 * what the new ones signed is still trusted; `finished`: the old ones are no longer trusted; `aborted`: the new ones are not.
 */
export const RolloverState = Type.Union([
  Type.Literal('published'),
  Type.Literal('cut-over'),
  Type.Literal('aborting'),
  Type.Literal('finished'),
  Type.Literal('aborted'),
])
export type RolloverState = Static<typeof RolloverState>

export const RolloverView = Type.Object({
  id: Id,
  kind: Type.Union([Type.Literal('issuing'), Type.Literal('root')]),
  state: RolloverState,
  from: Generation,
  to: Generation,
  /** Version of the trust bundle that brought the new CAs. */
  publishedVersion: Type.Integer(),
  startedAt: Time,
  cutOverAt: orNull(Time),
  abortedAt: orNull(Time),
  endedAt: orNull(Time),
})
export type RolloverView = Static<typeof RolloverView>

/** Devices and services in service, without simulated ones; `waiting` names the first of those that are missing. */
export const Adoption = Type.Object({
  devices: Type.Integer(),
  adopted: Type.Integer(),
  waiting: Type.Array(Type.String()),
})
export type Adoption = Static<typeof Adoption>

export const RolloverStatus = Type.Object({
  bundleVersion: Type.Integer(),
  /** The newest; null when there never was one. */
  rollover: orNull(RolloverView),
  /** Of the new trust bundle; null when no rollover is open. */
  adoption: orNull(Adoption),
  /** What keeps the CA that is to go; null when no rollover is open. */
  retiring: orNull(
    Type.Object({
      issuer: Type.String(),
      /** Certificates of it that are still good. */
      live: Type.Integer(),
      /** Not finished before, whatever the count: certificates of the plane itself are still in use. */
      notBefore: orNull(Time),
    }),
  ),
})
export type RolloverStatus = Static<typeof RolloverStatus>

export const RolloverRequest = Type.Object(
  {
    /** A new root above new issuing CAs. */
    root: Type.Optional(Type.Boolean()),
    /** Of the new issuing CAs, ms; at least a day. */
    lifetimeMs: Type.Optional(Type.Integer({ minimum: 86_400_000, maximum: 30 * 365 * 86_400_000 })),
    /** Chains that a root which is kept elsewhere has signed, PEM; in place of `root` and `lifetimeMs`. */
    certificates: Type.Optional(Type.Array(Type.String({ maxLength: 32_768 }), { minItems: 1, maxItems: 8 })),
  },
  { additionalProperties: false },
)
export type RolloverRequest = Static<typeof RolloverRequest>

/** Requests for the issuing CAs that are to follow, PKCS#10 in PEM. */
export const IssuerRequests = Type.Object({
  requests: Type.Array(
    Type.Object({
      kind: Type.Union([Type.Literal('device'), Type.Literal('infrastructure')]),
      csr: Type.String(),
    }),
  ),
})
export type IssuerRequests = Static<typeof IssuerRequests>

/** Share of the devices that must have the new bundle, from 0 to 1. */
export const CutOverRequest = Type.Object(
  { threshold: Type.Optional(Type.Number({ minimum: 0, maximum: 1 })) },
  { additionalProperties: false },
)
export type CutOverRequest = Static<typeof CutOverRequest>

export const CaView = Type.Object({
  id: Type.String(),
  role: Type.Union([Type.Literal('root'), Type.Literal('device'), Type.Literal('infrastructure')]),
  pem: Type.String(),
  notBefore: Time,
  notAfter: Time,
  /** Signs new certificates; of a root: its generation does. */
  isCurrent: Type.Boolean(),
  isTrusted: Type.Boolean(),
})
export type CaView = Static<typeof CaView>

export const CaTree = Type.Object({ bundleVersion: Type.Integer(), cas: Type.Array(CaView) })
export type CaTree = Static<typeof CaTree>

/** A CA in use that ends within so many days; 0: it has ended. */
export const CaAlarm = Type.Object({
  name: Type.String(),
  id: Type.String(),
  notAfter: Time,
  withinDays: Type.Union([Type.Literal(90), Type.Literal(30), Type.Literal(7), Type.Literal(0)]),
})
export type CaAlarm = Static<typeof CaAlarm>
