import type { Sqlite } from '#shared/sqlite'
import type { Cell, Columns, JournalRow } from './journal-lines.ts'

/** What was merely seen is in no journal: tables of it, and columns of it in tables that are. */
const SEEN_TABLES = [
  'refusals',
  'refused_minutes',
  'connections',
  'boots',
  'token_attempts',
  'events',
  'event_counts',
  'clone_alarms',
]
const SEEN_COLUMNS: Readonly<Record<string, readonly string[]>> = {
  devices: ['last_seen_at'],
  brokers: ['url', 'sessions', 'position', 'last_heard_at'],
}
/** The place in the journal is part of a commit, not of what it journals. */
const PLACE = `.name <> 'journal'`

/** The tables that the journal covers, with their columns in order. */
export function journalTables(db: Sqlite): Record<string, Columns> {
  const names = db
    .prepare<[], { name: string }>(
      `SELECT name FROM main.sqlite_schema WHERE type = 'table' AND name NOT LIKE 'sqlite%' ORDER BY name`,
    )
    .all()
    .map(({ name }) => name)
    .filter((name) => !SEEN_TABLES.includes(name))
  return Object.fromEntries(names.map((name) => [name, columnsOf(db, name)]))
}

function columnsOf(db: Sqlite, table: string): Columns {
  const rows = db.pragma(`main.table_info(${table})`) as { name: string; pk: number }[] // as SQLite documents it
  const keys = rows.filter(({ pk }) => pk > 0).sort((a, b) => a.pk - b.pk)
  if (keys.length === 0) throw new Error(`The table ${table} has no primary key: the journal needs one`)
  return { columns: rows.map(({ name }) => name), key: keys.map(({ name }) => name) }
}

/** Collects the rows that statements on this connection write, in order, by triggers that only it has. */
export interface RowCapture {
  readonly tables: Record<string, Columns>
  readonly rows: JournalRow[]
}

export function captureRows(db: Sqlite): RowCapture {
  const rows: JournalRow[] = []
  const tables = journalTables(db)
  db.pragma('temp_store = MEMORY')
  db.function('journal_row', { varargs: true }, (table: string, ...values: unknown[]) => {
    rows.push([table, ...values.map(cell)])
    return null
  })
  for (const [table, columns] of Object.entries(tables)) db.exec(triggers(table, columns))
  return { tables, rows }
}

function cell(value: unknown): Cell {
  if (Buffer.isBuffer(value)) return [value.toString('base64')]
  return value as string | number | null // SQLite has nothing else, and its integers here are below 2^53
}

function triggers(table: string, { columns, key }: Columns): string {
  const seen = SEEN_COLUMNS[table] ?? []
  const told = columns.filter((column) => !seen.includes(column)).join(', ')
  const values = (of: string, names: readonly string[]) => names.map((name) => `${of}.${name}`).join(', ')
  const when = (of: string) => (table === 'meta' ? `WHEN ${of}${PLACE}` : '')
  const put = `SELECT journal_row('${table}', ${values('new', columns)});`
  const remove = `SELECT journal_row('-${table}', ${values('old', key)});`
  const moved = key.map((name) => `old.${name} IS NOT new.${name}`).join(' OR ')
  return `
    CREATE TEMP TRIGGER journal_${table}_insert AFTER INSERT ON main.${table} ${when('new')} BEGIN ${put} END;
    CREATE TEMP TRIGGER journal_${table}_moved BEFORE UPDATE OF ${key.join(', ')} ON main.${table} WHEN ${moved} BEGIN ${remove} END;
    CREATE TEMP TRIGGER journal_${table}_update AFTER UPDATE OF ${told} ON main.${table} ${when('new')} BEGIN ${put} END;
    CREATE TEMP TRIGGER journal_${table}_delete AFTER DELETE ON main.${table} ${when('old')} BEGIN ${remove} END;
  `
}
