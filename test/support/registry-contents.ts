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
      const rows = db.prepare(`SELECT ${told.join(', ')} FROM ${table} ORDER BY ${key.join(', ')}`).all()
      return [table, table === 'meta' ? rows.map(withoutTimes) : rows]
    })
    return Object.fromEntries(tables)
  } finally {
    db.close()
  }
}

/** The place in the journal, without how often it was written again. */
function withoutTimes(row: unknown): unknown {
  const { name, value } = row as { name: string; value: string } // the columns of meta
  return name === 'journal' ? { name, value: value.split(' ').slice(0, 2).join(' ') } : row
}
