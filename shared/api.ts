/**
 * Schemas of the HTTP APIs. The device API and EST are on the enrollment listener, everything under `/v1/` here
 * that is not `/v1/enroll`, `/v1/renew` or `/v1/ca` is on the admin listener. Errors are {@link Problem} documents
 * (RFC 9457). Times are milliseconds since 1970 UTC; certificates are PEM.
 */
import { type Static, Type } from 'typebox'
import { Policy, Scope, Spread } from './feed.ts'
import { ID_PATTERN } from './identity/device.ts'

const Id = Type.String({ pattern: ID_PATTERN })
const Time = Type.Integer({ minimum: 0 })
const orNull = <T extends Type.TSchema>(schema: T) => Type.Union([schema, Type.Null()])
const Csr = Type.String({ minLength: 1, maxLength: 32_768 })

// ---- devices ----

/** `csr`: PKCS#10 as PEM or as base64 of DER. */
export const EnrollRequest = Type.Object({ token: Type.String({ maxLength: 256 }), csr: Csr })
export type EnrollRequest = Static<typeof EnrollRequest>

export const RenewRequest = Type.Object({ csr: Csr })
export type RenewRequest = Static<typeof RenewRequest>

export const CertificateReply = Type.Object({
  /** The id that the certificate stands for. */
  device: Id,
  serial: Type.String(),
  notAfter: Time,
  certificate: Type.String(),
  /** Issuing CA and root, in this order. */
  chain: Type.Array(Type.String()),
})
export type CertificateReply = Static<typeof CertificateReply>

export const CaReply = Type.Object({
  trustDomain: Type.String(),
  root: Type.String(),
  /** Every CA certificate, the root first. */
  certificates: Type.Array(Type.String()),
})
export type CaReply = Static<typeof CaReply>

// ---- fleets, batches, tokens ----

export const Naming = Type.Union([Type.Literal('csr'), Type.Literal('list'), Type.Literal('assigned')])
export type Naming = Static<typeof Naming>

export const FleetRequest = Type.Object(
  {
    id: Id,
    /** Life of its device certificates, ms; default 30 days. */
    lifetimeMs: Type.Optional(Type.Integer({ minimum: 60_000 })),
    policy: Type.Optional(Policy),
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
  synthetic: Type.Boolean(),
  devices: Type.Integer(),
  createdAt: Time,
})
export type FleetView = Static<typeof FleetView>

export const BatchRequest = Type.Object(
  { id: Id, fleet: Type.Optional(Id), naming: Type.Optional(Naming) },
  { additionalProperties: false },
)
export type BatchRequest = Static<typeof BatchRequest>

export const BatchView = Type.Object({
  id: Id,
  fleet: Id,
  naming: Naming,
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
    expiresAt: Type.Optional(Time),
    /** Only these ids may enroll with it. */
    devices: Type.Optional(Type.Array(Id, { minItems: 1, maxItems: 100_000 })),
    naming: Type.Optional(Naming),
  },
  { additionalProperties: false },
)
export type TokenRequest = Static<typeof TokenRequest>

export const TokenView = Type.Object({
  /** Names the token in lists and audit; it is not the secret. */
  id: Type.String(),
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
  createdAt: Time,
})
export type TokenView = Static<typeof TokenView>

/** The only reply that holds the secret. */
export const TokenReply = Type.Object({ token: Type.String(), ...TokenView.properties })
export type TokenReply = Static<typeof TokenReply>

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
  certificates: Type.Array(CertificateView),
  holds: Type.Array(Type.Object({ id: Type.String(), scope: Scope, reason: Type.String(), since: Time })),
  refusals: Type.Array(RefusalView),
})
export type DeviceDetail = Static<typeof DeviceDetail>

export const DevicePage = Type.Object({ devices: Type.Array(DeviceView), next: orNull(Type.String()) })
export type DevicePage = Static<typeof DevicePage>

export const ServiceRequest = Type.Object({ id: Id, csr: Csr }, { additionalProperties: false })
export type ServiceRequest = Static<typeof ServiceRequest>

// ---- plans, holds, revocations, receipts ----

/** RFC 5280 section 5.3.1 reasons that an operator may give. */
export const Reason = Type.Union([
  Type.Literal('unspecified'),
  Type.Literal('keyCompromise'),
  Type.Literal('affiliationChanged'),
  Type.Literal('superseded'),
  Type.Literal('cessationOfOperation'),
  Type.Literal('privilegeWithdrawn'),
])
export type Reason = Static<typeof Reason>

