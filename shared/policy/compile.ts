import { isForServices } from '../presence.ts'
import { isTopicFilter, isTopicName } from '../topic-syntax.ts'
import { type Allowance, allowanceOf } from './caps.ts'
import { matches, overlap, probes } from './match.ts'
import { type Client, type Origin, type Rule, readPolicy, ruleFor } from './rules.ts'
import type { Policy, RuleList } from './schema.ts'

/** What is judged of a message. */
export interface Publication {
  readonly topic: string
  /** Octets, a text, or only how long they are. */
  readonly payload?: { readonly length: number } | string | undefined
  readonly qos?: number | undefined
  readonly retain?: boolean | undefined
}

/** An answer for people: by which rule, or why by none. */
export interface Verdict {
  readonly isAllowed: boolean
  readonly rule: Origin | null
  readonly reason: string
  /** Of a subscription that is allowed: the highest QoS that it is granted. */
  readonly maxQos?: number
}

/** What one client may do; the questions about messages allocate nothing, whatever is asked again is found at once. */
export interface CompiledPolicy {
  /** The rule that grants the message, or null. The caller has checked that the topic is one. */
  publishRule(message: Publication): Rule | null
  /** May the client publish to this topic at all, whatever the limits say? */
  mayPublish(topic: string): boolean
  /** The QoS with which every topic that the filter can match may be published to; -1 when one may not. */
  publishQos(filter: string): number
  /** The QoS that a subscription is granted at most; -1 unless every topic that the filter can match may be received. */
  subscribeQos(filter: string): number
  maySubscribe(filter: string): boolean
  /** May a message on this topic reach the client? */
  mayReceive(topic: string): boolean
  whyPublish(message: Publication): Verdict
  whySubscribe(filter: string, qos?: number): Verdict
  /** What the client may have at most, whatever the topics. */
  readonly allowance: Allowance
  /** Some rule for publishing has a rate. */
  readonly hasRates: boolean
  /** The rules that say something about this client. */
  rules(list: RuleList): readonly Rule[]
}

/** Policies that count for a client; `own` takes the place of what the fleet allows, not of what it denies. */
export interface Policies {
  readonly policy: Policy
  readonly own?: Policy | null | undefined
  /** What the client may have where neither has a limit; that of a device, when it is left out. */
  readonly defaults?: Allowance | undefined
}

export interface RuleSet {
  readonly allow: readonly Rule[]
  readonly deny: readonly Rule[]
  /** Levels of the longest rule. */
  readonly deepest: number
}

/** Compiles what counts for a client. A policy that cannot be read at all grants nothing. */
export function compilePolicies(policies: Policies, client: Client): CompiledPolicy {
  const allowance = allowanceOf(policies)
  try {
    const publish = ruleSet(policies, client, 'publish')
    return compiled({ publish, subscribe: ruleSet(policies, client, 'subscribe'), allowance })
  } catch {
    return compiled({ publish: NOTHING, subscribe: NOTHING, allowance }) // stored by another version, or damaged
  }
}

interface Compilable extends Record<RuleList, RuleSet> {
  readonly allowance: Allowance
}

const NOTHING: RuleSet = { allow: [], deny: [], deepest: 0 }

function ruleSet({ policy, own = null }: Policies, client: Client, list: RuleList): RuleSet {
  const fleets = readPolicy(policy, 'fleet')[list]
  const read = own
    ? [...fleets.filter(({ origin }) => origin.effect === 'deny'), ...readPolicy(own, 'own')[list]]
    : fleets
  const rules = read.map((rule) => ruleFor(rule, client)).filter((rule) => rule !== null)
  return {
    allow: rules.filter(({ origin }) => origin.effect === 'allow'),
    deny: rules.filter(({ origin }) => origin.effect === 'deny'),
    deepest: Math.max(0, ...rules.map(({ levels }) => levels.length)),
  }
}

