import { type BucketSize, Buckets } from '../buckets.ts'

/** Token buckets of one size; with 0 per second they never empty. */
export class TokenBuckets {
  readonly #size: BucketSize
  readonly #buckets = new Buckets()

  constructor(size: BucketSize) {
    this.#size = size
  }

  /** Takes that much, also from an empty bucket, down to one burst below zero; true when there was a token. */
  take(key: string, { now, cost = 1, times = 1 }: { now: number; cost?: number; times?: number }): boolean {
    if (this.#size.perSecond === 0) return true
    const burst = this.#size.burst * times
    const bucket = this.#buckets.filled(key, { now, burst, perSecond: this.#size.perSecond * times })
    const had = bucket.tokens >= 1
    bucket.tokens = Math.max(-burst, bucket.tokens - cost)
    return had
  }

  /** For how long the bucket has no token yet, ms; 0 when it has one. */
  waitMs(key: string, now: number): number {
    const { perSecond } = this.#size
    if (perSecond === 0 || !this.#buckets.has(key)) return 0
    const { tokens } = this.#buckets.filled(key, { now, ...this.#size })
    return tokens >= 1 ? 0 : Math.ceil(((1 - tokens) / perSecond) * 1_000)
  }
}
