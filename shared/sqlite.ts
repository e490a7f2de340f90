import { closeSync, existsSync, fsyncSync, openSync } from 'node:fs'
import { dirname } from 'node:path'
import Database from 'better-sqlite3'
import { isMusterError, MusterError } from './errors.ts'

export type Sqlite = Database.Database
export type Statement<Parameters extends unknown[], Row> = Database.Statement<Parameters, Row>

export interface SqliteOptions {
  /** How long a statement waits for another writer, ms; it blocks the event loop, so keep it low in a broker. */
  readonly busyTimeoutMs: number
  /** Statements that bring an empty database to the newest schema, one entry per version, never edited after release. */
  readonly migrations: readonly string[]
  /** What a commit survives; `full` when not given. */
  readonly durability?: Durability
}

/**
 * `kill`: a commit survives the death of the process. `full`: it survives a power cut as well, and waits for the disk.
 * `none`: neither; for a file that counts for nothing until {@link syncFile}.
 */
export type Durability = 'none' | 'kill' | 'full'

/** While a database is opened others may be making or migrating it: that is waited for, ms. */
const OPEN_TIMEOUT_MS = 5_000

/** Values of `PRAGMA synchronous`: OFF syncs nothing, NORMAL a WAL at checkpoints only, FULL at every commit. */
const SYNCHRONOUS = { none: 0, kill: 1, full: 2 } as const satisfies Record<Durability, number>

/** A journal in memory still undoes a statement that fails. */
const JOURNAL = { none: 'memory', kill: 'wal', full: 'wal' } as const satisfies Record<Durability, string>

/**
 * Opens a WAL database with the `synchronous` that its durability asks for, asserts both (better-sqlite3 reopens a WAL
 * database with NORMAL, which loses acknowledged rows at a power cut), and migrates it. Only its owner may read it.
 * @throws MusterError directory_unusable when it cannot be opened, is damaged, or is of a newer version
 */
export function openSqlite(path: string, options: SqliteOptions): Sqlite {
  let db: Sqlite | undefined
  try {
    if (path !== ':memory:') closeSync(openSync(path, 'a', 0o600)) // before SQLite makes it, readable for all
    db = new Database(path, { timeout: OPEN_TIMEOUT_MS })
    const { durability = 'full' } = options
    const [journal, synchronous] = [JOURNAL[durability], SYNCHRONOUS[durability]]
    db.pragma(`journal_mode = ${journal}`)
    db.pragma(`synchronous = ${synchronous}`)
    db.pragma('foreign_keys = ON')
    assertPragmas(db, { path, journal, synchronous })
    migrate(db, path, options.migrations)
    db.pragma(`busy_timeout = ${options.busyTimeoutMs}`)
    return db
  } catch (cause) {
    db?.close()
    if (isMusterError(cause)) throw cause
    const why = (cause as Error).message // node:fs and SQLite throw nothing else
    throw new MusterError('directory_unusable', `Cannot open the database "${path}": ${why}`, { cause })
  }
}

function assertPragmas(db: Sqlite, wanted: { path: string; journal: string; synchronous: number }): void {
  const { path, journal } = wanted
  const mode = db.pragma('journal_mode', { simple: true })
  const synchronous = db.pragma('synchronous', { simple: true })
  if ((mode === journal || path === ':memory:') && synchronous === wanted.synchronous) return
  throw new MusterError(
    'directory_unusable',
    `Cannot open the database "${path}": journal_mode is ${mode} and synchronous is ${synchronous}, they must be ${journal} and ${wanted.synchronous}`,
  )
}

/** Brings what was written to a file, and its name, to the disk. */
export function syncFile(path: string): void {
  for (const synced of [path, dirname(path)]) {
    const descriptor = openSync(synced, 'r')
    fsyncSync(descriptor)
    closeSync(descriptor)
  }
}

function migrate(db: Sqlite, path: string, migrations: readonly string[]): void {
  const run = db.transaction(() => {
    const version = db.pragma('user_version', { simple: true }) as number // SQLite stores a 32-bit integer here
    if (version > migrations.length) {
      throw new MusterError(
        'directory_unusable',
        `Cannot open the database "${path}": it was written by a newer version of Muster (schema ${version}, this one knows ${migrations.length})`,
      )
    }
    for (const statements of migrations.slice(version)) db.exec(statements)
    db.pragma(`user_version = ${migrations.length}`)
  })
  run.immediate()
}

/** Opens an existing database for reading only: long reads on a connection of their own hold up no writer. */
export function openSqliteForReading(path: string, busyTimeoutMs: number): Sqlite {
  return new Database(path, { readonly: true, fileMustExist: true, timeout: busyTimeoutMs })
}

/** The extended result code (`SQLITE_BUSY_SNAPSHOT`, ...) of an error of SQLite; null for any other error. */
export function sqliteCode(error: unknown): string | null {
  return error instanceof Database.SqliteError ? error.code : null
}

/** Holds a directory for one writer until `release`; the kernel releases it when the process dies. */
export interface DirectoryLock {
  release(): void
}

/** Who looks whether a lock is held keeps it from being taken for a moment, ms. */
const LOCK_PATIENCE_MS = 250

/**
 * Takes the lock file of a directory: an SQLite database with an open exclusive transaction, so that it needs no
 * pid file and cannot be left behind.
 * @throws MusterError directory_in_use; directory_unusable when there is no saying who holds it
 */
export function lockDirectory(path: string): DirectoryLock {
  let db: Sqlite | undefined
  try {
    db = new Database(path, { timeout: LOCK_PATIENCE_MS })
    db.pragma('journal_mode = DELETE')
    db.exec('BEGIN EXCLUSIVE')
    const held = db
    return { release: () => held.close() }
  } catch (cause) {
    db?.close()
    const isHeld = sqliteCode(cause)?.startsWith('SQLITE_BUSY') ?? false
    const fault = (cause as Error).message // SQLite throws nothing else
    const why = isHeld
      ? 'another process holds it'
      : `${fault}; fix: make it writable, with room on its disk, or choose another directory with --data`
    const code = isHeld ? 'directory_in_use' : 'directory_unusable'
    throw new MusterError(code, `Cannot use the directory of "${path}": ${why}`, { cause })
  }
}

/** Whether some process holds the lock of a directory. */
export function isLocked(path: string): boolean {
  if (!existsSync(path)) return false
  const db = new Database(path, { readonly: true, fileMustExist: true, timeout: 0 })
  try {
    db.prepare('SELECT 1 FROM sqlite_schema').get()
    return false
  } catch (error) {
    if (sqliteCode(error)?.startsWith('SQLITE_BUSY')) return true
    throw error
  } finally {
    db.close()
  }
}
