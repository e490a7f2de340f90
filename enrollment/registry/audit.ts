import { createHash } from 'node:crypto'
import { setImmediate } from 'node:timers/promises'
import type { Sqlite } from '#shared/sqlite'
import { type AuditRow, auditHash, GENESIS_HASH } from './ledger.ts'
import type { AuditEntry, Registry } from './registry.ts'
import type { Store } from './store.ts'

/** Entries are verified in pieces of this size; other work gets its turn in between. */
const PIECE = 1000

type Statements = ReturnType<typeof prepare>

function prepare(db: Sqlite) {
  return {
    after: db.prepare<[number, number], AuditRow>(
      'SELECT * FROM audit WHERE sequence > ? ORDER BY sequence LIMIT ?',
    ),
    changes: db.prepare<[number, number], { change: string }>(
      'SELECT change FROM changes WHERE position BETWEEN ? AND ? ORDER BY position',
    ),
    /** The highest numbers ever given out: SQLite keeps them when rows are deleted. */
    given: db.prepare<[string], { seq: number }>('SELECT seq FROM sqlite_sequence WHERE name = ?'),
  }
}

/** What the chain must go on from. */
interface Link {
  readonly sequence: number
  readonly position: number
  readonly hash: string
}

export function openAudit(store: Store): Pick<Registry, 'listAudit' | 'verifyAudit'> {
  const statements = prepare(store.db)
  return {
    listAudit: (after, limit) => store.read(() => statements.after.all(after, limit).map(auditEntry)),
    async verifyAudit() {
      let link: Link = { sequence: 0, position: 0, hash: GENESIS_HASH }
      for (;;) {
        const piece = await store.read(() => verifyPiece(statements, link))
        if ('firstBad' in piece) return piece.firstBad
        link = piece
        await setImmediate()
      }
    },
  }
}

/** The link after the next piece, or the verdict. */
function verifyPiece(statements: Statements, from: Link): Link | { firstBad: number | null } {
  let link = from
  const rows = statements.after.all(from.sequence, PIECE)
  for (const row of rows) {
    const next = verifyEntry(statements, { row, link })
    if (next === null) return { firstBad: link.sequence + 1 }
    link = next
  }
  if (rows.length === PIECE) return link
  const isWhole =
    link.sequence === (statements.given.get('audit')?.seq ?? 0) &&
    link.position === (statements.given.get('changes')?.seq ?? 0)
  return { firstBad: isWhole ? null : link.sequence + 1 }
}

/** An entry fits when it is the next one, covers exactly the next changes as they were, and its hash is right. */
function verifyEntry(statements: Statements, { row, link }: { row: AuditRow; link: Link }): Link | null {
  const { first_position: first, last_position: last } = row
  if (row.sequence !== link.sequence + 1 || row.hash !== auditHash(link.hash, row)) return null
  if (first === null || last === null) return { ...link, sequence: row.sequence, hash: row.hash }
  if (first !== link.position + 1) return null
  const digest = createHash('sha256')
  for (const { change } of statements.changes.iterate(first, last)) digest.update(change).update('\n')
  if (digest.digest('hex') !== row.changes_digest) return null
  return { sequence: row.sequence, position: last, hash: row.hash }
}

function auditEntry(row: AuditRow): AuditEntry {
  const { sequence, at, by, action, subject, first_position: first, last_position: last, hash } = row
  return {
    sequence,
    at,
    by,
    action,
    subject,
    positions: first === null || last === null ? null : [first, last],
    hash,
  }
}
