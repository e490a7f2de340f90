/** A filter as it is matched: an exact topic, a tree below a prefix (`a/b/#`), or levels with wildcards. */
export type Pattern =
  | { readonly kind: 'exact'; readonly topic: string }
  | { readonly kind: 'tree'; readonly root: string; readonly below: string }
  | { readonly kind: 'levels'; readonly levels: readonly string[]; readonly isOpen: boolean }

const SLASH = '/'

/** @param filter a topic filter that does not begin with `$` */
export function patternOf(filter: string): Pattern {
  const levels = filter.split(SLASH)
  const isOpen = levels.at(-1) === '#'
  if (isOpen) levels.pop()
  if (levels.length === 0 || levels.includes('+')) return { kind: 'levels', levels, isOpen }
  const root = levels.join(SLASH)
  return isOpen ? { kind: 'tree', root, below: `${root}/` } : { kind: 'exact', topic: root }
}

/** Does the topic match? Allocates nothing. The caller has kept out topics that begin with `$`. */
export function matches(pattern: Pattern, topic: string): boolean {
  switch (pattern.kind) {
    case 'exact':
      return topic === pattern.topic
    case 'tree':
      return topic.startsWith(pattern.below) || topic === pattern.root
    case 'levels':
      return matchesLevels(pattern.levels, pattern.isOpen, topic)
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

/** Is there a topic that both filters match? Neither begins with `$`. */
export function overlap(one: readonly string[], other: readonly string[]): boolean {
  for (let at = 0; ; at++) {
    const [a, b] = [one[at], other[at]]
    // `a/#` matches `a` too (MQTT 3.1.1 section 4.7.1.2); but there is no empty topic for `/#` and `+` to meet in.
    if (a === '#' || b === '#') return at !== 1 || !meetsInNothing(one, other)
    if (a === undefined || b === undefined) return a === b
    if (a !== '+' && b !== '+' && a !== b) return false
  }
}

/** One of them has ended after a first level that is empty. */
function meetsInNothing(one: readonly string[], other: readonly string[]): boolean {
  return (one.length === 1 || other.length === 1) && (one[0] === '' || other[0] === '')
}

/**
 * Topics that stand for all that a filter matches. A level that a wildcard stands for is at its strictest when no
 * rule names it, and no rule names a level `+`: so `+`, read as a name, speaks for every value of itself. Past the
 * deepest rule a further level changes nothing, so `#` needs no more than that many.
 */
export function probes(filter: string, deepest: number): string[] {
  if (!filter.endsWith('#')) return [filter]
  const levels = filter.split(SLASH).slice(0, -1)
  const parent = levels.join(SLASH)
  const topics = parent === '' ? [] : [parent] // `/#` has no parent: the empty topic does not exist
  do {
    levels.push('+')
    topics.push(levels.join(SLASH))
  } while (levels.length <= deepest)
  return topics
}