function compiled({ publish, subscribe, allowance }: Compilable): CompiledPolicy {
  const published = finder(publish)
  const received = finder(subscribe)
  return {
    allowance,
    publishRule(message) {
      if (isOfThePlane(message.topic)) return null
      for (const rule of published(message.topic)) if (isWithin(rule, message)) return rule
      return null
    },
    mayPublish: (topic) => !isOfThePlane(topic) && published(topic).length > 0,
    mayReceive: (topic) => received(topic).length > 0,
    publishQos: (filter) => grantedQos(publish, filter),
    subscribeQos: (filter) => grantedQos(subscribe, filter),
    maySubscribe: (filter) => grantedQos(subscribe, filter) >= 0,
    hasRates: publish.allow.some(({ perSecond }) => perSecond > 0),
    whyPublish: (message) => whyPublish(publish, message),
    whySubscribe: (filter, qos = 0) => whySubscribe(subscribe, filter, qos),
    rules: (list) =>
      list === 'publish' ? [...publish.deny, ...publish.allow] : [...subscribe.deny, ...subscribe.allow],
  }
}

/** Rules up to which looking through them is faster than looking up the topic. */
const FEW = 4
/** Topics that are remembered, and their longest: a client publishes to few. */
const REMEMBERED = 64
const REMEMBERED_LENGTH = 256
const NONE: readonly Rule[] = []

/** Finds the rules that allow a topic; none when one denies it. */
function finder(set: RuleSet): (topic: string) => readonly Rule[] {
  const [only] = set.allow
  const single: readonly Rule[] = set.allow
  if (only === undefined) return () => NONE
  if (set.allow.length === 1 && set.deny.length === 0) {
    return (topic) => (isOpenTo(topic) && matches(only.pattern, topic) ? single : NONE)
  }
  if (set.allow.length + set.deny.length > FEW) return remembering((topic) => find(set, topic))
  const each = set.allow.map((rule): readonly Rule[] => [rule])
  return (topic) => {
    if (!isOpenTo(topic) || isDenied(set, topic)) return NONE
    let found = NONE
    for (let at = 0; at < each.length; at++) {
      if (!matches((set.allow[at] as Rule).pattern, topic)) continue // `each` has its length
      if (found !== NONE) return find(set, topic) // two that match: rare
      found = each[at] as readonly Rule[] // as above
    }
    return found
  }
}

function remembering(search: (topic: string) => readonly Rule[]): (topic: string) => readonly Rule[] {
  let topics: Map<string, readonly Rule[]> | null = null
  return (topic) => {
    const known = topics?.get(topic)
    if (known !== undefined) return known
    const found = search(topic)
    if (topic.length > REMEMBERED_LENGTH) return found
    if (topics === null || topics.size >= REMEMBERED) topics = new Map()
    topics.set(topic, found)
    return found
  }
}

function find(set: RuleSet, topic: string): readonly Rule[] {
  if (!isOpenTo(topic) || isDenied(set, topic)) return NONE
  const found = set.allow.filter(({ pattern }) => matches(pattern, topic))
  return found.length === 0 ? NONE : found
}

function isDenied({ deny }: RuleSet, topic: string): boolean {
  for (const rule of deny) if (matches(rule.pattern, topic)) return true
  return false
}

const DOLLAR = 36

/** Topics that begin with `$` are nobody's. */
function isOpenTo(topic: string): boolean {
  return topic.length > 0 && topic.charCodeAt(0) !== DOLLAR
}

function isWithin(rule: Rule, { qos = 0, retain = false, payload }: Publication): boolean {
  return (
    qos <= rule.maxQos &&
    (!retain || rule.retain) &&
    (rule.maxPayloadBytes === Number.POSITIVE_INFINITY || octets(payload) <= rule.maxPayloadBytes)
  )
}

function octets(payload: Publication['payload']): number {
  if (payload === undefined) return 0
  return typeof payload === 'string' ? Buffer.byteLength(payload) : payload.length
}

const DEVICES = 'devices/'
const OWN_LEVEL = '/muster'

/** `devices/<id>/muster` and below, and `muster`: what the broker itself tells a device, and services. Nobody else publishes there, whatever a policy says. */
function isOfThePlane(topic: string): boolean {
  if (isForServices(topic)) return true
  if (!topic.startsWith(DEVICES)) return false
  const at = topic.indexOf('/', DEVICES.length)
  if (at === -1 || !topic.startsWith(OWN_LEVEL, at)) return false
  const end = at + OWN_LEVEL.length
  return topic.length === end || topic.startsWith('/', end)
}

