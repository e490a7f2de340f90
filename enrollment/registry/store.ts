import { setImmediate, setTimeout } from 'node:timers/promises'
import { MusterError } from '#shared/errors'
import { type Sqlite, sqliteCode } from '#shared/sqlite'
import type { Journal } from './journal.ts'
import { type Intent, openLedger } from './ledger.ts'
import type { Act } from './registry.ts'
import type { Reserve } from './reserve.ts'

/** How long SQLite waits for another writer in one go, ms; the event loop stands still meanwhile. */
export const BUSY_TIMEOUT_MS = 100
/** After so many goes (about 5 s) the registry gives up: the caller is told to come back. */
const BUSY_ATTEMPTS = 50
const BUSY_PAUSE_MS = 2
/** While the disk is full, so often at most is its room tried, ms. */
const RESERVE_PAUSE_MS = 1_000

/** A commit waits so long at most for the intents that requests in progress may still bring, ms. */
const GATHER_MS = 20

/** So many intents share one commit at most, and so one fsync; it bounds how long the event loop stands still. */
const GROUP = 64

/** Faults of the disk or of another process that pass; the caller may try the same again later. */
const PASSING = /^SQLITE_(BUSY|LOCKED|FULL|IOERR|READONLY|CANTOPEN)/
/** The same, as the journal's file says them. */
const PASSING_FILE = ['ENOSPC', 'EDQUOT', 'EIO', 'EROFS', 'EMFILE', 'ENFILE']

/** What helps a damaged registry. */
export const RESTORE = 'fix: stop the service, then muster ca restore <backup> --journal <directory>'

/** SQLite found the file itself to be wrong. */
export function isDamage(code: string | null): boolean {
  return code !== null && (code.startsWith('SQLITE_CORRUPT') || code === 'SQLITE_NOTADB')
}

/** An intent that waits for its commit; `run` is called within the transaction, and again if that has to be repeated. */
interface Waiting {
  readonly at: number
  readonly cannotWait: boolean
  run(): Outcome
  reject(error: unknown): void
}

/** What became of an intent in its transaction; `settle` tells the caller, once that is committed. */
interface Outcome {
  readonly position: number | null
  settle(): void
}

/**
 * The database with its logs. Intents are committed in groups, as many as come while the event loop is busy: each runs in
 * a savepoint of its own, so that it is atomic and may fail alone, and all wait for the one fsync. With a journal the
 * group is synced there first.
 */
export class Store {
  readonly db: Sqlite
  readonly #inImmediate: (work: () => unknown) => unknown
  readonly #inDeferred: (work: () => unknown) => unknown
  readonly #ledger: ReturnType<typeof openLedger>
  readonly #journal: Journal | null
  readonly #reserve: Reserve | null
  /** When the reserve was last asked for, ms. */
  #askedAt = Number.NEGATIVE_INFINITY
  readonly #listeners = new Set<(position: number) => void>()
  readonly #waiting: Waiting[] = []
  /** Commits since the start, and the intents in them. */
  readonly commits = { groups: 0, intents: 0 }
  #committing: Promise<void> | null = null

  constructor(db: Sqlite, beside: { journal?: Journal; reserve?: Reserve } = {}) {
    this.db = db
    this.#journal = beside.journal ?? null
    this.#reserve = beside.reserve ?? null
    const transaction = db.transaction((work: () => unknown) => work())
    this.#inImmediate = transaction.immediate
    this.#inDeferred = transaction.deferred
    this.#ledger = openLedger(db)
  }

  /**
   * Runs `work` as one atomic intent; durable when the promise resolves.
   * @throws MusterError unavailable (locked, disk full), conflict (a unique id is taken), and what `work` throws
   */
  write<T>(act: Act, work: (intent: Intent) => T): Promise<T> {
    const { promise, resolve, reject } = Promise.withResolvers<T>()
    const run = (): Outcome => {
      const mark = this.#journal?.mark() ?? 0
      try {
        const { result, position } = this.#savepoint(() => this.#ledger.record(act, work))
        return { position, settle: () => resolve(result) }
      } catch (error) {
        if (!this.db.inTransaction) throw error // SQLite has given up the whole transaction (disk full, I/O error)
        this.#journal?.forget(mark)
        this.#ledger.forget()
        return { position: null, settle: () => reject(meaning(error)) }
      }
    }
    this.#waiting.push({ at: act.now, cannotWait: act.cannotWait === true, run, reject })
    this.#committing ??= this.#commitWaiting()
    return promise
  }

