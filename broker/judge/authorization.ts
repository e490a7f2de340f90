import type { Evidence } from '#shared/errors'
import { ruleOfCap } from '#shared/policy/caps'
import { compilePolicies, nameOfRule, type Publication, type Verdict } from '#shared/policy/compile'
import { reservedFilter } from '#shared/policy/reserved'
import { isForServices } from '#shared/presence'
import type { AdmissionReader } from '../door/gate.ts'
import type { Link, Will } from '../mqtt/mqtt-client.ts'
import type { Refusal } from '../refusals.ts'
import { isTopicName, levelsOf } from '../topic-syntax.ts'
import { admit, refusalOf, stillLive } from './admission.ts'
import { decisions } from './decisions.ts'

export interface AuthorizationDeps {
  now(): number
  readonly replica: AdmissionReader
  readonly maxStalenessMs: number
  /** What is stored of a client was ordered to be forgotten, and is still there. */
  isOwed?(clientId: string, identity: string): boolean
}

/** Judges CONNECT: the certificate once more, the client id that must be its own, and the will. */
export function judgeConnect(deps: AuthorizationDeps, link: Link): Refusal | null {
  const { connection, clientId, will } = link
  const now = deps.now()
  const record = deps.replica.record(connection.fingerprint)
  if (connection.refused !== null) return refusalOf(record, connection.refused, now)
  const decision = admit({
    record,
    clientId,
    peer: { ...connection, id: connection.device },
    now,
    silentMs: deps.replica.silentMs(now),
    maxStalenessMs: deps.maxStalenessMs,
  })
  if (!decision.admitted) return { code: decision.code, evidence: decision.evidence }
  if (will === null) return null
  const { policy } = connection
  const isPermitted = will.qos <= 2 && isTopicName(will.topic) && policy.publishRule(will) !== null
  return isPermitted
    ? null
    : { code: 'will', evidence: evidenceOf(policy.whyPublish(will), { topic: will.topic }) }
}

/** Judges a PUBLISH by memory alone; allocates nothing for one that is granted. */
export function judgePublish({ connection }: Link, message: Publication): Refusal | null {
  if (connection.refused !== null) return { code: connection.refused, evidence: {} }
  const { policy } = connection
  if (policy.publishRule(message) !== null) return null
  return { code: 'policy_pub', evidence: evidenceOf(policy.whyPublish(message), { topic: message.topic }) }
}

/** What was asked, and the rule that is against it. */
function evidenceOf({ rule, reason }: Verdict, asked: Evidence): Evidence {
  return rule === null ? { ...asked, reason } : { ...asked, reason, rule: nameOfRule(rule) }
}

/** A filter of a SUBSCRIBE, or of a session that is taken up again. */
export interface Asked {
  readonly topic: string
  readonly qos: number
  /** The session has it already: a limit that was lowered since takes nothing away. */
  readonly isKept: boolean
}

/**
 * Judges one filter and counts it when it is granted. A QoS above what is granted is refused: of a SUBSCRIBE it has
 * been lowered before, and a session does not keep it.
 */
export function judgeSubscribe(link: Link, { topic: filter, qos, isKept }: Asked): Refusal | null {
  const { connection, filters } = link
  if (connection.refused !== null) return { code: connection.refused, evidence: {} }
  const { policy } = connection
  const evidence = isKept || filters.has(filter) ? null : beyondCaps(link, filter)
  if (evidence !== null) return { code: 'policy_sub', evidence }
  if (policy.subscribeQos(filter) < qos) {
    return { code: 'policy_sub', evidence: evidenceOf(policy.whySubscribe(filter, qos), { filter }) }
  }
  const reason = reservedFilter(filter, connection.kind)
  if (reason !== null) return { code: 'policy_sub', evidence: { filter, reason } }
  filters.add(filter)
  return null
}

/** Which cap is against one more subscription, this one. */
function beyondCaps({ connection, filters }: Link, filter: string): Evidence | null {
  const { allowance } = connection.policy
  const { filterLevels, subscriptions } = allowance.caps
  if (levelsOf(filter) > filterLevels) {
    return { filter, allowedLevels: filterLevels, ...ruleOfCap(allowance, 'filterLevels') }
  }
  if (filters.size < subscriptions) return null
  return { filter, allowedSubscriptions: subscriptions, ...ruleOfCap(allowance, 'subscriptions') }
}

/** True while what was granted at that count of decisions is granted still. */
export function isGrantedStill(at: number): boolean {
  return at === decisions()
}

/** May a message on this topic reach the client: live, retained, or from its queue? */
export function mayForward({ connection }: Link, topic: string): boolean {
  if (connection.refused !== null) return false
  return !(connection.kind === 'device' && isForServices(topic)) && connection.policy.mayReceive(topic)
}

/**
 * May this will be published? It fires when its client is gone, perhaps that of another broker, so the certificate
 * that stored it is looked up now, and the policy is the one that counts now. `address` is where its client was, null
 * when that is not known any more: then a rule for certain networks does not grant it.
 */
export function mayFire(deps: AuthorizationDeps, will: Will, address: string | null = null): boolean {
  if (will.fingerprint === undefined) return false
  const record = deps.replica.record(will.fingerprint)
  if (record === null || stillLive(record, deps.now()) !== null) return false
  const { device, fleet } = record
  if (deps.isOwed?.(will.clientId ?? device.id, device.id)) return false
  const policies = { policy: fleet.policy, own: device.policy }
  return (
    isTopicName(will.topic) && compilePolicies(policies, { ...device, address }).publishRule(will) !== null
  )
}
