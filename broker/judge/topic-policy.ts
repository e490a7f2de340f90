import { type CompiledPolicy, compilePolicies, type Policies, type Publication } from '#shared/policy/compile'
import type { Client } from '#shared/policy/rules'
import type { Policy, RuleList } from '#shared/policy/schema'
import type { FleetPolicy } from './decisions.ts'

export type { CompiledPolicy } from '#shared/policy/compile'

/** Compiles the rules of a fleet for one client of it. */
export function compilePolicy(policy: Policy, client: Client): CompiledPolicy {
  return compilePolicies({ policy }, client)
}

/**
 * The policy of one client, compiled when it is first asked and again when that of its fleet has changed since: a
 * change costs one step, however many clients the fleet has, and no message is judged by what was before it. Every
 * connection has one for as long as it is open: as a literal with closures it would take ten times the memory.
 */
export class LivePolicy implements CompiledPolicy {
  readonly #fleet: FleetPolicy
  readonly #client: Client
  readonly #own: Policies['own']
  readonly #defaults: Policies['defaults']
  #policy: Policy
  #seen: number
  #compiled: CompiledPolicy | null = null

  constructor(fleet: FleetPolicy, { policies, client }: { policies: Policies; client: Client }) {
    this.#fleet = fleet
    this.#client = client
    this.#own = policies.own
    this.#defaults = policies.defaults
    this.#policy = policies.policy
    this.#seen = fleet.version
  }

  #now(): CompiledPolicy {
    const { version, policy } = this.#fleet
    if (this.#compiled !== null && this.#seen === version) return this.#compiled
    if (this.#seen !== version && policy !== null) this.#policy = policy
    this.#seen = version
    const policies = { policy: this.#policy, own: this.#own, defaults: this.#defaults }
    this.#compiled = compilePolicies(policies, this.#client)
    return this.#compiled
  }

  publishRule(message: Publication) {
    return this.#now().publishRule(message)
  }

  mayPublish(topic: string) {
    return this.#now().mayPublish(topic)
  }

  publishQos(filter: string) {
    return this.#now().publishQos(filter)
  }

  subscribeQos(filter: string) {
    return this.#now().subscribeQos(filter)
  }

  maySubscribe(filter: string) {
    return this.#now().maySubscribe(filter)
  }

  mayReceive(topic: string) {
    return this.#now().mayReceive(topic)
  }

  get allowance() {
    return this.#now().allowance
  }

  get hasRates() {
    return this.#now().hasRates
  }

  whyPublish(message: Publication) {
    return this.#now().whyPublish(message)
  }

  whySubscribe(filter: string, qos?: number) {
    return this.#now().whySubscribe(filter, qos)
  }

  rules(list: RuleList) {
    return this.#now().rules(list)
  }
}
