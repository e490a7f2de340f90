import type { PolicyCut } from '#shared/api'
import type { CompiledPolicy } from '#shared/policy/compile'
import { matches, patternOf, probes } from '#shared/policy/match'
import type { Rule } from '#shared/policy/rules'
import type { RuleList } from '#shared/policy/schema'
import { type LimitTally, limitChangesOf } from './policy-limits.ts'

/** What a preview has found so far. */
export interface Tally {
  affected: number
  readonly cuts: Map<string, PolicyCut>
  readonly limits: LimitTally
}

export const newTally = (): Tally => ({ affected: 0, cuts: new Map(), limits: new Map() })

interface Compared {
  readonly device: string
  readonly isOnline: boolean
  readonly before: CompiledPolicy
  readonly after: CompiledPolicy
}

/** Adds what one device would lose, by the rules that grant it now. Lengths of payloads and rates of rules are not compared. */
export function cutsOf(tally: Tally, compared: Compared): void {
  const { isOnline, before, after } = compared
  const allowances = { isOnline, before: before.allowance, after: after.allowance }
  let isAffected = limitChangesOf(tally.limits, allowances)
  for (const list of ['publish', 'subscribe'] as const) {
    for (const rule of before.rules(list)) {
      if (rule.origin.effect === 'deny') continue
      const loss = lossOf(compared, { list, rule })
      if (loss === null) continue
      isAffected = true
      add(tally, { ...compared, list, rule, loss })
    }
  }
  if (isAffected) tally.affected++
}

function add({ cuts }: Tally, cut: Compared & { list: RuleList; rule: Rule; loss: PolicyCut['loss'] }): void {
  const { list, rule, loss, device, isOnline } = cut
  const key = `${list} ${loss} ${rule.origin.scope} ${rule.origin.index}`
  const known = cuts.get(key)
  const example = { device, filter: rule.levels.join('/') }
  const { devices, online } = known ?? { devices: 0, online: 0 }
  cuts.set(key, {
    ...(known ?? { list, rule: rule.origin.topic, loss, example }),
    devices: devices + 1,
    online: online + (isOnline ? 1 : 0),
  })
}

function lossOf(
  { before, after }: Compared,
  { list, rule }: { list: RuleList; rule: Rule },
): PolicyCut['loss'] | null {
  const filter = rule.levels.join('/')
  const [had, has] =
    list === 'publish'
      ? [before.publishQos(filter), after.publishQos(filter)]
      : [before.subscribeQos(filter), after.subscribeQos(filter)]
  const topics = topicsOf(filter, after.rules(list))
  const may = (policy: CompiledPolicy, topic: string) =>
    list === 'publish' ? policy.mayPublish(topic) : policy.mayReceive(topic)
  if (had >= 0 && has < 0) return 'all or a part of it'
  // What the rule allows may be denied in part already: then single topics tell.
  if (had < 0 && topics.some((topic) => may(before, topic) && !may(after, topic)))
    return 'all or a part of it'
  if (has < had) return 'a higher QoS'
  const mayRetain = (policy: CompiledPolicy, topic: string) =>
    policy.publishRule({ topic, retain: true }) !== null
  const isLost = (topic: string) => mayRetain(before, topic) && !mayRetain(after, topic)
  return list === 'publish' && topics.some(isLost) ? 'retaining' : null
}

/** Topics that stand for what the filter matches, and for what rules deny of it. */
function topicsOf(filter: string, rules: readonly Rule[]): string[] {
  const deepest = Math.max(0, ...rules.map(({ levels }) => levels.length))
  const pattern = patternOf(filter)
  const denied = rules
    .filter(({ origin }) => origin.effect === 'deny')
    .flatMap(({ levels }) => probes(levels.join('/'), deepest))
  return [...probes(filter, deepest), ...denied.filter((topic) => matches(pattern, topic))]
}
