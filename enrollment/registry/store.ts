import { setTimeout } from 'node:timers/promises'
import { MusterError } from '#shared/errors'
import { type Sqlite, sqliteCode } from '#shared/sqlite'
import { type Intent, openLedger } from './ledger.ts'
import type { Act } from './registry.ts'

/** How long SQLite waits for another writer in one go, ms; the event loop stands still meanwhile. */
export const BUSY_TIMEOUT_MS = 100
/** After so many goes (about 5 s) the registry gives up: the caller is told to come back. */
const BUSY_ATTEMPTS = 50
const BUSY_PAUSE_MS = 2

/** Faults of the disk or of another process that pass; the caller may try the same again later. */
const PASSING = /^SQLITE_(BUSY|LOCKED|FULL|IOERR|READONLY|CANTOPEN)/

/** The database with its logs: runs each intent in one transaction, and tells listeners about new changes. */
export class Store {
  readonly db: Sqlite
  readonly #immediate: (work: () => unknown) => unknown
  readonly #deferred: (work: () => unknown) => unknown
  readonly #record: ReturnType<typeof openLedger>
  readonly #listeners = new Set<(position: number) => void>()

  constructor(db: Sqlite) {
    this.db = db
    const transaction = db.transaction((work: () => unknown) => work())
    this.#immediate = transaction.immediate
    this.#deferred = transaction.deferred
    this.#record = openLedger(db)
  }

  /**
   * Runs `work` as one atomic intent; durable when the promise resolves.
   * @throws MusterError unavailable (locked, disk full), conflict (a unique id is taken), and what `work` throws
   */
  async write<T>(act: Act, work: (intent: Intent) => T): Promise<T> {
    const { result, position } = await retrying(
      () => this.#immediate(() => this.#record(act, work)) as { result: T; position: number | null }, // what it was given
    )
    if (position !== null) for (const listener of this.#listeners) queueMicrotask(() => listener(position))
    return result
  }

  /** Runs several reads on one state of the database. @throws MusterError unavailable, and what `work` throws */
  async read<T>(work: () => T): Promise<T> {
    return retrying(() => this.#deferred(work) as T) // what it was given
  }

  onCommit(listener: (position: number) => void): () => void {
    this.#listeners.add(listener)
    return () => this.#listeners.delete(listener)
  }
}

async function retrying<T>(work: () => T): Promise<T> {
  for (let attempt = 1; ; attempt++) {
    try {
      return work()
    } catch (error) {
      const isBusy = sqliteCode(error)?.startsWith('SQLITE_BUSY') ?? false
      if (!isBusy || attempt === BUSY_ATTEMPTS) throw meaning(error)
    }
    await setTimeout(BUSY_PAUSE_MS)
  }
}

function meaning(error: unknown): unknown {
  const code = sqliteCode(error)
  if (code === null) return error
  if (PASSING.test(code)) {
    return new MusterError('unavailable', `Cannot use the registry: ${code}`, { cause: error })
  }
  if (code === 'SQLITE_CONSTRAINT_UNIQUE' || code === 'SQLITE_CONSTRAINT_PRIMARYKEY') {
    return new MusterError('conflict', 'Cannot record it: its id is taken', { cause: error })
  }
  return error
}
