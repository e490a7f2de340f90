import type { Log } from '#shared/log'
import type { Sqlite } from '#shared/sqlite'

/** Puts the rows of one operation; runs inside the transaction of its group. */
export type Write = () => void
/** Hears what became of the operation: null when it is on disk. The groups, and the operations in them, settle in order. */
export type Settle = (error: Error | null) => void

interface Operation {
  readonly write: Write | null
  readonly settle: Settle
}

/**
 * One transaction a turn of the event loop for everything that was asked for in it: what a commit costs, every client
 * of that turn shares. Nothing takes effect in memory before it is on disk, so a commit that fails leaves both as they
 * were: whoever waits hears the error, and the next turn tries anew.
 */
export class CommitGroup {
  readonly #begin: Write
  readonly #commit: Write
  readonly #rollback: Write
  readonly #log: Log
  #pending: Operation[] = []
  #isSettling = false
  #isClosed = false

  constructor(db: Sqlite, log: Log) {
    const [begin, commit, rollback] = ['BEGIN IMMEDIATE', 'COMMIT', 'ROLLBACK'].map((sql) => db.prepare(sql))
    this.#begin = () => void begin?.run()
    this.#commit = () => void commit?.run()
    this.#rollback = () => {
      if (db.inTransaction) rollback?.run()
    }
    this.#log = log
  }

  /** True when nothing is before an operation that needs no commit: it may be done at once, in its place. */
  get isIdle(): boolean {
    return this.#pending.length === 0 && !this.#isSettling
  }

  /** Adds an operation to the group of this turn. With `write` null it only keeps its place among the others. */
  push(write: Write | null, settle: Settle): void {
    this.#pending.push({ write, settle })
    if (this.#pending.length === 1) setImmediate(() => this.flush())
  }

  /** As {@link push}, for those who wait: `apply` is done when the rows are on disk, before the promise resolves. */
  commit(write: Write, apply: () => void = () => {}): Promise<void> {
    return new Promise((resolve, reject) => {
      this.push(write, (error) => {
        if (error !== null) return reject(error)
        apply()
        resolve()
      })
    })
  }

  /** Commits what is pending; what comes later fails. */
  close(): void {
    this.flush()
    this.#isClosed = true
  }

  /** Commits what is pending, now. */
  flush(): void {
    const group = this.#pending
    if (group.length === 0) return
    this.#pending = []
    const error = this.#store(group)
    this.#isSettling = true
    for (const { write, settle } of group) {
      try {
        settle(write === null ? null : error)
      } catch (fault) {
        this.#log.error({ err: fault }, 'store: an operation failed after its commit')
      }
    }
    this.#isSettling = false
  }

  #store(group: readonly Operation[]): Error | null {
    if (group.every(({ write }) => write === null)) return null
    if (this.#isClosed) return new Error('the store is closed')
    try {
      this.#begin()
      for (const { write } of group) write?.()
      this.#commit()
      return null
    } catch (error) {
      this.#log.error({ err: error, operations: group.length }, 'store: commit failed')
      this.#undo()
      return error as Error // SQLite and the binding throw nothing else
    }
  }

  #undo(): void {
    try {
      this.#rollback()
    } catch (error) {
      this.#log.error({ err: error }, 'store: rollback failed')
    }
  }
}
