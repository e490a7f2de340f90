import { isTopicFilter } from '../topic-syntax.ts'
import { type Pattern, patternOf } from './match.ts'
import { networks } from './networks.ts'
import type { Policy, PolicyRule, RuleCondition, RuleList, RuleObject } from './schema.ts'
import { fill, fillWidely, readTemplate, type Subject, type TopicTemplate } from './topic-template.ts'

/** Where a rule stands. */
export interface Origin {
  /** Whether it is of the fleet, or of the device or service itself. */
  readonly scope: 'fleet' | 'own'
  readonly list: RuleList
  readonly index: number
  /** As it was written. */
  readonly topic: string
  readonly effect: 'allow' | 'deny'
}

/** A rule for one device; limits that it does not have are at their widest. */
export interface Rule {
  readonly pattern: Pattern
  readonly levels: readonly string[]
  readonly maxQos: number
  readonly retain: boolean
  readonly maxPayloadBytes: number
  /** 0 for no limit. */
  readonly perSecond: number
  readonly burst: number
  readonly origin: Origin
  /** Names the rule of this device among the rates of all. */
  readonly rateKey: string
}

/** A device where it is now. */
export interface Client extends Subject {
  /** Null when it is not known. */
  readonly address?: string | null | undefined
  /** True: a network that cannot be checked is taken for one that fits. */
  readonly isSourceGiven?: boolean | undefined
}

/** A list of rules, read once for all who share the policy. */
export interface ReadRule {
  readonly origin: Origin
  readonly template: TopicTemplate | null
  readonly limits: Pick<Rule, 'maxQos' | 'retain' | 'maxPayloadBytes' | 'perSecond' | 'burst'>
  readonly when: Required<RuleCondition> | null
  readonly isSource: ((address: string) => boolean) | null
  /** It says something that is not understood. */
  readonly isBroken: boolean
}

const WIDEST = { maxQos: 2, retain: true, maxPayloadBytes: Number.POSITIVE_INFINITY, perSecond: 0, burst: 0 }
const KNOWN: ReadonlySet<string> = new Set<keyof RuleObject>([
  ...(['topic', 'effect', 'maxQos', 'retain', 'maxPayloadBytes', 'perSecond', 'burst', 'when'] as const),
])
/** A subscription has no limit but its QoS: what is not kept to must not be granted. */
const OF_PUBLISHING = ['retain', 'maxPayloadBytes', 'perSecond', 'burst'] as const
const ANYTHING: Pattern = { kind: 'levels', levels: [], isOpen: true }

type ReadPolicy = Record<RuleList, readonly ReadRule[]>
const known = { fleet: new WeakMap<Policy, ReadPolicy>(), own: new WeakMap<Policy, ReadPolicy>() }

/** Reads a policy, once for each that is in memory. */
export function readPolicy(policy: Policy, scope: Origin['scope']): ReadPolicy {
  const before = known[scope].get(policy)
  if (before !== undefined) return before
  const list = (name: RuleList) =>
    policy[name].map((rule, index) => readRule(rule, { scope, list: name, index }))
  const read = { publish: list('publish'), subscribe: list('subscribe') }
  known[scope].set(policy, read)
  return read
}

function readRule(rule: PolicyRule, at: Pick<Origin, 'scope' | 'list' | 'index'>): ReadRule {
  const {
    topic,
    effect = 'allow',
    when,
    ...own
  }: RuleObject = typeof rule === 'string' ? { topic: rule } : rule
  const condition = when === undefined ? null : { sources: [], attributes: {}, ...when }
  const isSource = condition === null || condition.sources.length === 0 ? null : networks(condition.sources)
  const isBroken =
    (typeof rule !== 'string' && Object.keys(rule).some((name) => !KNOWN.has(name))) ||
    (at.list === 'subscribe' && OF_PUBLISHING.some((name) => own[name] !== undefined)) ||
    (condition !== null && condition.sources.length > 0 && isSource === null)
  const limits = { ...WIDEST, ...own }
  if (limits.perSecond > 0 && limits.burst === 0) limits.burst = Math.max(1, Math.ceil(limits.perSecond))
  return {
    origin: { ...at, topic, effect },
    template: readTemplate(topic),
    limits,
    when: condition,
    isSource,
    isBroken,
  }
}

/**
 * The rule for one client; null when it says nothing about it. A rule that cannot be read grants nothing, and one that
 * denies and cannot be read denies everything.
 */
export function ruleFor(read: ReadRule, client: Client): Rule | null {
  const { origin, template, isBroken } = read
  const denies = origin.effect === 'deny'
  if (!isBroken && !appliesTo(read, client)) return null
  const filter = isBroken || template === null ? null : (denies ? fillWidely : fill)(template, client)
  if (filter?.startsWith('$') === true) return null // denied anyhow
  const isReadable = filter !== null && isTopicFilter(filter)
  if (!isReadable && !denies) return null
  return {
    pattern: isReadable ? patternOf(filter) : ANYTHING,
    levels: isReadable ? filter.split('/') : ['#'],
    ...read.limits,
    origin,
    rateKey: `${client.id} ${origin.scope} ${origin.list} ${origin.index}`,
  }
}

/** Where it cannot be known whether a condition holds, a rule that denies does, and one that allows does not. */
function appliesTo({ when, isSource, origin }: ReadRule, client: Client): boolean {
  if (when === null) return true
  const { attributes = {}, address = null, isSourceGiven = false } = client
  for (const [name, wanted] of Object.entries(when.attributes)) {
    const value = Object.hasOwn(attributes, name) ? attributes[name] : undefined
    const isWanted =
      value !== undefined && (Array.isArray(wanted) ? wanted.includes(value) : wanted === value)
    if (!isWanted) return false
  }
  if (isSource === null) return true
  if (address !== null) return isSource(address)
  return isSourceGiven ? origin.effect === 'allow' : origin.effect === 'deny'
}
