import type { Sqlite } from '#shared/sqlite'
import { prepareSpread } from './purge-rows.ts'

/** Rows deleted at a time: about a millisecond. */
const SLICE = 500

/** Prepares the deletion of holds that have ended, with their members; what they have ordered to be forgotten stays. Each call deletes one slice and says whether there may be more. */
export function prepareSweep(db: Sqlite): () => boolean {
  const ended = db.prepare<[], string>("SELECT id FROM holds WHERE state = 'ended' LIMIT 1").pluck()
  const members = db.prepare<[string, string, number]>(
    `DELETE FROM members WHERE hold = ? AND device IN (SELECT device FROM members WHERE hold = ? ORDER BY device LIMIT ?)`,
  )
  const orders = prepareSpread(db)
  const hold = db.prepare<[string]>('DELETE FROM holds WHERE id = ?')
  const slice = db.transaction((id: string) => {
    orders.toMembers(id, SLICE)
    if (members.run(id, id, SLICE).changes > 0) return
    orders.drop(id)
    hold.run(id)
  })
  return () => {
    const id = ended.get()
    if (id === undefined) return false
    slice(id)
    return true
  }
}
