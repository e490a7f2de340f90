import { type Static, Type } from 'typebox'
import { PolicyLimits } from './caps.ts'

/** Rules of one list; and characters of one topic, variables included. */
export const RULES_MAX = 100
export const TOPIC_LENGTH_MAX = 1024

const Topic = Type.String({ minLength: 1, maxLength: TOPIC_LENGTH_MAX })
const Value = Type.String({ minLength: 1, maxLength: 256 })

/** Where and for whom a rule counts; all that is named must be so. */
export const RuleCondition = Type.Object(
  {
    /** Networks as CIDR, or addresses: one of them must be the client's. */
    sources: Type.Optional(Type.Array(Type.String({ maxLength: 64 }), { minItems: 1, maxItems: 32 })),
    /** Each of these attributes must have the value, or one of the values. */
    attributes: Type.Optional(
      Type.Record(
        Type.String({ pattern: '^[A-Za-z][A-Za-z0-9_.-]{0,31}$' }),
        Type.Union([Value, Type.Array(Value, { minItems: 1, maxItems: 32 })]),
        { maxProperties: 16, additionalProperties: false },
      ),
    ),
  },
  { additionalProperties: false },
)
export type RuleCondition = Static<typeof RuleCondition>

/** A rule with more than a topic; which limit may stand where, `policyFaults` says. */
export const RuleObject = Type.Object(
  {
    topic: Topic,
    /** `allow` when it is left out. What one rule denies no other allows. */
    effect: Type.Optional(Type.Union([Type.Literal('allow'), Type.Literal('deny')])),
    /** Highest QoS of a publication, or that a subscription is granted. */
    maxQos: Type.Optional(Type.Union([Type.Literal(0), Type.Literal(1), Type.Literal(2)])),
    /** False: messages with the retain flag are not granted by it. */
    retain: Type.Optional(Type.Boolean()),
    /** Octets of the longest payload. */
    maxPayloadBytes: Type.Optional(Type.Integer({ minimum: 0, maximum: 268_435_455 })),
    /** Messages a second, and so many at once; a client that sends more is read more slowly. */
    perSecond: Type.Optional(Type.Number({ exclusiveMinimum: 0, maximum: 1_000_000 })),
    burst: Type.Optional(Type.Integer({ minimum: 1, maximum: 1_000_000 })),
    when: Type.Optional(RuleCondition),
  },
  { additionalProperties: false },
)
export type RuleObject = Static<typeof RuleObject>

/** A topic filter that is granted, or a rule that says more. */
export const PolicyRule = Type.Union([Topic, RuleObject])
export type PolicyRule = Static<typeof PolicyRule>

/**
 * Topic rules; `${device.id}`, `${device.fleet}`, `${device.batch}` and `${device.attributes.<name>}` stand for the
 * device's own. What is not granted is denied.
 */
export const Policy = Type.Object(
  {
    publish: Type.Array(PolicyRule, { maxItems: RULES_MAX }),
    subscribe: Type.Array(PolicyRule, { maxItems: RULES_MAX }),
    /** What one client may have at most, whatever the topics, in the place of what its broker says. */
    limits: Type.Optional(PolicyLimits),
  },
  { additionalProperties: false },
)
export type Policy = Static<typeof Policy>

export type RuleList = 'publish' | 'subscribe'
