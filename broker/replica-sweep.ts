import type { Sqlite } from '#shared/sqlite'
import { GENERATIONS } from './replica-schema.ts'

/** Rows deleted at a time: about a millisecond. */
const SLICE = 500

/**
 * Prepares the deletion of what nothing reads any more: generations that neither serve nor are being written, and
 * holds that have ended, with their members. Each call deletes one slice and says whether there may be more.
 */
export function prepareSweep(db: Sqlite): (generation: number, loading: number | null) => boolean {
  const older = Object.entries(GENERATIONS).map(([table, key]) =>
    db.prepare<[number, number]>(
      `DELETE FROM ${table} WHERE (generation, ${key}) IN (
         SELECT generation, ${key} FROM ${table} WHERE generation < ? LIMIT ?)`,
    ),
  )
  const abandoned = Object.entries(GENERATIONS).map(([table, key]) =>
    db.prepare<[number, number, number]>(
      `DELETE FROM ${table} WHERE (generation, ${key}) IN (
         SELECT generation, ${key} FROM ${table} WHERE generation > ? AND generation < ? LIMIT ?)`,
    ),
  )
  const ended = db
    .prepare<[number], string>("SELECT id FROM holds WHERE generation = ? AND state = 'ended' LIMIT 1")
    .pluck()
  const members = db.prepare<[number, string, number, string, number]>(
    `DELETE FROM members WHERE generation = ? AND hold = ? AND device IN (
       SELECT device FROM members WHERE generation = ? AND hold = ? LIMIT ?)`,
  )
  const hold = db.prepare<[number, string]>('DELETE FROM holds WHERE generation = ? AND id = ?')

  return (generation, loading) => {
    for (const statement of older) if (statement.run(generation, SLICE).changes > 0) return true
    const below = loading ?? Number.MAX_SAFE_INTEGER
    for (const statement of abandoned) if (statement.run(generation, below, SLICE).changes > 0) return true
    const id = ended.get(generation)
    if (id === undefined) return false
    if (members.run(generation, id, generation, id, SLICE).changes === 0) hold.run(generation, id)
    return true
  }
}
