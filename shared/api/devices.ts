import { type Static, Type } from 'typebox'
import { Scope } from '../feed.ts'
import { Csr, Id, orNull, Time } from './fields.ts'

// ---- devices ----

/** Without a token the TLS client certificate is what it enrolls with. `csr`: PKCS#10 as PEM or as base64 of DER. */
export const EnrollRequest = Type.Object({
  token: Type.Optional(Type.String({ maxLength: 256 })),
  csr: Csr,
})
export type EnrollRequest = Static<typeof EnrollRequest>

export const RenewRequest = Type.Object({ csr: Csr })
export type RenewRequest = Static<typeof RenewRequest>

export const CertificateReply = Type.Object({
  /** The id that the certificate stands for. */
  device: Id,
  serial: Type.String(),
  notAfter: Time,
  /** The window in which to ask for the next one; the plane chooses it, and may move it. */
  renewAfter: Time,
  renewBefore: Time,
  certificate: Type.String(),
  /** Issuing CA and root, in this order. */
  chain: Type.Array(Type.String()),
  /** Version of the trust bundle: a device that has an older one fetches `GET /v1/ca`. */
  trustVersion: Type.Optional(Type.Integer()),
})
export type CertificateReply = Static<typeof CertificateReply>

/** HTTP 202: an operator has to approve the device. The same request again, after Retry-After, gets the certificate then. */
export const PendingReply = Type.Object({
  state: Type.Literal('pending'),
  device: Id,
  /** SHA-256 of the SubjectPublicKeyInfo, hex: what the operator is shown. */
  spki: Type.String(),
  since: Time,
  retryAfterS: Type.Integer(),
})
export type PendingReply = Static<typeof PendingReply>

/** Of the certificate that was presented. */
export const RenewalReply = Type.Object({
  device: Id,
  serial: Type.String(),
  renewAfter: Time,
  renewBefore: Time,
  notAfter: Time,
})
export type RenewalReply = Static<typeof RenewalReply>

export const CaReply = Type.Object({
  trustDomain: Type.String(),
  /** Rises whenever a CA comes or goes; `CertificateReply` tells of it. */
  version: Type.Integer(),
  /** The root that the plane's own certificates end in. */
  root: Type.String(),
  /** Every root that is trusted; two while one follows the other. */
  roots: Type.Array(Type.String()),
  /** Every CA certificate, the roots first. */
  certificates: Type.Array(Type.String()),
})
export type CaReply = Static<typeof CaReply>

// ---- devices and services, seen by an operator ----

export const DeviceView = Type.Object({
  id: Id,
  kind: Type.Union([Type.Literal('device'), Type.Literal('service')]),
  fleet: Id,
  batch: orNull(Id),
  state: Type.String(),
  held: Type.Boolean(),
  online: Type.Boolean(),
  lastSeenAt: orNull(Time),
  /** notAfter of the newest live certificate. */
  expiresAt: orNull(Time),
  createdAt: Time,
  /** Of a pending device: the key that an approval is for, as SHA-256 of the SubjectPublicKeyInfo, hex. */
  application: orNull(Type.Object({ spki: Type.String(), since: Time })),
})
export type DeviceView = Static<typeof DeviceView>

export const CertificateView = Type.Object({
  serial: Type.String(),
  fingerprint: orNull(Type.String()),
  issuer: Type.String(),
  device: Id,
  state: Type.String(),
  notBefore: Time,
  notAfter: Time,
  renewAfter: Time,
  renewBefore: Time,
  supersededFrom: orNull(Time),
  revokedAt: orNull(Time),
  reason: orNull(Type.String()),
  firstSeenAt: orNull(Time),
})
export type CertificateView = Static<typeof CertificateView>

export const RefusalView = Type.Object({
  at: Time,
  code: Type.String(),
  evidence: Type.Record(Type.String(), Type.Union([Type.String(), Type.Number(), Type.Boolean()])),
  device: orNull(Id),
  fingerprint: orNull(Type.String()),
  address: Type.String(),
  /** The broker that reported it, or `enrollment`. */
  by: Type.String(),
})
export type RefusalView = Static<typeof RefusalView>

export const DeviceDetail = Type.Object({
  ...DeviceView.properties,
  /** What the manifest said of it. */
  attributes: Type.Record(Type.String(), Type.String()),
  certificates: Type.Array(CertificateView),
  holds: Type.Array(Type.Object({ id: Type.String(), scope: Scope, reason: Type.String(), since: Time })),
  refusals: Type.Array(RefusalView),
})
export type DeviceDetail = Static<typeof DeviceDetail>

export const DevicePage = Type.Object({ devices: Type.Array(DeviceView), next: orNull(Type.String()) })
export type DevicePage = Static<typeof DevicePage>

/** SHA-256 of a SubjectPublicKeyInfo, lower-case hex. */
const Spki = Type.String({ pattern: '^[0-9a-f]{64}$' })

/** `spki`: the key that the operator was shown; another one is refused (`conflict`). */
export const DeviceDecision = Type.Object({ spki: Spki }, { additionalProperties: false })
export type DeviceDecision = Static<typeof DeviceDecision>

/** A device that needs no approval; with `spki` only that key may enroll as it. */
export const DeviceRequest = Type.Object(
  { id: Id, batch: Id, spki: Type.Optional(Spki) },
  { additionalProperties: false },
)
export type DeviceRequest = Static<typeof DeviceRequest>

export const ServiceRequest = Type.Object({ id: Id, csr: Csr }, { additionalProperties: false })
export type ServiceRequest = Static<typeof ServiceRequest>
