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
  #count: number

  constructor(db: Sqlite, capacity = CAPACITY) {
    this.#db = db
    this.#capacity = capacity
    this.#count = db.prepare<[], number>('SELECT count(*) FROM spool').pluck().get() ?? 0
  }

  /** Stores the reports, all or none; returns how many older ones had to go. */
  add(reports: readonly Report[]): number {
    const insert = this.#db.prepare('INSERT INTO spool (type, report) VALUES (?, ?)')
    let dropped = 0
    this.#transact(() => {
      for (const report of reports) insert.run(report.type, JSON.stringify(report))
      dropped = this.#makeRoom(this.#count + reports.length - this.#capacity)
    })
    this.#count += reports.length - dropped
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

  /** The batch to send next: one that was named before, or the oldest reports under the given name; null when empty. */
  nextBatch(name: { readonly boot: string; readonly sequence: number }): SpooledBatch | null {
    const rows = this.#oldest()
    const first = rows[0]
    if (first === undefined) return null
    if (first.boot !== null && first.sequence !== null) {
      const { boot, sequence } = first
      const same = rows.filter((row) => row.boot === boot && row.sequence === sequence)
      return { boot, sequence, reports: parse(same) }
    }
    const taken = withinLimits(rows.filter((row) => row.boot === null))
    const last = taken.at(-1) ?? first
    this.#db
      .prepare('UPDATE spool SET boot = ?, sequence = ? WHERE id BETWEEN ? AND ? AND boot IS NULL')
      .run(name.boot, name.sequence, first.id, last.id)
    return { ...name, reports: parse(taken) }
  }

  #oldest(): Row[] {
    return this.#db
      .prepare<[number], Row>('SELECT id, report, boot, sequence FROM spool ORDER BY id LIMIT ?')
      .all(BATCH_REPORTS)
  }

  /** Forgets a batch that the registry has taken. */
  taken({ boot, sequence }: { readonly boot: string; readonly sequence: number }): void {
    const removed = this.#db
      .prepare(
        'DELETE FROM spool WHERE id IN (SELECT id FROM spool ORDER BY id LIMIT ?) AND boot = ? AND sequence = ?',
      )
      .run(BATCH_REPORTS, boot, sequence).changes
    this.#count -= removed
  }

  size(): number {
    return this.#count
  }

  #transact(work: () => void): void {
    this.#db.transaction(work).immediate()
  }
}

/** The longest run from the start that fits in one batch; at least one. */
function withinLimits(rows: Row[]): Row[] {
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
