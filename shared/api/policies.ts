import { type Static, Type } from 'typebox'
import { Policy, PolicyRule } from '../policy/schema.ts'
import { Id, orNull } from './fields.ts'

/** Where a rule stands, and how it was written. */
export const RuleView = Type.Object({
  scope: Type.Union([Type.Literal('fleet'), Type.Literal('own')]),
  list: Type.Union([Type.Literal('publish'), Type.Literal('subscribe')]),
  index: Type.Integer(),
  topic: Type.String(),
  effect: Type.Union([Type.Literal('allow'), Type.Literal('deny')]),
})
export type RuleView = Static<typeof RuleView>

/** What one client may have at most; `from` null: each broker's own, of which `value` is the default. */
export const LimitView = Type.Object({
  limit: Type.String(),
  value: Type.Integer(),
  from: orNull(Type.Union([Type.Literal('fleet'), Type.Literal('own')])),
})
export type LimitView = Static<typeof LimitView>

export const FleetPolicyView = Type.Object({
  fleet: Id,
  policy: Policy,
  policyEpoch: Type.Integer(),
  /** Those of a device without a policy of its own. */
  limits: Type.Array(LimitView),
})
export type FleetPolicyView = Static<typeof FleetPolicyView>

/** What counts for a device or a service. */
export const DevicePolicyView = Type.Object({
  device: Id,
  kind: Type.Union([Type.Literal('device'), Type.Literal('service')]),
  fleet: Id,
  batch: orNull(Id),
  attributes: Type.Record(Type.String(), Type.String()),
  /** Null for that of its fleet alone. */
  own: orNull(Policy),
  /** Those that count for it: `filter` with its variables filled in, `rule` as it was written. */
  rules: Type.Array(Type.Object({ ...RuleView.properties, filter: orNull(Type.String()), rule: PolicyRule })),
  limits: Type.Array(LimitView),
})
export type DevicePolicyView = Static<typeof DevicePolicyView>

/** Attributes to set; an empty value takes one away. */
export const TagRequest = Type.Object(
  { attributes: Type.Record(Type.String(), Type.String({ maxLength: 256 }), { maxProperties: 16 }) },
  { additionalProperties: false },
)
export type TagRequest = Static<typeof TagRequest>

export const PolicyQuestion = Type.Object(
  {
    device: Id,
    action: Type.Union([Type.Literal('publish'), Type.Literal('subscribe')]),
    topic: Type.String({ minLength: 1, maxLength: 65_535 }),
    qos: Type.Optional(Type.Union([Type.Literal(0), Type.Literal(1), Type.Literal(2)])),
    retain: Type.Optional(Type.Boolean()),
    payloadBytes: Type.Optional(Type.Integer({ minimum: 0, maximum: 268_435_455 })),
    /** Where the client is; without it a rule for certain networks does not allow, and does deny. */
    address: Type.Optional(Type.String({ maxLength: 64 })),
  },
  { additionalProperties: false },
)
export type PolicyQuestion = Static<typeof PolicyQuestion>

export const PolicyAnswer = Type.Object({
  device: Id,
  allowed: Type.Boolean(),
  rule: orNull(RuleView),
  reason: Type.String(),
  /** Of a subscription that is allowed. */
  maxQos: Type.Optional(Type.Integer()),
})
export type PolicyAnswer = Static<typeof PolicyAnswer>

export const PolicyFaultView = Type.Object({
  path: Type.Array(Type.Union([Type.String(), Type.Number()])),
  message: Type.String(),
})

/** What a grant is cut by. */
export const PolicyCut = Type.Object({
  list: RuleView.properties.list,
  /** The rule that granted it, as it was written. */
  rule: Type.String(),
  loss: Type.Union([
    Type.Literal('all or a part of it'),
    Type.Literal('a higher QoS'),
    Type.Literal('retaining'),
  ]),
  /** Of the devices that were examined. */
  devices: Type.Integer(),
  online: Type.Integer(),
  example: Type.Object({ device: Id, filter: Type.String() }),
})
export type PolicyCut = Static<typeof PolicyCut>

/** A limit that would be another one; null: each broker's own. */
export const LimitChange = Type.Object({
  limit: Type.String(),
  before: orNull(Type.Integer()),
  after: orNull(Type.Integer()),
  /** Of the devices that were examined. */
  devices: Type.Integer(),
  online: Type.Integer(),
})
export type LimitChange = Static<typeof LimitChange>

export const PolicyPreview = Type.Object({
  fleet: Id,
  /** Devices and services of the fleet that have not retired, and how many of them were examined. */
  devices: Type.Integer(),
  examined: Type.Integer(),
  /** Those of the examined that lose anything, or have a lower limit. */
  affected: Type.Integer(),
  cuts: Type.Array(PolicyCut),
  limits: Type.Array(LimitChange),
})
export type PolicyPreview = Static<typeof PolicyPreview>
