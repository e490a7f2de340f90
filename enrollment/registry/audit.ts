import { createHash } from 'node:crypto'
import { setImmediate } from 'node:timers/promises'
import type { Sqlite } from '#shared/sqlite'
import { type AuditRow, auditHash } from './ledger.ts'
import { type PrunedLogs, prunedRow, prunedSubject } from './pruned.ts'
import type { AuditEntry, AuditMark, Registry } from './registry.ts'
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
    at: db.prepare<[number], { hash: string }>('SELECT hash FROM audit WHERE sequence = ?'),
    head: db.prepare<[], AuditMark>('SELECT sequence, hash FROM audit ORDER BY sequence DESC LIMIT 1'),
    pruning: db.prepare<[string], unknown>(`SELECT 1 FROM audit WHERE action = 'log.prune' AND subject = ?`),
    /** The highest numbers ever given out: SQLite keeps them when rows are deleted. */
    given: db.prepare<[string], { seq: number }>('SELECT seq FROM sqlite_sequence WHERE name = ?'),
  }
}

/** What the chain must go on from. */
interface Link {
  readonly sequence: number
  readonly position: number
  readonly hash: string
  /** Changes up to here are gone. */
  readonly pruned: number
  readonly head: AuditMark | null
}

type AuditIntents = Pick<Registry, 'listAudit' | 'verifyAudit' | 'auditHead' | 'hasAudit'>

export function openAudit(store: Store): AuditIntents {
  const statements = prepare(store.db)
  const pruned = prunedRow(store.db)
  return {
    listAudit: (after, limit) => store.read(() => statements.after.all(after, limit).map(auditEntry)),
    auditHead: () => store.read(() => statements.head.get() ?? null),
    hasAudit: ({ sequence, hash }) =>
      store.read(() => sequence <= pruned.read().sequence || statements.at.get(sequence)?.hash === hash),
    async verifyAudit(head = null) {
      const begin = await store.read(() => beginning(statements, pruned.read()))
      if (begin === null) return 1
      let link: Link = { ...begin, head }
      for (;;) {
        const piece = await store.read(() => verifyPiece(statements, link))
        if ('firstBad' in piece) return piece.firstBad
        link = piece
        await setImmediate()
      }
    },
  }
}

/** Where the log begins; null when no entry says that it was pruned up to there. */
function beginning(statements: Statements, pruned: PrunedLogs): Omit<Link, 'head'> | null {
  const { sequence, hash, position, changes } = pruned
  const isGenuine = changes === 0 || statements.pruning.get(prunedSubject(pruned)) !== undefined
  return isGenuine ? { sequence, hash, position, pruned: changes } : null
}

/** The link after the next piece, or the verdict. */
function verifyPiece(statements: Statements, from: Link): Link | { firstBad: number | null } {
  let link = from
  const rows = statements.after.all(from.sequence, PIECE)
  for (const row of rows) {
    const next = verifyEntry(statements, { row, link })
    const isHead = row.sequence === link.head?.sequence
    if (next === null || (isHead && row.hash !== link.head?.hash)) return { firstBad: link.sequence + 1 }
    link = next
  }
  if (rows.length === PIECE) return link
  const isWhole =
    link.sequence >= (link.head?.sequence ?? 0) &&
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
  if (last <= link.pruned) return { ...link, sequence: row.sequence, position: last, hash: row.hash }
  const digest = createHash('sha256')
  for (const { change } of statements.changes.iterate(first, last)) digest.update(change).update('\n')
  if (digest.digest('hex') !== row.changes_digest) return null
  return { ...link, sequence: row.sequence, position: last, hash: row.hash }
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
