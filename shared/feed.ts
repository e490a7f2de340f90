/**
 * What crosses between enrollment and a broker, over one mTLS connection each way:
 *
 * - `GET /v1/feed?epoch=E&position=N` answers with NDJSON, one {@link FeedMessage} a line, and stays open.
 *   A broker without a cursor, or with another epoch, gets a snapshot first. One that could not make sense of what it
 *   got before says so: `&fault=...`.
 *   Positions rise by one with each change of an epoch; those of a snapshot's rows are its own.
 * - `POST /v1/feed/reports` takes one {@link ReportBatch}; a batch that was taken before (same broker, boot
 *   and sequence) is answered and changes nothing.
 *
 * Times are milliseconds since 1970 UTC. Fingerprints are SHA-256 over the certificate's DER, lower-case hex.
 * Serials are lower-case hex without leading zeros stripped (32 digits).
 */
import { type Static, Type } from 'typebox'
import { Policy } from './policy/schema.ts'
import { SecondFactor } from './second-factor.ts'
import { TrustRecord } from './trust-bundle.ts'

export { Policy }

const Id = Type.String({ minLength: 1, maxLength: 64 })
const Time = Type.Integer({ minimum: 0 })
const Hex = Type.String({ pattern: '^[0-9a-f]+$', maxLength: 128 })
const orNull = <T extends Type.TSchema>(schema: T) => Type.Union([schema, Type.Null()])

export const ScopeKind = Type.Union([
  Type.Literal('device'),
  Type.Literal('batch'),
  Type.Literal('fleet'),
  Type.Literal('issuer'),
  Type.Literal('plan'),
])
/** What a hold or a revocation covers; of kind `plan` the id is the plan's and the members follow in slices. */
export const Scope = Type.Object({ kind: ScopeKind, id: Type.String({ minLength: 1, maxLength: 128 }) })
export type Scope = Static<typeof Scope>

export const FleetRecord = Type.Object({
  id: Id,
  policy: Policy,
  policyEpoch: Type.Integer({ minimum: 1 }),
  /** What its devices bring beside their certificates; left out where that is nothing. */
  factor: Type.Optional(SecondFactor),
})
export type FleetRecord = Static<typeof FleetRecord>

export const DeviceRecord = Type.Object({
  id: Id,
  kind: Type.Union([Type.Literal('device'), Type.Literal('service')]),
  fleet: Id,
  batch: orNull(Id),
  state: Type.Union([
    Type.Literal('expected'),
    Type.Literal('pending'),
    Type.Literal('active'),
    Type.Literal('retired'),
  ]),
  /** What is known of it; left out where there is nothing. */
  attributes: Type.Optional(Type.Record(Type.String(), Type.String())),
  /** Its own policy, in the place of what its fleet allows; left out where it has none. */
  policy: Type.Optional(Policy),
  /** Its own second factor, in the place of what its fleet asks for. */
  factor: Type.Optional(SecondFactor),
})
export type DeviceRecord = Static<typeof DeviceRecord>

/** A certificate as a broker needs it; `reserved` ones never leave the registry. */
export const CertificateRecord = Type.Object({
  fingerprint: Hex,
  serial: Hex,
  /** Id of the issuing CA: SHA-256 of its certificate, lower-case hex. */
  issuer: Hex,
  device: Id,
  state: Type.Union([
    Type.Literal('issued'),
    Type.Literal('active'),
    Type.Literal('superseded'),
    Type.Literal('revoked'),
  ]),
  notBefore: Time,
  notAfter: Time,
  /** The window in which the device is to ask for the next one; left out by a registry that knows none. */
  renewAfter: Type.Optional(Time),
  renewBefore: Type.Optional(Time),
  /** End of the overlap: from then on the certificate counts as superseded, whether or not a change says so. */
  supersededFrom: orNull(Time),
  revokedAt: orNull(Time),
  reason: orNull(Type.String()),
})
export type CertificateRecord = Static<typeof CertificateRecord>

export const HoldRecord = Type.Object({
  /** Id of the plan that it came from; receipts go by it. */
  id: Id,
  scope: Scope,
  /** `ended` covers released and final: the hold no longer stops anybody. */
  state: Type.Union([Type.Literal('active'), Type.Literal('ended')]),
  /** What its devices have retained is to be forgotten; of one that ended: it is final. */
  purgeRetained: Type.Optional(Type.Boolean()),
})
export type HoldRecord = Static<typeof HoldRecord>

/**
 * What brokers were ordered to forget by a plan that is over: what of these devices a broker has stored before it had
 * applied this position of this epoch. Told in snapshots, to those that may have missed the hold and its end.
 */
export const PurgeRecord = Type.Object({
  /** Of kind `plan` with its devices, or some of them. */
  scope: Scope,
  devices: Type.Optional(Type.Array(Id, { maxItems: 1000 })),
  epoch: Id,
  position: Type.Integer({ minimum: 0 }),
  /** When it was ordered. */
  at: Time,
  /** What they have retained as well, beside sessions, queues, half-received messages and wills. */
  retained: Type.Boolean(),
})
export type PurgeRecord = Static<typeof PurgeRecord>

/** A CA certificate that brokers trust for client certificates; `trusted: false` takes it away. */
export const IssuerRecord = Type.Object({ id: Hex, pem: Type.String(), trusted: Type.Boolean() })
export type IssuerRecord = Static<typeof IssuerRecord>

