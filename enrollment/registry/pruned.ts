import type { Sqlite } from '#shared/sqlite'
import { GENESIS_HASH } from './ledger.ts'

/** Where the logs begin: what came before has been pruned. */
export interface PrunedLogs {
  /** Newest audit entry that is gone, its hash, and the last change that it or one before it covered. */
  readonly sequence: number
  readonly hash: string
  readonly position: number
  /** Newest change that is gone; the entries that cover changes up to here can only be checked by their hashes. */
  readonly changes: number
}

const NOTHING: PrunedLogs = { sequence: 0, hash: GENESIS_HASH, position: 0, changes: 0 }

/** The row of `meta` that says where the logs begin. */
export function prunedRow(db: Sqlite) {
  const get = db.prepare<[], { value: string }>(`SELECT value FROM meta WHERE name = 'pruned'`)
  const put = db.prepare<[string]>(`INSERT OR REPLACE INTO meta (name, value) VALUES ('pruned', ?)`)
  return {
    read(): PrunedLogs {
      const value = get.get()?.value
      return value === undefined ? NOTHING : (JSON.parse(value) as PrunedLogs) // written below
    },
    write: (pruned: PrunedLogs) => void put.run(JSON.stringify(pruned)),
  }
}

/** How the audit log names a pruning, so that a beginning that somebody made up has no entry. */
export function prunedSubject({ sequence, hash, changes }: PrunedLogs): string {
  return `audit:${sequence} hash:${hash} changes:${changes}`
}
