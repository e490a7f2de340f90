import { PerformanceObserver } from 'node:perf_hooks'
import { getHeapSpaceStatistics, setFlagsFromString } from 'node:v8'

/** Octets of the two halves of V8's new space together, at which it is large enough. */
const ENOUGH = 32 * 1_024 * 1_024

/** By how much V8 multiplies its new space when much in it has survived: its own factor, and the one for no more. */
const GROWING = 2
const STAYING = 1

/**
 * Keeps V8's new space at 16 MiB a half. In a storm of connections, all of which stay, it would double once more, and
 * keep that for as long as they are idle: memory is given back when it is collected, and idle connections are nothing
 * to collect. V8 reads the limit of the new space when it starts, and a broker that somebody starts as a program
 * has no say in that; the factor by which it grows is read at each growth. Below the size the factor is V8's own, so
 * that a space that has shrunk grows again.
 */
export function boundNewSpace(): void {
  let factor = GROWING
  const observer = new PerformanceObserver(() => {
    const next = newSpaceOctets() < ENOUGH ? GROWING : STAYING
    if (next === factor) return
    factor = next
    setFlagsFromString(`--semi-space-growth-factor=${factor}`)
  })
  observer.observe({ entryTypes: ['gc'] }) // it grows in a collection, and at no other time
}

function newSpaceOctets(): number {
  return getHeapSpaceStatistics().find(({ space_name }) => space_name === 'new_space')?.space_size ?? 0
}
