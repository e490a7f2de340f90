import { MusterError } from '#shared/errors'
import type { Log } from '#shared/log'
import { type Durability, openSqlite, type Sqlite } from '#shared/sqlite'
import type { Limits } from '../limits.ts'
import { Absences } from './absences.ts'
import { CommitGroup } from './commit-group.ts'
import { prepareQueueRows } from './queue-rows.ts'
import { prepareSessionRows } from './session-rows.ts'
import { SessionStore } from './session-store.ts'
import { STORE_MIGRATIONS } from './store-schema.ts'

export interface StoreOptions {
  readonly durability: Durability
  readonly limits: Limits
  readonly log: Log
  /** ms since some moment, by a clock that nobody sets; that of the machine when it is left out. */
  elapsed?(): number
}

/** Only this broker writes here, so waiting helps nobody, ms. */
const BUSY_TIMEOUT_MS = 100

/**
 * Opens `sessions.db`, made when there is none, with everything that an earlier run has left in it.
 * @throws MusterError directory_unusable when it is damaged, or of a newer version; its message says what to do
 */
export function openSessionStore(path: string, options: StoreOptions): SessionStore {
  const { durability, limits, log } = options
  let db: Sqlite | undefined
  try {
    db = openSqlite(path, { busyTimeoutMs: BUSY_TIMEOUT_MS, migrations: STORE_MIGRATIONS, durability })
    const opened = db
    const rows = prepareSessionRows(opened)
    const group = new CommitGroup(opened, log)
    const { elapsed = () => performance.now() } = options
    return new SessionStore({
      ...{ rows, group, limits },
      queueRows: prepareQueueRows(opened),
      absences: new Absences({ rows, group, elapsed }),
      close: () => opened.close(),
    })
  } catch (error) {
    db?.close()
    if (!isDamage(error)) throw error
    throw new MusterError(
      'directory_unusable',
      `Cannot use the sessions in "${path}": the file is damaged. Put back a copy of it, or begin without what was ` +
        `stored for clients that are away (their subscriptions, queued and retained messages): rm ${path} ${path}-wal ${path}-shm`,
      { cause: error },
    )
  }
}

function isDamage(error: unknown): boolean {
  const reported = error instanceof MusterError ? error.cause : error
  const code = reported instanceof Error && 'code' in reported ? String(reported.code) : ''
  return code.startsWith('SQLITE_CORRUPT') || code === 'SQLITE_NOTADB'
}
