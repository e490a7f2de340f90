import type { Marks } from '../replica/purge-rows.ts'
import type { CommitGroup } from './commit-group.ts'
import type { SessionRows } from './session-rows.ts'

/**
 * Up to where orders to forget were carried out on what lies in this file: here and not in the replica, so that a copy
 * of the file that is put back says itself what was not yet forgotten in it.
 */
export class PurgeMarks {
  readonly #rows: SessionRows
  readonly #group: CommitGroup
  #marks: Marks = new Map()

  constructor(rows: SessionRows, group: CommitGroup) {
    this.#rows = rows
    this.#group = group
  }

  load(): void {
    this.#marks = new Map(this.#rows.purged().map(({ epoch, position }) => [epoch, position]))
  }

  /** By epoch. */
  get all(): Marks {
    return this.#marks
  }

  /** Resolves when it is on disk. */
  async move(to: Marks): Promise<void> {
    const moved = new Map([...this.#marks, ...to])
    await this.#group.commit(
      () => {
        for (const [epoch, position] of to) this.#rows.putPurged(epoch, position)
      },
      () => {
        this.#marks = moved
      },
    )
  }
}
