import { type Static, Type } from 'typebox'
import { BootstrapAlarm } from './bootstrap.ts'
import { CloneAlarm } from './clones.ts'
import { RefusalView } from './devices.ts'
import { Csr, Expiry, Id, orNull, Time } from './fields.ts'
import { CaAlarm } from './rollover.ts'

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
  { id: Type.Optional(Id), expiresAt: Type.Optional(Expiry) },
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
  /** Infrastructure CA, what links a new root to those before it, and the root. */
  chain: Type.Array(Type.String()),
  /** Every root that is trusted. */
  roots: Type.Optional(Type.Array(Type.String())),
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
  /** Why it cannot follow the change stream, use what it was given, or forget what holds take, in its own words; left out while all is well. */
  fault: Type.Optional(Type.String()),
})
export type BrokerView = Static<typeof BrokerView>

// ---- the plane ----

export const StatusView = Type.Object({
  version: Type.String(),
  trustDomain: Type.String(),
  cursor: Type.Object({ epoch: Type.String(), position: Type.Integer() }),
  devices: Type.Object({
    expected: Type.Integer(),
    /** They wait for an operator's approval. */
    pending: Type.Integer(),
    active: Type.Integer(),
    retired: Type.Integer(),
    online: Type.Integer(),
    synthetic: Type.Integer(),
  }),
  holds: Type.Integer(),
  refusedLastHour: Type.Integer(),
  brokers: Type.Array(BrokerView),
  /** The full list; `earliestNextUpdate` is that of the oldest of all lists, shards included. */
  crl: Type.Object({
    number: Type.Integer(),
    nextUpdate: Time,
    entries: Type.Integer(),
    url: Type.String(),
    shards: Type.Integer(),
    earliestNextUpdate: Time,
  }),
  /** `notAfter`: of the certificate that signs the answers; `presigned`: how many of them are kept. */
  ocsp: Type.Object({ url: Type.String(), notAfter: Time, presigned: Type.Integer() }),
  certificates: Type.Array(Type.Object({ name: Type.String(), notAfter: Time })),
  /** CAs that end soon; `muster ca rollover start` is what to do. */
  alarms: Type.Array(CaAlarm),
  /** Of the last seven days, the newest first, at most 20; `muster batch report` has all of them. */
  bootstrapAlarms: Type.Array(BootstrapAlarm),
  /** Identities that two addresses took from each other in the last seven days, the newest first, at most 20. */
  cloneAlarms: Type.Array(CloneAlarm),
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
  /** One for each code among them, the newest first: what it means, and what to do. */
  remedies: Type.Array(Type.Object({ code: Type.String(), text: Type.String(), fix: Type.String() })),
})
export type Explanation = Static<typeof Explanation>

export const ApiTokenRequest = Type.Object(
  { name: Id, expiresAt: Type.Optional(Expiry) },
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
export const AuditVerdict = Type.Object({
  ok: Type.Boolean(),
  /** Sequence of the first entry that does not fit, or is missing; null when the chain is whole. */
  firstBad: orNull(Type.Integer()),
  /** The entry that was signed last, outside the database; a log without it cannot be vouched for. */
  head: Type.Object({
    state: Type.Union([Type.Literal('good'), Type.Literal('missing'), Type.Literal('forged')]),
    sequence: orNull(Type.Integer()),
    at: orNull(Type.Integer()),
  }),
})
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
