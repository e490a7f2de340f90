import { randomFillSync } from 'node:crypto'

/** Octets that are drawn at a time. */
const POOL = 4_096

/**
 * Random octets out of a pool that is filled at once: to ask OpenSSL for each sixteen of them costs as much as three
 * statements of the registry. No octet is given out twice, and none stays in the pool once it is given out.
 */
export function randomPool(fill: (pool: Buffer) => unknown = randomFillSync): (octets: number) => Buffer {
  const pool = Buffer.alloc(POOL)
  let used = POOL
  return (octets) => {
    if (octets > POOL) {
      const whole = Buffer.alloc(octets)
      fill(whole)
      return whole
    }
    if (used + octets > POOL) {
      fill(pool)
      used = 0
    }
    const drawn = Buffer.from(pool.subarray(used, used + octets))
    pool.fill(0, used, used + octets)
    used += octets
    return drawn
  }
}
