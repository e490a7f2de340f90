import type { Spread } from './feed.ts'

/** Order statistics by nearest rank, in the unit of the values; zeros when there are none. */
export function spread(values: readonly number[]): Spread {
  const sorted = values.toSorted((a, b) => a - b)
  const rank = (share: number) => sorted[Math.max(0, Math.ceil(share * sorted.length) - 1)] ?? 0
  return { p50: rank(0.5), p95: rank(0.95), max: sorted.at(-1) ?? 0 }
}