  /** Runs several reads on one state of the database. @throws MusterError unavailable, and what `work` throws */
  async read<T>(work: () => T): Promise<T> {
    return retrying(() => this.#inDeferred(work) as T) // what it was given
  }

  /** Runs one statement, which reads one state of the database without a transaction. @throws as `read` */
  async readOne<T>(work: () => T): Promise<T> {
    return retrying(work)
  }

  /** Calls back after each commit that added changes, with the position of the last. */
  onCommit(listener: (position: number) => void): () => void {
    this.#listeners.add(listener)
    return () => this.#listeners.delete(listener)
  }

  /** Closes the database after what is waiting has been committed. */
  async close(): Promise<void> {
    await this.#committing
    this.#journal?.close()
    this.db.close()
  }

  #savepoint<T>(work: () => T): T {
    return this.#inDeferred(work) as T // within a transaction this is a savepoint, and returns what it was given
  }

  async #commitWaiting(): Promise<void> {
    while (this.#waiting.length > 0) {
      await this.#gather()
      await this.#commit(this.#waiting.splice(0, GROUP))
    }
    this.#committing = null
  }

  /**
   * Ends when the event loop has nothing else to do, so that nobody waits in vain. The fewer commits there are, the less
   * each intent costs: alone it takes four times the processor time that it takes in a group of sixteen.
   */
  async #gather(): Promise<void> {
    const begin = performance.now()
    let before: number
    do {
      before = eventsSoFar()
      await setImmediate()
      if (this.#waiting.length >= GROUP || performance.now() - begin > GATHER_MS) return
    } while (before !== eventsSoFar())
  }

  /** After a group that was not committed: nothing of it may come back once somebody was told that it failed. */
  #settle(): void {
    const journal = this.#journal
    if (!journal?.isAhead) return
    this.#inImmediate(() => journal.settle())
    journal.takeBack()
  }

  #runGroup(group: readonly Waiting[]): Outcome[] {
    this.#journal?.begin()
    this.#ledger.forget()
    const outcomes = group.map((intent) => intent.run())
    this.#journal?.append(group[0]?.at ?? 0)
    return outcomes
  }

  /** On a full disk the reserve is given up for what cannot wait, and the rest is refused until it is whole again. */
  async #commit(group: readonly Waiting[], from: 'disk' | 'reserve' = 'disk'): Promise<void> {
    try {
      if (from === 'disk') this.#keepReserve(group[0]?.at ?? 0)
      else if (this.#reserve?.isWhole) this.#reserve.release()
      const outcomes = await retrying(() => {
        this.#settle()
        return this.#inImmediate(() => this.#runGroup(group)) as Outcome[] // what it was given
      })
      this.#journal?.committed()
      this.commits.groups += 1
      this.commits.intents += outcomes.length
      for (const { settle } of outcomes) settle()
      const position = outcomes.findLast((outcome) => outcome.position !== null)?.position ?? null
      if (position !== null) for (const listener of this.#listeners) queueMicrotask(() => listener(position))
    } catch (error) {
      const mayRelease = from === 'disk' && this.#reserve !== null && isFull(error)
      const urgent = group.filter(({ cannotWait }) => mayRelease && cannotWait)
      for (const { reject } of group.filter((intent) => !urgent.includes(intent))) reject(meaning(error))
      if (urgent.length > 0) await this.#commit(urgent, 'reserve')
    }
  }

  /** @throws MusterError unavailable while the disk has no room for it */
  #keepReserve(now: number): void {
    if (this.#reserve === null || this.#reserve.isWhole) return
    if (now < this.#askedAt + RESERVE_PAUSE_MS && now >= this.#askedAt) throw noRoom()
    this.#askedAt = now
    try {
      this.#reserve.keep()
    } catch (error) {
      throw meaning(error)
    }
  }
}

function noRoom(): MusterError {
  const cause = Object.assign(new Error('the reserve is not whole'), { code: 'ENOSPC', syscall: 'write' })
  return new MusterError('unavailable', 'Cannot use the registry: ENOSPC', { cause })
}

function isFull(error: unknown): boolean {
  const cause = error instanceof MusterError ? error.cause : error
  const code = sqliteCode(cause) ?? fileCode(cause)
  return code === 'SQLITE_FULL' || code === 'ENOSPC' || code === 'EDQUOT'
}

/** What the event loop has been told by the kernel: sockets that are readable, files that were written, and so on. */
function eventsSoFar(): number {
  return performance.nodeTiming.uvMetricsInfo.events
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
  const code = sqliteCode(error) ?? fileCode(error)
  if (code === null) return error
  if (PASSING.test(code) || PASSING_FILE.includes(code)) {
    return new MusterError('unavailable', `Cannot use the registry: ${code}`, { cause: error })
  }
  if (isDamage(code)) {
    return new MusterError('unavailable', `Cannot use the registry: it is damaged (${code}); ${RESTORE}`, {
      cause: error,
    })
  }
  if (code === 'SQLITE_CONSTRAINT_UNIQUE' || code === 'SQLITE_CONSTRAINT_PRIMARYKEY') {
    return new MusterError('conflict', 'Cannot record it: its id is taken', { cause: error })
  }
  return error
}

function fileCode(error: unknown): string | null {
  return error instanceof Error && 'code' in error && 'syscall' in error ? String(error.code) : null
}
