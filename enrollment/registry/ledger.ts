import { hash } from 'node:crypto'
import type { Change } from '#shared/feed'
import type { Sqlite } from '#shared/sqlite'
import { openEventLog } from './event-log.ts'
import type { Act, Actor } from './registry.ts'

/** The hash before the first audit entry. */
export const GENESIS_HASH = '0'.repeat(64)

/** What an intent adds to the logs while it runs. */
export interface Intent {
  /** Tells the brokers. */
  change(change: Change): void
  /** Names what happened, once an intent; an intent that changes anything must call it. */
  audit(entry: AuditDraft): void
}

export interface AuditDraft {
  readonly action: string
  readonly subject: string
  /** Who did it, where that is found out within the intent. */
  readonly by?: Actor
}

/** One entry as its hash covers it. */
export interface AuditRow {
  readonly sequence: number
  readonly at: number
  readonly by: string
  readonly action: string
  readonly subject: string
  readonly first_position: number | null
  readonly last_position: number | null
  /** SHA-256 over the changes at these positions, each followed by a newline. */
  readonly changes_digest: string | null
  readonly hash: string
}

/** SHA-256 over the previous hash and the entry as a JSON array, hex. */
export function auditHash(previous: string, row: Omit<AuditRow, 'hash'>): string {
  return hash('sha256', `${previous}\n${JSON.stringify(coveredBy(row))}`)
}

function coveredBy(row: Omit<AuditRow, 'hash'>): (string | number | null)[] {
  const entry = [row.sequence, row.at, row.by, row.action, row.subject]
  return [...entry, row.first_position, row.last_position, row.changes_digest]
}

/** What one intent is going to write to the logs. */
class Draft implements Intent {
  readonly #changes: Change[] = []
  #entry: AuditDraft | null = null

  change(change: Change): void {
    this.#changes.push(change)
  }

  audit(entry: AuditDraft): void {
    if (this.#entry !== null)
      throw new Error(`An intent has one audit entry: ${entry.action} after ${this.#entry.action}`)
    this.#entry = entry
  }

  finish() {
    if (this.#entry === null && this.#changes.length > 0)
      throw new Error('An intent made changes without an audit entry')
    return { entry: this.#entry, changes: this.#changes }
  }
}

/** Appends changes; returns the first and the last position. */
function openChanges(db: Sqlite) {
  const insert = db.prepare<[number, string]>('INSERT INTO changes (at, change) VALUES (?, ?)')
  // what an enrollment has, a device and its certificate, at little more than the price of one
  const insertTwo = db.prepare<[number, string, number, string]>(
    'INSERT INTO changes (at, change) VALUES (?, ?), (?, ?)',
  )
  return function append(at: number, texts: readonly string[]): readonly [number, number] {
    let last: number | bigint = 0
    const [first = '', second = ''] = texts
    if (texts.length === 2) last = insertTwo.run(at, first, at, second).lastInsertRowid
    else for (const text of texts) last = insert.run(at, text).lastInsertRowid
    return [Number(last) - texts.length + 1, Number(last)]
  }
}

/** The end of the chain. */
type Newest = Pick<AuditRow, 'sequence' | 'hash'>

/**
 * Runs intents inside the caller's transaction. Every intent that changes something leaves exactly one audit entry,
 * chained to the entry before it, which names the positions of its changes and carries their digest.
 */
export function openLedger(db: Sqlite) {
  const events = openEventLog(db)
  const appendChanges = openChanges(db)
  const newest = db.prepare<[], Newest>('SELECT sequence, hash FROM audit ORDER BY sequence DESC LIMIT 1')
  // by position: better-sqlite3 looks up each name in the object that it is given
  const insertEntry = db.prepare<(string | number | null)[]>(
    `INSERT INTO audit (sequence, at, by, action, subject, first_position, last_position, changes_digest, hash)
     VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)`,
  )
  /** As the transaction has it; null until it is read. Nobody else writes while the transaction is open. */
  let end: Newest | null = null

  return {
    /** Called when a transaction begins, or an intent has failed: what was read before may be out of date. */
    forget(): void {
      end = null
    },
    /** The caller runs it in a savepoint, so that an intent that fails leaves nothing. */
    record<T>(act: Act, work: (intent: Intent) => T): { result: T; position: number | null } {
      const draft = new Draft()
      const result = work(draft)
      const { entry, changes } = draft.finish()
      if (entry === null) return { result, position: null }
      const texts = changes.map((change) => JSON.stringify(change))
      const [first, last] = texts.length === 0 ? [null, null] : appendChanges(act.now, texts)
      end ??= newest.get() ?? { sequence: 0, hash: GENESIS_HASH }
      const row = {
        sequence: end.sequence + 1,
        at: act.now,
        by: entry.by ?? act.by,
        action: entry.action,
        subject: entry.subject,
        first_position: first,
        last_position: last,
        changes_digest: last === null ? null : hash('sha256', `${texts.join('\n')}\n`),
      }
      const own = auditHash(end.hash, row)
      insertEntry.run(...coveredBy(row), own)
      events.addChanges(entry.action, changes, act.now)
      end = { sequence: row.sequence, hash: own }
      return { result, position: last }
    },
  }
}