export const Change = Type.Union([
  Type.Object({ kind: Type.Literal('issuer'), issuer: IssuerRecord }),
  Type.Object({ kind: Type.Literal('fleet'), fleet: FleetRecord }),
  Type.Object({ kind: Type.Literal('device'), device: DeviceRecord }),
  Type.Object({ kind: Type.Literal('certificate'), certificate: CertificateRecord }),
  /** A slice (at most 1 000) of the members of a hold on a plan; always before the hold itself. */
  Type.Object({ kind: Type.Literal('members'), hold: Id, devices: Type.Array(Id, { maxItems: 1000 }) }),
  Type.Object({ kind: Type.Literal('hold'), hold: HoldRecord }),
  /** A synthetic device and its certificates are forgotten (`muster demo clear`). */
  Type.Object({ kind: Type.Literal('forgotten'), device: Id }),
  /** What devices are to trust; told from the first rollover on. */
  Type.Object({ kind: Type.Literal('trust'), trust: TrustRecord }),
  Type.Object({ kind: Type.Literal('purge'), purge: PurgeRecord }),
])
/** One entry of the registry's log. Every kind carries the whole new state of its subject, so applying twice is harmless. */
export type Change = Static<typeof Change>

export const Cursor = Type.Object({ epoch: Id, position: Type.Integer({ minimum: 0 }) })
export type Cursor = Static<typeof Cursor>

export const FeedMessage = Type.Union([
  /** Forget everything; changes of this state follow, then `snapshot-end`. */
  Type.Object({ type: Type.Literal('snapshot'), epoch: Id, position: Type.Integer({ minimum: 0 }) }),
  Type.Object({ type: Type.Literal('snapshot-end'), epoch: Id, position: Type.Integer({ minimum: 0 }) }),
  /** `at` is the commit's time by the registry's clock. */
  Type.Object({
    type: Type.Literal('change'),
    position: Type.Integer({ minimum: 0 }),
    at: Time,
    change: Change,
  }),
  /** Sent when the reader has caught up and every {@link ALIVE_EVERY_MS} of silence: `position` is the newest. */
  Type.Object({ type: Type.Literal('alive'), epoch: Id, position: Type.Integer({ minimum: 0 }), at: Time }),
])
export type FeedMessage = Static<typeof FeedMessage>

/** Most characters of the `fault` with which a broker that cannot follow asks again: printable ASCII. */
export const FAULT_LENGTH = 200

/** What a broker says of a fault, as the registry takes it. */
export function faultText(text: string): string {
  return text.replaceAll(/[^ -~]/g, '?').slice(0, FAULT_LENGTH)
}

/** Most faults of a batch of reports. */
export const MOST_FAULTS = 8

/** The feed says it is alive at least this often, in ms. */
export const ALIVE_EVERY_MS = 5_000

/** Order statistics of a set of times in ms; zeros when there were none. */
export const Spread = Type.Object({ p50: Type.Number(), p95: Type.Number(), max: Type.Number() })
export type Spread = Static<typeof Spread>

const EvidenceSchema = Type.Record(Type.String(), Type.Union([Type.String(), Type.Number(), Type.Boolean()]))

export const Report = Type.Union([
  /** A CONNECT was accepted. `connection` is unique within the broker's boot. */
  Type.Object({
    type: Type.Literal('connected'),
    at: Time,
    fingerprint: Hex,
    device: Id,
    address: Type.String(),
    connection: Type.String(),
    resumed: Type.Boolean(),
  }),
  Type.Object({
    type: Type.Literal('disconnected'),
    at: Time,
    fingerprint: Hex,
    device: Id,
    connection: Type.String(),
    reason: Type.String(),
  }),
  /** Somebody was turned away; `device` and `fingerprint` as far as they are known. */
  Type.Object({
    type: Type.Literal('refused'),
    at: Time,
    code: Type.String({ pattern: '^R-' }),
    evidence: EvidenceSchema,
    device: orNull(Id),
    fingerprint: orNull(Hex),
    address: Type.String(),
  }),
  /** A hold is in force on this broker and its sessions are gone; a line of the receipt. */
  Type.Object({
    type: Type.Literal('applied'),
    at: Time,
    hold: Id,
    position: Type.Integer({ minimum: 0 }),
    sessionsClosed: Type.Integer({ minimum: 0 }),
    /** From the hold's commit to the socket's `close`, per session, in ms. */
    closeMs: Spread,
    /** Devices whose socket had not closed within 5 s: must be none. */
    survivors: Type.Array(Id),
  }),
])
export type Report = Static<typeof Report>

export const ReportBatch = Type.Object({
  /** New at every start of the broker. */
  boot: Id,
  /** Rises by one with every batch of a boot. */
  sequence: Type.Integer({ minimum: 1 }),
  at: Time,
  /** What the broker has applied; null before its first snapshot. */
  applied: orNull(Cursor),
  /** Up to where all is forgotten that holds have ordered to be; left out by a broker that does not tell. */
  purged: Type.Optional(Cursor),
  /** Why that is not up to {@link applied}: {@link faultText}; left out while it is under way, or done. */
  unpurged: Type.Optional(Type.String({ pattern: '^[ -~]*$', maxLength: FAULT_LENGTH })),
  /** Open sockets of identified clients, counted at `at`. */
  sessions: Type.Integer({ minimum: 0 }),
  /** `mqtts://host:port` under which it serves. */
  url: Type.String(),
  /** What it was given to serve with and cannot use, a sentence each: {@link faultText}; left out when there is nothing. */
  faults: Type.Optional(
    Type.Array(Type.String({ pattern: '^[ -~]*$', maxLength: FAULT_LENGTH }), { maxItems: MOST_FAULTS }),
  ),
  reports: Type.Array(Report, { maxItems: 1000 }),
})
export type ReportBatch = Static<typeof ReportBatch>

export const ReportReply = Type.Object({ sequence: Type.Integer() })
export type ReportReply = Static<typeof ReportReply>
