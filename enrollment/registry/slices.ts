import { setImmediate } from 'node:timers/promises'

/** So many rows are written by one commit at most, so that other intents get their turn. */
export const SLICE = 1000

interface Slice<T> {
  readonly items: readonly T[]
  readonly isFirst: boolean
  readonly isLast: boolean
}

/** A long list in slices, with room for other work between them; an empty list is one empty slice. */
export async function* slices<T>(items: readonly T[]): AsyncGenerator<Slice<T>, void> {
  for (let start = 0; start === 0 || start < items.length; start += SLICE) {
    if (start > 0) await setImmediate()
    const end = start + SLICE
    yield { items: items.slice(start, end), isFirst: start === 0, isLast: end >= items.length }
  }
}