export const PlanRequest = Type.Object(
  {
    action: Type.Union([Type.Literal('hold'), Type.Literal('revoke')]),
    /** One scope, or a list of devices that becomes the members of the plan. */
    scope: Type.Optional(
      Type.Object({
        kind: Type.Union([
          Type.Literal('device'),
          Type.Literal('batch'),
          Type.Literal('fleet'),
          Type.Literal('issuer'),
        ]),
        id: Type.String({ minLength: 1, maxLength: 128 }),
      }),
    ),
    devices: Type.Optional(Type.Array(Id, { minItems: 1, maxItems: 100_000 })),
    reason: Type.Optional(Reason),
    /** Time in which a revocation can be undone, ms; 0 for none; default 15 minutes; always 0 for keyCompromise. */
    undoMs: Type.Optional(Type.Integer({ minimum: 0 })),
  },
  { additionalProperties: false },
)
export type PlanRequest = Static<typeof PlanRequest>

export const PlanState = Type.Union([
  Type.Literal('proposed'),
  Type.Literal('applied'),
  Type.Literal('finalising'),
  Type.Literal('final'),
  Type.Literal('undone'),
  Type.Literal('expired'),
])
export type PlanState = Static<typeof PlanState>

/** One broker's line of a receipt. `down`: pending, and its stream is not open. */
export const ReceiptLine = Type.Object({
  broker: Type.String(),
  state: Type.Union([Type.Literal('applied'), Type.Literal('pending'), Type.Literal('down')]),
  position: orNull(Type.Integer()),
  sessionsClosed: Type.Integer(),
  closeMs: Spread,
  survivors: Type.Array(Type.String()),
})
export type ReceiptLine = Static<typeof ReceiptLine>

export const Receipt = Type.Object({
  id: Type.String(),
  sessionsClosed: Type.Integer(),
  closeMs: Spread,
  brokers: Type.Array(ReceiptLine),
  survivors: Type.Array(Type.String()),
})
export type Receipt = Static<typeof Receipt>

export const PlanView = Type.Object({
  id: Type.String(),
  action: Type.Union([Type.Literal('hold'), Type.Literal('revoke')]),
  scope: Scope,
  reason: Reason,
  undoMs: Type.Integer(),
  state: PlanState,
  /** Counted when it was proposed. */
  counts: Type.Object({
    devices: Type.Integer(),
    online: Type.Integer(),
    tokens: Type.Integer(),
    byBatch: Type.Record(Type.String(), Type.Integer()),
  }),
  by: Type.String(),
  createdAt: Time,
  appliedAt: orNull(Time),
  /** When undo ends and the hold becomes revocations; null for a hold. */
  finaliseAt: orNull(Time),
  receipt: orNull(Receipt),
})
export type PlanView = Static<typeof PlanView>

/** `devices`: the count that the operator has confirmed; another one than the plan's is refused (`count_mismatch`). */
export const PlanApply = Type.Object(
  { devices: Type.Integer({ minimum: 0 }) },
  { additionalProperties: false },
)
export type PlanApply = Static<typeof PlanApply>

// ---- brokers ----

/** What a broker needs to be admitted: one file, moved to its machine, used once. */
export const Invitation = Type.Object({
  /** Base URL of the admin listener. */
  url: Type.String(),
  token: Type.String(),
  /** Root certificate, PEM. */
  root: Type.String(),
  expiresAt: Time,
})
export type Invitation = Static<typeof Invitation>

export const InvitationRequest = Type.Object(
  { id: Type.Optional(Id), expiresAt: Type.Optional(Time) },
  { additionalProperties: false },
)
export type InvitationRequest = Static<typeof InvitationRequest>

/** `hosts`: DNS names and IP addresses for the SAN of its server certificate. */
export const BrokerEnrollRequest = Type.Object(
  {
    token: Type.String({ maxLength: 256 }),
    csr: Csr,
    hosts: Type.Array(Type.String({ maxLength: 253 }), { maxItems: 32 }),
  },
  { additionalProperties: false },
)
export type BrokerEnrollRequest = Static<typeof BrokerEnrollRequest>

export const BrokerRenewRequest = Type.Object(
  { csr: Csr, hosts: Type.Array(Type.String({ maxLength: 253 }), { maxItems: 32 }) },
  { additionalProperties: false },
)
export type BrokerRenewRequest = Static<typeof BrokerRenewRequest>

