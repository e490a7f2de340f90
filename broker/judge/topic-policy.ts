import { type CompiledPolicy, compilePolicies, type Policies } from '#shared/policy/compile'
import type { Client } from '#shared/policy/rules'
import type { Policy } from '#shared/policy/schema'

export type { CompiledPolicy } from '#shared/policy/compile'

/** Compiles the rules of a fleet for one client of it. */
export function compilePolicy(policy: Policy, client: Client): CompiledPolicy {
  return compilePolicies({ policy }, client)
}

/** The policy of a fleet as it is now; each change raises `version`. */
export interface FleetPolicy {
  version: number
  policy: Policy | null
}

/**
 * The policy of one client, compiled when it is first asked and again when that of its fleet has changed since: a
 * change costs one step, however many clients the fleet has, and no message is judged by what was before it.
 */
export function livePolicy(fleet: FleetPolicy, policies: Policies, client: Client): CompiledPolicy {
  let seen = fleet.version
  let counting = policies
  let compiled: CompiledPolicy | null = null
  const now = () => {
    if (compiled === null || seen !== fleet.version) {
      if (seen !== fleet.version && fleet.policy !== null) counting = { ...policies, policy: fleet.policy }
      seen = fleet.version
      compiled = compilePolicies(counting, client)
    }
    return compiled
  }
  return {
    get version() {
      return now().version
    },
    publishRule: (message) => now().publishRule(message),
    mayPublish: (topic) => now().mayPublish(topic),
    publishQos: (filter) => now().publishQos(filter),
    subscribeQos: (filter) => now().subscribeQos(filter),
    maySubscribe: (filter) => now().maySubscribe(filter),
    mayReceive: (topic) => now().mayReceive(topic),
    get hasRates() {
      return now().hasRates
    },
    whyPublish: (message) => now().whyPublish(message),
    whySubscribe: (filter, qos) => now().whySubscribe(filter, qos),
    rules: (list) => now().rules(list),
  }
}
