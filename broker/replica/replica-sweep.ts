import type { Sqlite } from '#shared/sqlite'

/** Rows deleted at a time: about a millisecond. */
const SLICE = 500

/** Prepares the deletion of holds that have ended, with their members. Each call deletes one slice and says whether there may be more. */
export function prepareSweep(db: Sqlite): () => boolean {
  const ended = db.prepare<[], string>("SELECT id FROM holds WHERE state = 'ended' LIMIT 1").pluck()
  const members = db.prepare<[string, string, number]>(
    `DELETE FROM members WHERE hold = ? AND device IN (SELECT device FROM members WHERE hold = ? LIMIT ?)`,
  )
  const hold = db.prepare<[string]>('DELETE FROM holds WHERE id = ?')
  return () => {
    const id = ended.get()
    if (id === undefined) return false
    if (members.run(id, id, SLICE).changes === 0) hold.run(id)
    return true
  }
}
