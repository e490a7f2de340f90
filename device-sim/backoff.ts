import { createHash } from 'node:crypto'

/** Uniform in [0, 1). */
export type Random = () => number

export interface BackoffRange {
  /** Ceiling of the first wait, ms; it doubles with every attempt. */
  readonly baseMs: number
  /** Ceiling of every wait, ms. */
  readonly capMs: number
}

/**
 * Full jitter: anything between nothing and the exponential ceiling, so that a fleet that lost its broker in one
 * moment does not return in one moment.
 * @param attempt failed attempts so far, from 0
 */
export function fullJitter(attempt: number, options: BackoffRange & { random: Random }): number {
  const ceiling = Math.min(options.capMs, options.baseMs * 2 ** Math.min(attempt, 30)) // 2^30 is beyond every cap
  return options.random() * ceiling
}

/** A generator (sfc32) that gives the same numbers for the same seed; for pacing and choice, never for keys. */
export function seededRandom(seed: string): Random {
  const state = createHash('sha256').update(seed).digest()
  let a = state.readUInt32LE(0)
  let b = state.readUInt32LE(4)
  let c = state.readUInt32LE(8)
  let counter = state.readUInt32LE(12)
  return () => {
    const mixed = (((a + b) >>> 0) + counter) >>> 0
    counter = (counter + 1) >>> 0
    a = b ^ (b >>> 9)
    b = (c + (c << 3)) >>> 0
    c = (((c << 21) | (c >>> 11)) + mixed) >>> 0
    return mixed / 2 ** 32
  }
}

/** `count` of the items, in an order that depends on `random` alone. */
export function choose<Item>(items: readonly Item[], options: { count: number; random: Random }): Item[] {
  const keyed = items.map((item) => ({ item, at: options.random() }))
  return keyed
    .sort((a, b) => a.at - b.at)
    .slice(0, options.count)
    .map(({ item }) => item)
}
