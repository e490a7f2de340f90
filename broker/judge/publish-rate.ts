import { type BucketSize, Buckets } from '../buckets.ts'

/** A rule of a policy that has a rate of its own. */
interface RatedRule extends BucketSize {
  readonly rateKey: string
}

/** What each identity may send: a client that connects again finds the bucket that it has emptied. */
export class PublishRate {
  readonly #buckets = new Buckets()

  /** Takes a message that the rule grants; the same answer. Nothing for a rule without a rate. */
  takeOfRule({ rateKey, burst, perSecond }: RatedRule, now: number): number {
    return this.take(rateKey, { now, burst, perSecond })
  }

  /**
   * Takes a request, or `cost` of them, of an identity that may make so many; returns for how long its client must not
   * be read, ms, mostly 0. Below zero goes what came in one piece beyond the burst.
   */
  take(key: string, size: BucketSize & { readonly now: number; readonly cost?: number }): number {
    if (size.perSecond === 0) return 0
    const bucket = this.#buckets.filled(key, size)
    bucket.tokens -= size.cost ?? 1
    return bucket.tokens >= 0 ? 0 : Math.ceil((-bucket.tokens / size.perSecond) * 1_000)
  }
}
