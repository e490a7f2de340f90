import type { Change } from '#shared/feed'
import type { Sqlite } from '#shared/sqlite'
import type { WriteChange } from './replica-rows.ts'

/** Changes that are written in one transaction: some 20 ms, and each page once for many of them. */
const SLICE = 4_000

/**
 * A snapshot while it is being received, under a generation of its own that nothing reads before it is complete. A
 * stream brings a few changes at a time; they are written when there are enough of them.
 */
export class Staging {
  readonly generation: number
  readonly #db: Sqlite
  readonly #write: WriteChange
  #changes: Change[] = []

  constructor(db: Sqlite, of: { generation: number; write: WriteChange }) {
    this.#db = db
    this.generation = of.generation
    this.#write = of.write
  }

  add(changes: readonly Change[]): void {
    for (const change of changes) this.#changes.push(change)
    if (this.#changes.length >= SLICE) this.flush()
  }

  /**
   * Writes what there is, in a transaction that waits for no disk. The commit that puts the generation in charge does,
   * and with it all that was written to the log before.
   */
  flush(): void {
    const changes = this.#changes
    this.#changes = []
    if (changes.length === 0) return
    this.#db.pragma('synchronous = NORMAL')
    try {
      this.#db.transaction(() => {
        for (const change of changes) this.#write(this.generation, change)
      })()
    } finally {
      this.#db.pragma('synchronous = FULL')
    }
  }
}
