import { existsSync } from 'node:fs'
import { MusterError } from '#shared/errors'
import { openSqlite, openSqliteForReading, type Sqlite } from '#shared/sqlite'
import {
  type Cell,
  type Columns,
  firstOf,
  JOURNAL_BEGIN,
  type JournalPlace,
  type JournalRow,
  readSegment,
  type Segment,
  segmentPaths,
} from './journal-lines.ts'
import { placeRow } from './journal-place.ts'
import { MIGRATIONS } from './schema.ts'

const BUSY_TIMEOUT_MS = 1_000

export interface Replayed {
  readonly from: JournalPlace
  readonly to: JournalPlace
}

/**
 * Brings a copy of the database up to the end of its journal, each segment under the schema that it was written with.
 * @throws MusterError directory_unusable when the journal is damaged, has a gap after the copy, or is another database's
 */
export function replayJournal(path: string, directory: string): Replayed {
  const from = placeOf(path)
  let to = from
  for (const segment of segmentsAfter(directory, from)) {
    const commits = segment.commits.filter(({ commit }) => commit.number > from.number)
    const last = commits.at(-1)
    if (last === undefined) continue
    const db = openSqlite(path, {
      busyTimeoutMs: BUSY_TIMEOUT_MS,
      migrations: MIGRATIONS.slice(0, segment.head.schema),
    })
    try {
      applySegment(db, { ...segment, commits })
    } finally {
      db.close()
    }
    to = last.place
  }
  return { from, to }
}

/** How far a database has got, whatever its schema; the beginning when there is none yet. */
export function placeOf(path: string): JournalPlace {
  if (!existsSync(path)) return JOURNAL_BEGIN
  const db = openSqliteForReading(path, BUSY_TIMEOUT_MS)
  try {
    return db.pragma('user_version', { simple: true }) === 0 ? JOURNAL_BEGIN : placeRow(db).read()
  } finally {
    db.close()
  }
}

/** The segments that go on from a place, oldest first; none when the journal ends before it. @throws MusterError directory_unusable */
export function* segmentsAfter(directory: string, from: JournalPlace): Generator<Segment> {
  const paths = segmentPaths(directory)
  const begin = paths.findLastIndex((path) => firstOf(path) <= from.number + 1)
  if (begin < 0 && paths.length > 0) throw gap(directory, from.number + 1)
  let place = from
  for (const path of paths.slice(Math.max(begin, 0))) {
    const segment = readSegment(path)
    const start = segment && placeBefore(segment, place.number)
    if (segment === null || start === null) {
      if (path === paths.at(-1) && place === from) return // it ends before
      throw gap(directory, place.number + 1)
    }
    if (start.check !== place.check) {
      throw new MusterError(
        'directory_unusable',
        `Cannot use the journal "${directory}": it is another registry's`,
      )
    }
    yield segment
    place = segment.commits.at(-1)?.place ?? place
  }
}

/** The check that a segment has for a commit, or for the one before its first. */
function placeBefore({ head, commits }: Segment, number: number): JournalPlace | null {
  if (number === head.first - 1) return { number, check: head.previous }
  return commits.find(({ place }) => place.number === number)?.place ?? null
}

function gap(directory: string, number: number): MusterError {
  return new MusterError(
    'directory_unusable',
    `Cannot read the journal "${directory}": commit ${number} is missing`,
    { evidence: { commit: number } },
  )
}

function applySegment(db: Sqlite, { head, commits }: Segment): void {
  db.pragma('foreign_keys = OFF') // rows come in the order in which they were written, not in which they refer
  const apply = rowWriter(db, head.tables)
  const place = placeRow(db)
  const run = db.transaction(() => {
    for (const { commit, place: at } of commits) {
      for (const row of commit.rows) apply(row)
      place.write(at)
    }
  })
  run.immediate()
  if ((db.pragma('foreign_key_check') as unknown[]).length === 0) return // SQLite returns the rows that refer to nothing
  throw new MusterError('directory_unusable', 'Cannot replay the journal: it does not fit the database')
}

function rowWriter(db: Sqlite, tables: Readonly<Record<string, Columns>>): (row: JournalRow) => void {
  const statements = new Map(
    Object.entries(tables).flatMap(([table, { columns, key }]) => [
      [
        table,
        db.prepare(
          `INSERT OR REPLACE INTO ${table} (${columns.join(', ')}) VALUES (${columns.map(() => '?').join(', ')})`,
        ),
      ],
      [
        `-${table}`,
        db.prepare(`DELETE FROM ${table} WHERE ${key.map((name) => `${name} IS ?`).join(' AND ')}`),
      ],
    ]),
  )
  return ([table, ...cells]) => void statements.get(table)?.run(...cells.map(value))
}

function value(cell: Cell): string | number | null | Buffer {
  return typeof cell === 'object' && cell !== null ? Buffer.from(cell[0], 'base64') : cell
}
