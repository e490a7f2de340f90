import { openSqlite, type Sqlite, sqliteCode, syncFile } from '#shared/sqlite'
import { BUSY_TIMEOUT_MS } from './replica-schema.ts'
import { STATE_INDEXES, STATE_MIGRATIONS } from './state-schema.ts'

/** What the sorting of a million keys needs, so that none of it goes through a temporary file. */
const SORT_KIB = 131_072

/** Makes a state file that was filled without waiting ready to serve: indexed, and on the disk. */
export function finishState(path: string): void {
  const db = openSqlite(path, {
    ...{ busyTimeoutMs: BUSY_TIMEOUT_MS, migrations: STATE_MIGRATIONS, durability: 'none' },
  })
  try {
    db.pragma(`cache_size = -${SORT_KIB}`)
    db.pragma('temp_store = MEMORY')
    indexState(db)
  } finally {
    db.close()
  }
  syncFile(path)
}

/** Of a device or a certificate that came more than once, the last counts. */
function indexState(db: Sqlite): void {
  try {
    for (const index of STATE_INDEXES) db.exec(index)
  } catch (error) {
    if (sqliteCode(error) !== 'SQLITE_CONSTRAINT_UNIQUE') throw error
    db.exec('DELETE FROM devices WHERE row NOT IN (SELECT MAX(row) FROM devices GROUP BY id)')
    db.exec(
      'DELETE FROM certificates WHERE row NOT IN (SELECT MAX(row) FROM certificates GROUP BY fingerprint)',
    )
    for (const index of STATE_INDEXES) db.exec(index)
  }
}
