import { type BucketSize, Buckets } from '../buckets.ts'

export interface RateLimits {
  readonly publishPerSecond: number
  readonly publishBurst: number
}

/** A rule of a policy that has a rate of its own. */
interface RatedRule extends BucketSize {
  readonly rateKey: string
}

/** What each identity may send: a client that connects again finds the bucket that it has emptied. */
export class PublishRate {
  readonly #limits: RateLimits
  readonly #buckets = new Buckets()

  constructor(limits: RateLimits) {
    this.#limits = limits
  }

  /**
   * Takes a request, or `cost` of them; returns for how long its client must not be read, ms, mostly 0. `times` is its
   * allowance.
   */
  take(identity: string, { now, times, cost = 1 }: { now: number; times: number; cost?: number }): number {
    const { publishPerSecond, publishBurst } = this.#limits
    const [burst, perSecond] = [publishBurst * times, publishPerSecond * times]
    return this.#take(identity, { now, cost, burst, perSecond })
  }

  /** Takes a message that the rule grants; the same answer. Nothing for a rule without a rate. */
  takeOfRule({ rateKey, burst, perSecond }: RatedRule, now: number): number {
    return this.#take(rateKey, { now, cost: 1, burst, perSecond })
  }

  /** Below zero goes what came in one piece beyond the burst. */
  #take(key: string, size: BucketSize & { readonly now: number; readonly cost: number }): number {
    if (size.perSecond === 0) return 0
    const bucket = this.#buckets.filled(key, size)
    bucket.tokens -= size.cost
    return bucket.tokens >= 0 ? 0 : Math.ceil((-bucket.tokens / size.perSecond) * 1_000)
  }
}
