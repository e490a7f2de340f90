import type { Report } from '#shared/feed'
import type { Sqlite } from '#shared/sqlite'

/** Reports of one batch, with the name under which they are sent, also when they are sent again. */
export interface SpooledBatch {
  readonly boot: string
  readonly sequence: number
  readonly reports: Report[]
}

/** Most reports that are kept for a registry that cannot be reached. */
const CAPACITY = 100_000

/** Rows removed at a time when the spool is full, so that a full spool does not pay for each report. */
const DROP_SLICE = 1_000

/** Most bytes of reports in one batch; below the body limit of the registry's listener (64 KiB). */
const BATCH_BYTES = 48_000

/** Most reports in one batch (the schema of the batch says so too). */
const BATCH_REPORTS = 1_000

export interface Taken {
  readonly batch: SpooledBatch | null
  /** Older reports that had to go. */
  readonly dropped: number
  /** Rows of an earlier run that were no reports, and are gone. */
  readonly unreadable: number
}

/** The name under which a batch is sent. */
type BatchName = Pick<SpooledBatch, 'boot' | 'sequence'>

interface Row {
  readonly id: number
  readonly report: string
  readonly boot: string | null
  readonly sequence: number | null
}

/**
 * Reports that wait for the registry, on disk, oldest first. A batch is named (boot, sequence) before it is sent and
 * keeps its name over a restart, so that one that was taken and not acknowledged is not counted twice.
 * When there are too many, sessions' comings and goings are dropped first, then refusals; receipt lines never.
 */
export class Spool {
  readonly #db: Sqlite
  readonly #capacity: number
  readonly #statements: Statements
  #count: number
  /** What an earlier run has left has been looked through. */
  #isReadable = false
  /** A batch that the registry has. It goes with the next write: until then it could only be sent again, by its name. */
  #done: SpooledBatch | null = null

  constructor(db: Sqlite, capacity = CAPACITY) {
    this.#db = db
    this.#capacity = capacity
    this.#statements = prepare(db)
    this.#count = db.prepare<[], number>('SELECT count(*) FROM spool').pluck().get() ?? 0
  }

  /** Stores the reports, all or none; returns how many older ones had to go. */
  add(reports: readonly Report[]): number {
    return this.#write(() => this.#insert(reports.map(rowOf), null))
  }

  /**
   * Stores the reports and names the batch to send next, with one write: one that was named before, or the oldest
   * reports under the given name; null when there are none.
   */
  take(reports: readonly Report[], name: BatchName): Taken {
    if (this.#count === 0 && reports.length === 0) return { batch: null, dropped: 0, unreadable: 0 }
    const unreadable = this.#count > 0 ? this.#clear() : 0
    let batch: SpooledBatch | null = null
    const dropped = this.#write((isEmpty) => {
      const rows = reports.map(rowOf)
      const sent = isEmpty ? withinLimits(rows).length : 0
      const gone = this.#insert(rows.slice(0, sent), name) + this.#insert(rows.slice(sent), null)
      batch = sent > 0 ? { ...name, reports: reports.slice(0, sent) } : this.#nameOldest(name)
      return gone
    })
    return { batch, dropped, unreadable }
  }

  /** Takes out rows that no batch could be made of: they would hold up all others. Returns how many there were. */
  #clear(): number {
    if (this.#isReadable) return 0
    const { changes } = this.#db.prepare('DELETE FROM spool WHERE json_valid(report) = 0').run()
    this.#count -= changes
    this.#isReadable = true
    return changes
  }

  /** In one transaction, and with it goes the batch that the registry has. Returns what `work` does. */
  #write(work: (isEmpty: boolean) => number): number {
    const [done, count] = [this.#done, this.#count]
    try {
      const dropped = this.#db
        .transaction(() => {
          if (done !== null) {
            this.#count -= this.#statements.remove.run(BATCH_REPORTS, done.boot, done.sequence).changes
          }
          return work(this.#count === 0)
        })
        .immediate()
      this.#done = null
      return dropped
    } catch (error) {
      this.#count = count
      throw error
    }
  }

  /** Returns how many older ones had to go. */
  #insert(rows: readonly NewRow[], name: BatchName | null): number {
    const { insert } = this.#statements
    for (const { type, report } of rows) insert.run(type, report, name?.boot ?? null, name?.sequence ?? null)
    const dropped = this.#makeRoom(this.#count + rows.length - this.#capacity)
    this.#count += rows.length - dropped
    return dropped
  }

  #makeRoom(excess: number): number {
    if (excess <= 0) return 0
    let left = Math.max(excess, Math.min(DROP_SLICE, this.#capacity / 10))
    const wanted = left
    for (const types of ["'connected', 'disconnected'", "'refused'"]) {
      const oldest = `SELECT id FROM spool WHERE type IN (${types}) ORDER BY id LIMIT ?`
      left -= this.#db.prepare(`DELETE FROM spool WHERE id IN (${oldest})`).run(Math.ceil(left)).changes
      if (left <= 0) break
    }
    return Math.round(wanted - left)
  }

  #nameOldest(name: BatchName): SpooledBatch | null {
    const rows = this.#statements.oldest.all(BATCH_REPORTS)
    const first = rows[0]
    if (first === undefined) return null
    if (first.boot !== null && first.sequence !== null) {
      const { boot, sequence } = first
      const same = rows.filter((row) => row.boot === boot && row.sequence === sequence)
      return { boot, sequence, reports: parse(same) }
    }
    const taken = withinLimits(rows.filter((row) => row.boot === null))
    const last = taken.at(-1) ?? first
    this.#statements.name.run(name.boot, name.sequence, first.id, last.id)
    return { ...name, reports: parse(taken) }
  }

  /** The registry has the batch. */
  taken(batch: SpooledBatch): void {
    this.#done = batch
  }

  /** Reports that the registry does not have. */
  size(): number {
    return Math.max(0, this.#count - (this.#done?.reports.length ?? 0))
  }
}

interface NewRow {
  readonly type: string
  readonly report: string
}

function rowOf(report: Report): NewRow {
  return { type: report.type, report: JSON.stringify(report) }
}

type Statements = ReturnType<typeof prepare>

function prepare(db: Sqlite) {
  const oldest = 'SELECT id FROM spool ORDER BY id LIMIT ?'
  return {
    insert: db.prepare<[string, string, string | null, number | null]>(
      'INSERT INTO spool (type, report, boot, sequence) VALUES (?, ?, ?, ?)',
    ),
    oldest: db.prepare<[number], Row>('SELECT id, report, boot, sequence FROM spool ORDER BY id LIMIT ?'),
    name: db.prepare<[string, number, number, number]>(
      'UPDATE spool SET boot = ?, sequence = ? WHERE id BETWEEN ? AND ? AND boot IS NULL',
    ),
    remove: db.prepare<[number, string, number]>(
      `DELETE FROM spool WHERE id IN (${oldest}) AND boot = ? AND sequence = ?`,
    ),
  }
}

/** The longest run from the start that fits in one batch; at least one. */
function withinLimits<T extends { readonly report: string }>(rows: T[]): T[] {
  let bytes = 0
  const end = rows.findIndex((row) => {
    bytes += Buffer.byteLength(row.report)
    return bytes > BATCH_BYTES
  })
  return end === -1 ? rows : rows.slice(0, Math.max(1, end))
}

function parse(rows: readonly Row[]): Report[] {
  return rows.map((row) => JSON.parse(row.report) as Report) // written by `add`, from a Report
}
