import { setImmediate } from 'node:timers/promises'
import { openSqliteForReading, type Sqlite } from '#shared/sqlite'
import { BUSY_TIMEOUT_MS, type Store } from './store.ts'

/** Rows that one turn of the event loop reads at most: some milliseconds. */
export const ROWS_IN_TURN = 10_000

/** Yields after each slice, of as many rows as one turn reads. */
export type Slices<T> = Generator<void, T, void>

export interface LongReadParts {
  readonly store: Store
  readonly path: string
  readonly rowsInTurn: number
  /** Connections that read an old state; closed with the registry. */
  readonly snapshots: Set<Sqlite>
}

/**
 * Reads what is too much for one turn of the event loop, such as the whole fleet: in slices, with room for other work
 * between them, and all of them from one state of the registry, which a connection of its own keeps.
 * @throws MusterError unavailable
 */
export async function readInSlices<T>(
  { store, path, rowsInTurn, snapshots }: LongReadParts,
  read: (db: Sqlite, rows: number) => Slices<T>,
): Promise<T> {
  const db = await store.readOne(() => openSnapshot(path))
  snapshots.add(db)
  try {
    const slices = read(db, rowsInTurn)
    for (;;) {
      // nothing of a state that is already held can be busy, so that no slice is tried twice
      const slice = await store.readOne(() => slices.next())
      if (slice.done === true) return slice.value
      await setImmediate()
    }
  } finally {
    snapshots.delete(db)
    db.close()
  }
}

/** The first read fixes the state that all others see. */
function openSnapshot(path: string): Sqlite {
  const db = openSqliteForReading(path, BUSY_TIMEOUT_MS)
  try {
    db.exec('BEGIN; SELECT 1 FROM sqlite_schema LIMIT 1;')
    return db
  } catch (error) {
    db.close()
    throw error
  }
}
