import type { Turn } from './feed-lines.ts'
import type { PositionedChange } from './replica.ts'

export interface UnstorableDeps {
  /** Puts those among the changes in force that stop somebody, from memory. */
  stop(changes: readonly PositionedChange[]): void
  /** Ends the stream. */
  end(error: unknown): void
  /** Longest pause between changes of a stream that is looked through, ms. */
  readonly lullMs: number
}

/**
 * The rest of a stream of which the disk has refused something: nothing that follows can be stored, either. The stream
 * is asked for again, but not before the rest has been looked through: a hold or a revocation stops its sessions all the same,
 * however much comes before it. No receipt says so, because a restart would not know of it.
 */
export class Unstorable {
  readonly #deps: UnstorableDeps
  #refusal: { readonly error: unknown } | null = null
  #lull: NodeJS.Timeout | undefined

  constructor(deps: UnstorableDeps) {
    this.#deps = deps
  }

  /** From {@link begin} to {@link end}. */
  get isRest(): boolean {
    return this.#refusal !== null
  }

  begin(error: unknown, changes: readonly PositionedChange[]): void {
    this.#refusal = { error }
    this.#lull = setTimeout(() => this.#deps.end(error), this.#deps.lullMs).unref()
    this.#deps.stop(changes)
  }

  /** @throws what was given to {@link begin}, when there is nothing more to hear */
  take(turn: Turn): void {
    if (turn.type !== 'changes') throw this.#refusal?.error
    this.#deps.stop(turn.changes)
    this.#lull?.refresh()
  }

  end(): void {
    clearTimeout(this.#lull)
    this.#refusal = null
  }
}