const SHARE = '$share/'

/** The filter that a shared subscription is about (MQTT 5 section 4.8.2); null when it has no group, or no filter. */
export function sharedFilter(filter: string): string | null {
  if (!filter.startsWith(SHARE)) return filter
  const end = filter.indexOf('/', SHARE.length)
  const isGroup = end > SHARE.length && !/[+#]/.test(filter.slice(SHARE.length, end))
  return isGroup && end < filter.length - 1 ? filter.slice(end + 1) : null
}

/** The lowest, over all topics that the filter can match, of the highest QoS that a rule allows for it; -1 for a denied one. */
export function grantedQos({ allow, deny, deepest }: RuleSet, asked: string): number {
  const filter = sharedFilter(asked)
  if (filter === null || !isTopicFilter(filter) || filter.startsWith('$')) return -1
  if (deny.length > 0) {
    const levels = filter.split('/')
    if (deny.some((rule) => overlap(rule.levels, levels))) return -1
  }
  let granted = 2
  for (const topic of probes(filter, deepest)) {
    let best = -1
    for (const rule of allow) if (rule.maxQos > best && matches(rule.pattern, topic)) best = rule.maxQos
    if (best < granted) granted = best
    if (granted < 0) break
  }
  return granted
}

function whyPublish(set: RuleSet, message: Publication): Verdict {
  const { topic } = message
  if (!isTopicName(topic)) return refusal('it is no topic name')
  if (topic.startsWith('$')) return refusal('topics that begin with $ are granted to nobody')
  if (isOfThePlane(topic)) return refusal('only the broker itself publishes there')
  const denier = set.deny.find(({ pattern }) => matches(pattern, topic))
  if (denier !== undefined) return refusal('a rule denies it', denier)
  const rules = set.allow.filter(({ pattern }) => matches(pattern, topic))
  const granting = rules.find((rule) => isWithin(rule, message))
  if (granting !== undefined) return { isAllowed: true, rule: granting.origin, reason: 'a rule allows it' }
  const [first] = rules
  return first === undefined ? refusal('no rule allows it') : refusal(limitPassed(first, message), first)
}

function limitPassed(rule: Rule, { qos = 0, retain = false }: Publication): string {
  if (qos > rule.maxQos) return `QoS ${qos} is above maxQos ${rule.maxQos}`
  if (retain && !rule.retain) return 'it may not be retained'
  return `the payload is longer than maxPayloadBytes ${rule.maxPayloadBytes}`
}

function whySubscribe(set: RuleSet, asked: string, qos: number): Verdict {
  const filter = sharedFilter(asked)
  if (filter === null || !isTopicFilter(filter)) return refusal('it is no topic filter')
  if (filter.startsWith('$')) return refusal('topics that begin with $ are granted to nobody')
  const levels = filter.split('/')
  const denier = set.deny.find((rule) => overlap(rule.levels, levels))
  if (denier !== undefined) return refusal('a rule denies topics that it matches', denier)
  const maxQos = grantedQos(set, filter)
  if (maxQos < 0) return refusal(partlyAllowed(set, levels))
  const [topic = filter] = probes(filter, set.deepest)
  const granting = set.allow.find(({ pattern }) => matches(pattern, topic))
  const reason = qos > maxQos ? `it is granted with QoS ${maxQos}` : 'a rule allows all that it matches'
  return { isAllowed: true, rule: granting?.origin ?? null, reason, maxQos }
}

function partlyAllowed({ allow }: RuleSet, levels: readonly string[]): string {
  return allow.some((rule) => overlap(rule.levels, levels))
    ? 'rules allow a part of what it matches, not all'
    : 'no rule allows it'
}

function refusal(reason: string, rule?: Rule): Verdict {
  return { isAllowed: false, rule: rule?.origin ?? null, reason }
}

/** A rule as it is named in refusals and explanations: `fleet publish[0] deny devices/+/x`. */
export function nameOfRule({ scope, list, index, effect, topic }: Origin): string {
  return `${scope} ${list}[${index}] ${effect} ${topic}`
}
