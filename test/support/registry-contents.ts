import { openSqliteForReading } from '#shared/sqlite'
import { journalTables } from '../../enrollment/registry/row-capture.ts'

/** Columns of what was merely seen, which is not journaled. */
const SEEN = ['last_seen_at', 'url', 'sessions', 'position', 'last_heard_at']

/** Every journaled row, the same for two databases that are the same. */
export function contents(path: string): Record<string, unknown[]> {
  const db = openSqliteForReading(path, 1000)
  try {
    const tables = Object.entries(journalTables(db)).map(([table, { columns, key }]) => {
      const told = columns.filter(
        (column) => !(table === 'brokers' && SEEN.includes(column)) && column !== 'last_seen_at',
      )
      return [table, db.prepare(`SELECT ${told.join(', ')} FROM ${table} ORDER BY ${key.join(', ')}`).all()]
    })
    return Object.fromEntries(tables)
  } finally {
    db.close()
  }
}
