/** How much a bucket holds at most, and gets back; it begins full. */
export interface BucketSize {
  readonly burst: number
  readonly perSecond: number
}

export interface Bucket extends BucketSize {
  /** May be below zero. */
  tokens: number
}

interface KeptBucket extends Bucket {
  burst: number
  perSecond: number
  /** When `tokens` was right, ms. */
  at: number
}

/** Buckets beyond this number are looked through for full ones. */
const PRUNE_ABOVE = 4_096

/** Token buckets by key; whoever returns finds the one that it has emptied, and full ones are as good as none. */
export class Buckets {
  readonly #buckets = new Map<string, KeptBucket>()
  #pruneAbove = PRUNE_ABOVE

  has(key: string): boolean {
    return this.#buckets.has(key)
  }

  /** The bucket as it is now, with what has come back to it since. */
  filled(key: string, { now, burst, perSecond }: BucketSize & { readonly now: number }): Bucket {
    const known = this.#buckets.get(key)
    if (known === undefined) {
      if (this.#buckets.size >= this.#pruneAbove) this.#prune(now)
      const bucket = { tokens: burst, at: now, burst, perSecond }
      this.#buckets.set(key, bucket)
      return bucket
    }
    const elapsedMs = Math.max(0, now - known.at) // a clock that is set back gives nothing
    known.tokens = Math.min(burst, known.tokens + (elapsedMs / 1_000) * perSecond)
    known.at = now
    known.burst = burst
    known.perSecond = perSecond
    return known
  }

  #prune(now: number): void {
    for (const [key, { tokens, at, burst, perSecond }] of this.#buckets) {
      if (tokens + ((now - at) / 1_000) * perSecond >= burst) this.#buckets.delete(key)
    }
    this.#pruneAbove = Math.max(PRUNE_ABOVE, this.#buckets.size * 2)
  }
}
