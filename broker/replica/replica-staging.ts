import { openSqlite, type Sqlite } from '#shared/sqlite'
import { OWN_EPOCH, prepareOrders } from './purge-rows.ts'
import type { PositionedChange } from './replica.ts'
import { appending, prepareWriter, type WriteChange } from './replica-rows.ts'
import { BUSY_TIMEOUT_MS } from './replica-schema.ts'
import { prepareMark, type StateMark } from './replica-state.ts'
import { finishState } from './state-finish.ts'
import { STATE_MIGRATIONS } from './state-schema.ts'
import { finishElsewhere } from './state-worker.ts'

/** Changes from which on finishing would hold up the event loop, and is left to a thread of its own. */
const LARGE = 5_000

/** Pages that may wait in memory before they are written. */
const CACHE_KIB = 16_384

/**
 * A snapshot while it is being received, in a state file of its own that counts for nothing before it is complete:
 * nothing is waited for, and a crash leaves a file that the next start removes.
 */
export class Staging {
  readonly generation: number
  readonly #path: string
  readonly #db: Sqlite
  readonly #write: WriteChange
  #count = 0

  constructor({ path, generation }: { path: string; generation: number }) {
    this.generation = generation
    this.#path = path
    this.#db = openSqlite(path, {
      ...{ busyTimeoutMs: BUSY_TIMEOUT_MS, migrations: STATE_MIGRATIONS, durability: 'none' },
    })
    this.#db.pragma(`cache_size = -${CACHE_KIB}`)
    this.#write = prepareWriter(this.#db, appending(this.#db))
    this.#db.exec('BEGIN')
  }

  add(messages: readonly PositionedChange[]): void {
    for (const { change, position, at } of messages) this.#write(change, { epoch: OWN_EPOCH, position, at })
    this.#count += messages.length
  }

  /**
   * Resolves when the file is whole, indexed and on the disk.
   * @throws what SQLite throws; the signal's reason when it gives up
   */
  async finish(mark: StateMark, signal?: AbortSignal): Promise<void> {
    prepareMark(this.#db)(mark)
    if (mark.epoch !== null) prepareOrders(this.#db).own(mark.epoch)
    this.#db.exec('COMMIT')
    this.#db.close()
    if (this.#count < LARGE) finishState(this.#path)
    else await finishElsewhere(this.#path, signal)
  }

  close(): void {
    this.#db.close()
  }
}
