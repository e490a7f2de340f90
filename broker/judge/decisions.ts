import type { RefusalErrorCode } from '#shared/errors'
import type { CompiledPolicy } from '#shared/policy/compile'
import type { Policy } from '#shared/policy/schema'

let count = 0

/**
 * How often anything was decided that a verdict about a message is made of. Nothing of that can be written but by the setters
 * of this file, each of which counts, in its tick: a message that was granted is granted again while the count is the same.
 */
export function decisions(): number {
  return count
}

/** No count at all: of what was never granted. */
export const NEVER = -1

/** What has been decided about an open connection. */
export class Standing {
  #policy: CompiledPolicy
  #refused: RefusalErrorCode | null = null

  constructor(policy: CompiledPolicy) {
    this.#policy = policy
  }

  /** Follows the policy of the fleet by itself; replaced when the device changes, so whoever asks it must not keep it. */
  get policy(): CompiledPolicy {
    return this.#policy
  }

  set policy(policy: CompiledPolicy) {
    count++
    this.#policy = policy
  }

  /** Set in the tick of the decision: from then on nothing of it is routed and nothing is delivered to it. */
  get refused(): RefusalErrorCode | null {
    return this.#refused
  }

  set refused(code: RefusalErrorCode | null) {
    count++
    this.#refused = code
  }
}

/** The policy of a fleet as it is now; null before any has come since the start. */
export class FleetPolicy {
  #version = 0
  #policy: Policy | null = null

  get policy(): Policy | null {
    return this.#policy
  }

  set policy(policy: Policy) {
    count++
    this.#version++
    this.#policy = policy
  }

  /** Rises with each change. */
  get version(): number {
    return this.#version
  }
}
