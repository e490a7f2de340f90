import type { Sqlite } from '#shared/sqlite'
import { JOURNAL_BEGIN, type JournalPlace } from './journal-lines.ts'

/** How far the journal has got, as the database knows it: written by the commit that it is about. */
export interface PlaceRow {
  read(): JournalPlace
  write(place: JournalPlace): void
  /** Writes the same place with another ending: SQLite would not write a page that stays as it is. */
  rewrite(): void
}

export function placeRow(db: Sqlite): PlaceRow {
  const get = db.prepare<[], { value: string }>(`SELECT value FROM meta WHERE name = 'journal'`)
  const put = db.prepare<[string]>(`INSERT OR REPLACE INTO meta (name, value) VALUES ('journal', ?)`)
  return {
    read() {
      const value = get.get()?.value
      if (value === undefined) return JOURNAL_BEGIN
      const [number = '0', check = ''] = value.split(' ')
      return { number: Number(number), check }
    },
    write: ({ number, check }) => void put.run(`${number} ${check}`),
    rewrite() {
      const [number, check, times = '0'] = get.get()?.value.split(' ') ?? []
      if (check !== undefined) put.run(`${number} ${check} ${Number(times) + 1}`)
      else put.run(`${JOURNAL_BEGIN.number} ${JOURNAL_BEGIN.check} 1`)
    },
  }
}
