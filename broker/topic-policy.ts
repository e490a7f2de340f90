import type { Policy } from '#shared/feed'
import { isTopicFilter, levelsOf } from './topic-syntax.ts'

/** What one device may do, compiled when it connects; the three questions allocate nothing for a topic. */
export interface CompiledPolicy {
  /** May the device publish to this topic name? The caller has checked that it is one. */
  mayPublish(topic: string): boolean
  /** True only when every topic that the filter can match may be received. */
  maySubscribe(filter: string): boolean
  /** May a message on this topic reach the device? */
  mayReceive(topic: string): boolean
}

/** A rule after substitution: an exact topic, a tree below a prefix (`a/b/#`), or levels with wildcards. */
type Rule =
  | { readonly kind: 'exact'; readonly topic: string }
  | { readonly kind: 'tree'; readonly root: string; readonly below: string }
  | { readonly kind: 'levels'; readonly levels: readonly string[]; readonly isOpen: boolean }

/**
 * Compiles the rules of a fleet for one device. A rule that cannot be read, or whose variable is empty or would
 * add a level or a wildcard, grants nothing. Topics and filters that begin with `$` are never granted.
 */
export function compilePolicy(policy: Policy, device: { id: string; fleet: string }): CompiledPolicy {
  const publish = compileRules(policy.publish, device)
  const subscribe = compileRules(policy.subscribe, device)
  const deepest = Math.max(0, ...policy.subscribe.map(levelsOf))
  return {
    mayPublish: (topic) => !isOfThePlane(topic) && isGranted(publish, topic),
    mayReceive: (topic) => isGranted(subscribe, topic),
    maySubscribe: (filter) =>
      isTopicFilter(filter) && probes(filter, deepest).every((topic) => isGranted(subscribe, topic)),
  }
}

function compileRules(filters: readonly string[], device: { id: string; fleet: string }): Rule[] {
  return filters.map((filter) => compileRule(filter, device)).filter((rule) => rule !== null)
}

function compileRule(template: string, device: { id: string; fleet: string }): Rule | null {
  const filter = substitute(template, device)
  if (filter === null || !isTopicFilter(filter) || filter.startsWith('$')) return null
  const levels = filter.split('/')
  const isOpen = levels.at(-1) === '#'
  if (isOpen) levels.pop()
  if (levels.length === 0 || levels.includes('+')) return { kind: 'levels', levels, isOpen }
  const root = levels.join('/')
  return isOpen ? { kind: 'tree', root, below: `${root}/` } : { kind: 'exact', topic: root }
}

/** Null when a variable is unknown, or its value is not exactly one level without wildcards. */
function substitute(template: string, device: { id: string; fleet: string }): string | null {
  const values = new Map([
    ['device.id', device.id],
    ['device.fleet', device.fleet],
  ])
  let isWhole = true
  const filter = template.replaceAll(/\$\{([^}]*)\}/g, (_, name: string) => {
    const value = values.get(name) ?? ''
    if (value === '' || /[/+#$]/.test(value)) isWhole = false
    return value
  })
  return isWhole && !filter.includes('${') ? filter : null
}

/**
 * Topics that stand for all that a filter matches. A level that a wildcard stands for is at its strictest when no
 * rule names it, and no rule names a level `+`: so `+`, read as a name, speaks for every value of itself. Past the
 * deepest rule a further level changes nothing, so `#` needs no more than that many. `a/#` matches `a` too
 * (MQTT 3.1.1 section 4.7.1.2).
 */
function probes(filter: string, deepest: number): string[] {
  if (!filter.endsWith('#')) return [filter]
  const levels = filter.split('/').slice(0, -1)
  const parent = levels.join('/')
  const topics = parent === '' ? [] : [parent] // `/#` has no parent: the empty topic does not exist
  do {
    levels.push('+')
    topics.push(levels.join('/'))
  } while (levels.length <= deepest)
  return topics
}

const DEVICES = 'devices/'
const OWN_LEVEL = '/muster'

/** `devices/<id>/muster` and below: what the broker itself tells a device. Nobody else publishes there, whatever a policy says. */
function isOfThePlane(topic: string): boolean {
  if (!topic.startsWith(DEVICES)) return false
  const at = topic.indexOf(SLASH, DEVICES.length)
  if (at === -1 || !topic.startsWith(OWN_LEVEL, at)) return false
  const end = at + OWN_LEVEL.length
  return topic.length === end || topic.startsWith(SLASH, end)
}

const DOLLAR = 36
const SLASH = '/'

function isGranted(rules: readonly Rule[], topic: string): boolean {
  if (topic.length === 0 || topic.charCodeAt(0) === DOLLAR) return false
  for (const rule of rules) {
    if (matches(rule, topic)) return true
  }
  return false
}

function matches(rule: Rule, topic: string): boolean {
  switch (rule.kind) {
    case 'exact':
      return topic === rule.topic
    case 'tree':
      return topic.startsWith(rule.below) || topic === rule.root
    case 'levels':
      return matchesLevels(rule.levels, rule.isOpen, topic)
  }
}

/** Walks the topic level by level without cutting it up (MQTT 3.1.1 section 4.7). */
function matchesLevels(levels: readonly string[], isOpen: boolean, topic: string): boolean {
  let at = 0
  for (const level of levels) {
    if (at > topic.length) return false
    const slash = topic.indexOf(SLASH, at)
    const end = slash === -1 ? topic.length : slash
    if (level !== '+' && !(end - at === level.length && topic.startsWith(level, at))) return false
    at = end + 1
  }
  // `at` is past the end by one when the topic has no further level; an empty last level leaves it at the end.
  return isOpen || at > topic.length
}
