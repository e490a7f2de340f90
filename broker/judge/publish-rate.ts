export interface RateLimits {
  readonly publishPerSecond: number
  readonly publishBurst: number
}

/** A rule of a policy that has a rate of its own. */
interface RatedRule {
  readonly rateKey: string
  readonly perSecond: number
  readonly burst: number
}

interface Bucket {
  /** Below zero for what came in one piece beyond the burst. */
  tokens: number
  /** When `tokens` was right, ms. */
  at: number
  burst: number
  perSecond: number
}

/** Buckets beyond this number are looked through for full ones. */
const PRUNE_ABOVE = 4_096

/** Token buckets by identity: a client that connects again finds the one that it has emptied. */
export class PublishRate {
  readonly #limits: RateLimits
  readonly #buckets = new Map<string, Bucket>()
  #pruneAbove = PRUNE_ABOVE

  constructor(limits: RateLimits) {
    this.#limits = limits
  }

  /** Takes a request; returns for how long its client must not be read, ms, mostly 0. `times` is its allowance. */
  take(identity: string, { now, times }: { now: number; times: number }): number {
    const perSecond = this.#limits.publishPerSecond * times
    if (perSecond === 0) return 0
    const bucket = this.#bucket(identity, { now, burst: this.#limits.publishBurst * times, perSecond })
    bucket.tokens--
    return bucket.tokens >= 0 ? 0 : Math.ceil((-bucket.tokens / perSecond) * 1000)
  }

  /** Takes a message that the rule grants; the same answer. Nothing for a rule without a rate. */
  takeOfRule(rule: RatedRule, now: number): number {
    const { perSecond, burst } = rule
    if (perSecond === 0) return 0
    const bucket = this.#bucket(rule.rateKey, { now, burst, perSecond })
    bucket.tokens--
    return bucket.tokens >= 0 ? 0 : Math.ceil((-bucket.tokens / perSecond) * 1000)
  }

  #bucket(
    identity: string,
    { now, burst, perSecond }: { now: number; burst: number; perSecond: number },
  ): Bucket {
    const known = this.#buckets.get(identity)
    if (known === undefined) {
      if (this.#buckets.size >= this.#pruneAbove) this.#prune(now)
      const bucket = { tokens: burst, at: now, burst, perSecond }
      this.#buckets.set(identity, bucket)
      return bucket
    }
    const elapsedMs = Math.max(0, now - known.at) // a clock that is set back gives nothing
    known.tokens = Math.min(burst, known.tokens + (elapsedMs / 1000) * perSecond)
    known.at = now
    known.burst = burst
    known.perSecond = perSecond
    return known
  }

  /** A bucket that has had the time to fill is as good as none. */
  #prune(now: number): void {
    for (const [identity, { tokens, at, burst, perSecond }] of this.#buckets) {
      const filled = tokens + ((now - at) / 1000) * perSecond
      if (filled >= burst) this.#buckets.delete(identity)
    }
    this.#pruneAbove = Math.max(PRUNE_ABOVE, this.#buckets.size * 2)
  }
}
