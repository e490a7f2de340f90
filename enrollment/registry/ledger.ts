import { createHash, type Hash } from 'node:crypto'
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
  const entry = [row.sequence, row.at, row.by, row.action, row.subject]
  const covered = [row.first_position, row.last_position, row.changes_digest]
  return createHash('sha256')
    .update(`${previous}\n${JSON.stringify([...entry, ...covered])}`)
    .digest('hex')
}

/** What one intent has written to the logs so far. */
class Draft implements Intent {
  readonly #append: (text: string) => number
  readonly #changes: Change[] = []
  #digest: Hash | null = null
  #positions: readonly [number, number] | null = null
  #entry: AuditDraft | null = null

  constructor(append: (text: string) => number) {
    this.#append = append
  }

  change(change: Change): void {
    this.#changes.push(change)
    const text = JSON.stringify(change)
    const position = this.#append(text)
    this.#digest ??= createHash('sha256')
    this.#digest.update(text).update('\n')
    this.#positions = [this.#positions?.[0] ?? position, position]
  }

  audit(entry: AuditDraft): void {
    if (this.#entry !== null)
      throw new Error(`An intent has one audit entry: ${entry.action} after ${this.#entry.action}`)
    this.#entry = entry
  }

  finish() {
    if (this.#entry === null && this.#positions !== null)
      throw new Error('An intent made changes without an audit entry')
    const digest = this.#digest?.digest('hex') ?? null
    return { entry: this.#entry, positions: this.#positions, digest, changes: this.#changes }
  }
}

/**
 * Runs `work` as one intent inside the caller's transaction. Every intent that changes something leaves exactly one
 * audit entry, chained to the entry before it, which names the positions of its changes and carries their digest.
 */
export function openLedger(db: Sqlite) {
  const events = openEventLog(db)
  const insertChange = db.prepare<[number, string]>('INSERT INTO changes (at, change) VALUES (?, ?)')
  const newest = db.prepare<[], { sequence: number; hash: string }>(
    'SELECT sequence, hash FROM audit ORDER BY sequence DESC LIMIT 1',
  )
  const insertEntry = db.prepare<[AuditRow]>(
    `INSERT INTO audit (sequence, at, by, action, subject, first_position, last_position, changes_digest, hash)
     VALUES (@sequence, @at, @by, @action, @subject, @first_position, @last_position, @changes_digest, @hash)`,
  )

  return function record<T>(act: Act, work: (intent: Intent) => T): { result: T; position: number | null } {
    const draft = new Draft((text) => Number(insertChange.run(act.now, text).lastInsertRowid))
    const result = work(draft)
    const { entry, positions, digest, changes } = draft.finish()
    if (entry !== null) {
      const last = newest.get() ?? { sequence: 0, hash: GENESIS_HASH }
      const row = {
        sequence: last.sequence + 1,
        at: act.now,
        by: entry.by ?? act.by,
        action: entry.action,
        subject: entry.subject,
        first_position: positions?.[0] ?? null,
        last_position: positions?.[1] ?? null,
        changes_digest: digest,
      }
      insertEntry.run({ ...row, hash: auditHash(last.hash, row) })
      events.addChanges(entry.action, changes, act.now)
    }
    return { result, position: positions?.[1] ?? null }
  }
}
