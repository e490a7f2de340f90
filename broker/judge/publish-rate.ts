import { type BucketSize, Buckets } from '../buckets.ts'

/** A rule of a policy that has a rate of its own. */
interface RatedRule extends BucketSize {
  readonly rateKey: string
}

/** Identities beyond this number are looked through for those that are read again. */
const PRUNE_ABOVE = 4_096

/** What each identity may send: a client that connects again finds the bucket that it has emptied. */
export class PublishRate {
  readonly #buckets = new Buckets()
  /** Until when the clients of an identity are not read, and for how long that was, ms. */
  readonly #held = new Map<string, { readonly until: number; readonly ms: number }>()
  #pruneAbove = PRUNE_ABOVE

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

  /** Clients of the identity are not read for so long, ms: whoever connects again waits for the rest of it. */
  hold(identity: string, { now, ms }: { readonly now: number; readonly ms: number }): void {
    if (this.#held.size >= this.#pruneAbove) {
      for (const [one, { until }] of this.#held) if (until <= now) this.#held.delete(one)
      this.#pruneAbove = Math.max(PRUNE_ABOVE, this.#held.size * 2)
    }
    if (now + ms > (this.#held.get(identity)?.until ?? 0)) this.#held.set(identity, { until: now + ms, ms })
  }

  /** What is left of it, ms; 0 when it is read. A clock that is set back adds nothing. */
  heldMs(identity: string, now: number): number {
    const { until, ms } = this.#held.get(identity) ?? { until: 0, ms: 0 }
    return Math.min(ms, Math.max(0, until - now))
  }
}
