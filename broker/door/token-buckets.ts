export interface BucketSize {
  /** Most that a bucket holds; it begins full. */
  readonly burst: number
  /** 0 for buckets that never empty. */
  readonly perSecond: number
}

interface Bucket {
  tokens: number
  /** When `tokens` was right, ms. */
  at: number
}

/** Buckets beyond this number are looked through for full ones. */
const PRUNE_ABOVE = 4_096

/** Token buckets by key; whoever returns finds the one that it has emptied, and full ones are forgotten. */
export class TokenBuckets {
  readonly #size: BucketSize
  readonly #buckets = new Map<string, Bucket>()
  #pruneAbove = PRUNE_ABOVE

  constructor(size: BucketSize) {
    this.#size = size
  }

  /** Takes that much, also from an empty bucket, down to one burst below zero; true when there was a token. */
  take(key: string, { now, cost = 1, times = 1 }: { now: number; cost?: number; times?: number }): boolean {
    if (this.#size.perSecond === 0) return true
    const bucket = this.#filled(key, now, times)
    const had = bucket.tokens >= 1
    bucket.tokens = Math.max(-this.#size.burst * times, bucket.tokens - cost)
    return had
  }

  /** For how long the bucket has no token yet, ms; 0 when it has one. */
  waitMs(key: string, now: number): number {
    const known = this.#buckets.get(key)
    if (known === undefined || this.#size.perSecond === 0) return 0
    const { tokens } = this.#filled(key, now, 1)
    return tokens >= 1 ? 0 : Math.ceil(((1 - tokens) / this.#size.perSecond) * 1_000)
  }

  #filled(key: string, now: number, times: number): Bucket {
    const burst = this.#size.burst * times
    const known = this.#buckets.get(key)
    if (known === undefined) {
      if (this.#buckets.size >= this.#pruneAbove) this.#prune(now)
      const bucket = { tokens: burst, at: now }
      this.#buckets.set(key, bucket)
      return bucket
    }
    const elapsedMs = Math.max(0, now - known.at) // a clock that is set back gives nothing
    known.tokens = Math.min(burst, known.tokens + (elapsedMs / 1_000) * this.#size.perSecond * times)
    known.at = now
    return known
  }

  #prune(now: number): void {
    const { burst, perSecond } = this.#size
    for (const [key, { tokens, at }] of this.#buckets) {
      if (tokens + ((now - at) / 1_000) * perSecond >= burst) this.#buckets.delete(key)
    }
    this.#pruneAbove = Math.max(PRUNE_ABOVE, this.#buckets.size * 2)
  }
}
