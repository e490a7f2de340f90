import { admit, refusalOf, stillLive } from './admission.ts'
import { type AdmissionReader, silence } from './gate.ts'
import type { Limits } from './limits.ts'
import type { Link, Will } from './mqtt-client.ts'
import type { Refusal } from './refusals.ts'
import { compilePolicy } from './topic-policy.ts'
import { isTopicName, levelsOf } from './topic-syntax.ts'

export interface AuthorizationDeps {
  now(): number
  readonly replica: AdmissionReader
  readonly maxStalenessMs: number
  readonly limits: Pick<Limits, 'subscriptions' | 'filterLevels'>
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
    silentMs: silence(deps, now),
    maxStalenessMs: deps.maxStalenessMs,
  })
  if (!decision.admitted) return { code: decision.code, evidence: decision.evidence }
  if (will === null) return null
  const isPermitted = will.qos <= 2 && isTopicName(will.topic) && connection.policy.mayPublish(will.topic)
  return isPermitted ? null : { code: 'will', evidence: { topic: will.topic } }
}

/** Judges a PUBLISH by memory alone. */
export function judgePublish({ connection }: Link, topic: string): Refusal | null {
  if (connection.refused !== null) return { code: connection.refused, evidence: {} }
  return connection.policy.mayPublish(topic) ? null : { code: 'policy_pub', evidence: { topic } }
}

/** Judges one filter of a SUBSCRIBE, or of a session that is taken up again, and counts it when it is granted. */
export function judgeSubscribe({ limits }: AuthorizationDeps, link: Link, filter: string): Refusal | null {
  const { connection, filters } = link
  if (connection.refused !== null) return { code: connection.refused, evidence: {} }
  if (levelsOf(filter) > limits.filterLevels) {
    return { code: 'policy_sub', evidence: { filter, allowedLevels: limits.filterLevels } }
  }
  if (!filters.has(filter) && filters.size >= limits.subscriptions) {
    return { code: 'policy_sub', evidence: { filter, allowedSubscriptions: limits.subscriptions } }
  }
  if (!connection.policy.maySubscribe(filter)) return { code: 'policy_sub', evidence: { filter } }
  filters.add(filter)
  return null
}

/** May a message on this topic reach the client: live, retained, or from its queue? */
export function mayForward({ connection }: Link, topic: string): boolean {
  return connection.refused === null && connection.policy.mayReceive(topic)
}

/**
 * May this will be published? It fires when its client is gone, perhaps that of another broker, so the certificate
 * that stored it is looked up now, and the policy is the one that the fleet has now.
 */
export function mayFire(deps: AuthorizationDeps, will: Will): boolean {
  if (will.fingerprint === undefined) return false
  const record = deps.replica.record(will.fingerprint)
  if (record === null || stillLive(record, deps.now()) !== null) return false
  const { device, fleet } = record
  return (
    isTopicName(will.topic) &&
    compilePolicy(fleet.policy, { id: device.id, fleet: fleet.id }).mayPublish(will.topic)
  )
}
