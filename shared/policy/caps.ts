/**
 * Caps: what one client may have at most, whatever the topics. A broker has them for all its clients (`--limit`), a
 * policy for those whom it counts for; they go by the same names.
 */
import { type Static, Type } from 'typebox'
import type { Evidence } from '../errors.ts'

/** Least and most of each, the same for brokers and policies. */
export const CAP_RANGES = {
  subscriptions: [1, 100_000],
  filterLevels: [1, 100],
  inflightInbound: [1, 1_000],
  inflightOutbound: [1, 1_000],
  queueMessages: [0, 30_000],
  queueBytes: [0, 1_073_741_824],
  retainedMessages: [0, 1_000_000],
  retainedBytes: [0, 1_073_741_824],
  publishBurst: [1, 1_000_000],
  publishPerSecond: [0, 1_000_000],
  sessionExpirySeconds: [0, 315_360_000],
} as const satisfies Record<string, readonly [least: number, most: number]>

export type CapName = keyof typeof CAP_RANGES
export type Caps = Readonly<Record<CapName, number>>

export const CAP_NAMES = Object.keys(CAP_RANGES) as CapName[] // its own keys

/** What a device may have where neither a policy nor the broker's operator says anything. */
export const CAP_DEFAULTS: Caps = Object.freeze({
  subscriptions: 100,
  filterLevels: 10,
  inflightInbound: 20,
  inflightOutbound: 20,
  queueMessages: 1_000,
  queueBytes: 1_048_576,
  retainedMessages: 100,
  retainedBytes: 1_048_576,
  publishBurst: 200,
  publishPerSecond: 50,
  sessionExpirySeconds: 7_776_000,
})

/** Of these 0 means that there is no limit. */
export const UNLIMITED_AT_ZERO: readonly CapName[] = ['publishPerSecond', 'sessionExpirySeconds']

/** How many times some of them a service may have. */
export const SERVICE_TIMES = 20
const OF_SERVICES: readonly CapName[] = [
  ...(['inflightOutbound', 'queueMessages', 'queueBytes', 'retainedMessages', 'retainedBytes'] as const),
  ...(['publishBurst', 'publishPerSecond'] as const),
]

const cap = (name: CapName) =>
  Type.Optional(Type.Integer({ minimum: CAP_RANGES[name][0], maximum: CAP_RANGES[name][1] }))

/** The section `limits` of a policy; what it leaves out is as each broker has it. */
export const PolicyLimits = Type.Object(
  {
    /** Filters that a client has subscribed to at once, and levels of each. */
    subscriptions: cap('subscriptions'),
    filterLevels: cap('filterLevels'),
    /** QoS 2 messages of a client that wait for PUBREL. */
    inflightInbound: cap('inflightInbound'),
    /** Messages of its queue that are sent and wait for its answer. */
    inflightOutbound: cap('inflightOutbound'),
    /** Messages that wait for one session, and octets of their topics and payloads. */
    queueMessages: cap('queueMessages'),
    queueBytes: cap('queueBytes'),
    /** Retained messages of one identity, and their octets. */
    retainedMessages: cap('retainedMessages'),
    retainedBytes: cap('retainedBytes'),
    /** Requests that an identity may make: so many at once, so many a second; 0 a second for any. */
    publishBurst: cap('publishBurst'),
    publishPerSecond: cap('publishPerSecond'),
    /** For how long a client may stay away from its session; 0 for ever. */
    sessionExpirySeconds: cap('sessionExpirySeconds'),
  },
  { additionalProperties: false },
)
export type PolicyLimits = Static<typeof PolicyLimits>

/** Whose policy says it. */
export type CapOrigin = 'fleet' | 'own'

/** What one client may have, and by whose policy; what no policy says is as the broker has it. */
export interface Allowance {
  readonly caps: Caps
  readonly from: Readonly<Partial<Record<CapName, CapOrigin>>>
}

/** What devices or services may have where no policy says so. */
export function defaultAllowance(
  kind: 'device' | 'service',
  { caps = CAP_DEFAULTS, serviceTimes = SERVICE_TIMES }: { caps?: Caps; serviceTimes?: number } = {},
): Allowance {
  const times = (name: CapName) => (kind === 'service' && OF_SERVICES.includes(name) ? serviceTimes : 1)
  return { caps: filled((name) => caps[name] * times(name)), from: NOWHERE }
}

const NOWHERE: Allowance['from'] = Object.freeze({})
const FOR_DEVICES = defaultAllowance('device')

/** Policies with a section, as far as it can be read. */
interface Limited {
  readonly policy: { readonly limits?: unknown }
  readonly own?: { readonly limits?: unknown } | null | undefined
  /** What counts where neither says anything. */
  readonly defaults?: Allowance | undefined
}

/**
 * What counts for one client: the cap of its own policy, else that of its fleet, as they are written; else the default.
 * Whatever in a section is not a cap within its range counts as not written. Never throws.
 */
export function allowanceOf({ policy, own = null, defaults = FOR_DEVICES }: Limited): Allowance {
  if (sectionOf(policy) === null && sectionOf(own) === null) return defaults
  const from: Partial<Record<CapName, CapOrigin>> = {}
  const caps = filled((name) => {
    const [ofOwn, ofFleet] = [capIn(own, name), capIn(policy, name)]
    const origin = ofOwn !== null ? 'own' : ofFleet !== null ? 'fleet' : null
    if (origin !== null) from[name] = origin
    return ofOwn ?? ofFleet ?? defaults.caps[name]
  })
  return { caps, from }
}

/** All of the same shape, so that reading one costs the same whoever's it is. */
function filled(capOf: (name: CapName) => number): Caps {
  const caps = { ...CAP_DEFAULTS }
  for (const name of CAP_NAMES) caps[name] = capOf(name)
  return caps
}

function sectionOf(policy: unknown): object | null {
  const limits =
    isObject(policy) && Object.hasOwn(policy, 'limits') ? (policy as Limited['policy']).limits : null
  return isObject(limits) ? limits : null
}

function capIn(policy: unknown, name: CapName): number | null {
  const section = sectionOf(policy)
  if (section === null || !Object.hasOwn(section, name)) return null
  const value = (section as Record<CapName, unknown>)[name] // by the line before
  const [least, most] = CAP_RANGES[name]
  return Number.isInteger(value) && (value as number) >= least && (value as number) <= most
    ? (value as number)
    : null
}

function isObject(value: unknown): value is object {
  return typeof value === 'object' && value !== null
}

/** A cap as it is named in refusals and explanations: `fleet limits.queueMessages`. */
export function nameOfCap(origin: CapOrigin, name: CapName): string {
  return `${origin} limits.${name}`
}

/** Whose policy the cap comes from, for the evidence of a refusal; nothing when it is the broker's. */
export function ruleOfCap({ from }: Allowance, name: CapName): { rule?: string } {
  const origin = from[name]
  return origin === undefined ? {} : { rule: nameOfCap(origin, name) }
}

/** The evidence that a cap is reached. */
export function capReached(
  allowance: Allowance,
  limit: CapName,
): Evidence & { limit: CapName; allowed: number } {
  return { limit, allowed: allowance.caps[limit], ...ruleOfCap(allowance, limit) }
}