export const BrokerCertificateReply = Type.Object({
  broker: Id,
  notAfter: Time,
  certificate: Type.String(),
  /** Infrastructure CA and root. */
  chain: Type.Array(Type.String()),
  trustDomain: Type.String(),
})
export type BrokerCertificateReply = Static<typeof BrokerCertificateReply>

export const BrokerView = Type.Object({
  id: Id,
  state: Type.Union([Type.Literal('invited'), Type.Literal('up'), Type.Literal('down')]),
  url: orNull(Type.String()),
  sessions: Type.Integer(),
  position: orNull(Type.Integer()),
  /** Changes that it has not applied yet. */
  behind: orNull(Type.Integer()),
  lastHeardAt: orNull(Time),
})
export type BrokerView = Static<typeof BrokerView>

// ---- the plane ----

export const StatusView = Type.Object({
  version: Type.String(),
  trustDomain: Type.String(),
  cursor: Type.Object({ epoch: Type.String(), position: Type.Integer() }),
  devices: Type.Object({
    expected: Type.Integer(),
    active: Type.Integer(),
    retired: Type.Integer(),
    online: Type.Integer(),
    synthetic: Type.Integer(),
  }),
  holds: Type.Integer(),
  refusedLastHour: Type.Integer(),
  brokers: Type.Array(BrokerView),
  crl: Type.Object({ number: Type.Integer(), nextUpdate: Time, entries: Type.Integer(), url: Type.String() }),
  certificates: Type.Array(Type.Object({ name: Type.String(), notAfter: Time })),
})
export type StatusView = Static<typeof StatusView>

/** One step of the walk from TCP to policy; the first that is not `ok` is the cause. */
export const ExplainStep = Type.Object({
  step: Type.String(),
  verdict: Type.Union([Type.Literal('ok'), Type.Literal('refused'), Type.Literal('unknown')]),
  says: Type.String(),
})
export type ExplainStep = Static<typeof ExplainStep>

export const Explanation = Type.Object({
  subject: Type.String(),
  device: orNull(Id),
  /** Would it be let in now? */
  verdict: Type.Union([Type.Literal('admitted'), Type.Literal('refused'), Type.Literal('unknown')]),
  code: orNull(Type.String()),
  text: Type.String(),
  fix: orNull(Type.String()),
  steps: Type.Array(ExplainStep),
  lastRefusals: Type.Array(RefusalView),
})
export type Explanation = Static<typeof Explanation>

export const ApiTokenRequest = Type.Object(
  { name: Id, expiresAt: Type.Optional(Time) },
  { additionalProperties: false },
)
export type ApiTokenRequest = Static<typeof ApiTokenRequest>

export const ApiTokenView = Type.Object({
  name: Id,
  createdAt: Time,
  expiresAt: orNull(Time),
  cancelledAt: orNull(Time),
})
export type ApiTokenView = Static<typeof ApiTokenView>

/** One line of the audit log; `hash` covers the previous hash and this line, hex. */
export const AuditView = Type.Object({
  sequence: Type.Integer(),
  at: Time,
  by: Type.String(),
  action: Type.String(),
  subject: Type.String(),
  hash: Type.String(),
})
export type AuditView = Static<typeof AuditView>

/** `firstBad`: sequence of the first entry that does not fit the chain; null when it is whole. */
export const AuditVerdict = Type.Object({ ok: Type.Boolean(), firstBad: orNull(Type.Integer()) })
export type AuditVerdict = Static<typeof AuditVerdict>

/** The only reply that holds the secret. */
export const ApiTokenReply = Type.Object({ token: Type.String(), ...ApiTokenView.properties })
export type ApiTokenReply = Static<typeof ApiTokenReply>

/** RFC 9457, with our code, and for a refusal its evidence and fix. */
export const Problem = Type.Object({
  type: Type.String(),
  title: Type.String(),
  status: Type.Integer(),
  detail: Type.String(),
  /** `R-…` for a refusal, the error code otherwise. */
  code: Type.String(),
  fix: Type.Optional(Type.String()),
  evidence: Type.Optional(
    Type.Record(Type.String(), Type.Union([Type.String(), Type.Number(), Type.Boolean()])),
  ),
  requestId: Type.Optional(Type.String()),
})
export type Problem = Static<typeof Problem>
