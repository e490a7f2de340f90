import { setTimeout as delay } from 'node:timers/promises'
import { Compile } from 'typebox/compile'
import { isMusterError } from '#shared/errors'
import { type Cursor, Report, type ReportBatch, type ReportReply } from '#shared/feed'
import type { Log } from '#shared/log'
import type { SpooledBatch, Taken } from './spool.ts'

/** Times in ms. */
export interface ReportLimits {
  /** Between the first report and its batch, so that a batch holds many; receipt lines do not wait. */
  readonly gatherMs: number
  /** Between two batches when there is nothing to say. */
  readonly heartbeatMs: number
  readonly backoffFirstMs: number
  readonly backoffMostMs: number
}

export const REPORT_LIMITS = Object.freeze({
  gatherMs: 200,
  heartbeatMs: 5_000,
  backoffFirstMs: 200,
  backoffMostMs: 5_000,
}) satisfies ReportLimits

/** Where reports wait; {@link Spool} and the replica in production. */
export interface ReportStore {
  add(reports: readonly Report[]): number
  take(reports: readonly Report[], name: { readonly boot: string; readonly sequence: number }): Taken
  taken(batch: SpooledBatch): void
  size(): number
}

export interface ReporterDeps {
  readonly store: ReportStore
  /** Gives up by itself after some seconds. */
  send(batch: ReportBatch): Promise<ReportReply>
  /** What the broker is at this moment; it goes with every batch. */
  state(): { readonly applied: Cursor | null; readonly sessions: number; readonly url: string }
  /** The receipt line of the hold is in the store. */
  stored(hold: string): void
  /** Unique to this start of the broker. */
  readonly boot: string
  now(): number
  random(): number
  readonly log: Log
  readonly limits?: Partial<ReportLimits>
}

/** Longest last attempt to deliver while the broker stops, ms. */
const FAREWELL_MS = 1_000

/** Most reports in memory while the disk refuses them. */
const UNSTORED_CAPACITY = 10_000

const schema = Compile(Report)

/**
 * Delivers what this broker saw and applied, at least once and in order. A batch keeps its (boot, sequence) until it
 * is acknowledged, over restarts too, so the registry can tell a repetition. An empty batch says that the broker lives.
 */
export class Reporter {
  readonly #deps: ReporterDeps
  readonly #limits: ReportLimits
  #unstored: Report[] = []
  /** The name that the next batch of this boot gets. */
  #sequence = 1
  /** The batch whose reply is missing, empty or not: its name must not get other content, so it is sent as it was. */
  #open: SpooledBatch | null = null
  #failures = 0
  /** Nothing is sent before `start`: until then the url is not known. */
  #isRunning = false
  #timer: NodeJS.Timeout | undefined
  #dueAt = Number.POSITIVE_INFINITY
  #delivering: Promise<void> | null = null

  constructor(deps: ReporterDeps) {
    this.#deps = deps
    this.#limits = { ...REPORT_LIMITS, ...deps.limits }
  }

  start(): void {
    this.#isRunning = true
    this.#dueIn(0)
  }

  /** Takes a report; one that the registry would refuse is logged instead, or it would hold up all others. */
  report(report: Report): void {
    if (!schema.Check(report)) {
      this.#deps.log.error({ report }, 'a report is not in the schema and was dropped')
      return
    }
    this.#unstored.push(report)
    const isReceipt = report.type === 'applied'
    if (isReceipt || this.#unstored.length >= 1_000) this.#store()
    this.#dueIn(isReceipt ? 0 : this.#limits.gatherMs)
  }

  /** The cursor or the number of sessions has changed. */
  changed(): void {
    this.#dueIn(this.#limits.gatherMs)
  }

  /** Something that a receipt waits for. */
  purged(): void {
    this.#dueIn(0)
  }

  /** Stores what is in memory and tries once more to deliver it; what stays is delivered after the next start. */
  async stop(): Promise<void> {
    this.#isRunning = false
    clearTimeout(this.#timer)
    this.#store()
    const farewell = async () => {
      await this.#delivering
      if (this.#failures === 0 && this.#deps.store.size() > 0) await this.#deliver()
    }
    const late = new AbortController()
    const deadline = delay(FAREWELL_MS, undefined, { signal: late.signal }).catch(() => {}) // only its signal rejects it
    await Promise.race([farewell(), deadline])
    late.abort()
  }

  #store(): void {
    if (this.#unstored.length > 0) this.#keep((reports) => ({ dropped: this.#deps.store.add(reports) }))
  }

  /** Stores what is in memory by `write`, and tells whom it concerns. Null when the disk refuses: it stays in memory then. */
  #keep<T extends Partial<Taken>>(write: (reports: readonly Report[]) => T): T | null {
    const { log, stored } = this.#deps
    const reports = this.#unstored
    let kept: T
    try {
      kept = write(reports)
      this.#unstored = []
    } catch (error) {
      this.#unstored = atMost(UNSTORED_CAPACITY, reports)
      log.error({ err: error, waiting: reports.length }, 'cannot store reports')
      return null
    }
    const { dropped = 0, unreadable = 0 } = kept
    if (dropped > 0) log.warn({ dropped }, 'the spool is full: oldest reports were dropped')
    if (unreadable > 0) log.error({ unreadable }, 'reports in the spool could not be read and were dropped')
    for (const report of reports) if (report.type === 'applied') this.#tell(stored, report.hold)
    return kept
  }

  /** One that is not noted is reported once more after the next start. */
  #tell(stored: ReporterDeps['stored'], hold: string): void {
    try {
      stored(hold)
    } catch (error) {
      this.#deps.log.error({ err: error, hold }, 'cannot note that a receipt line is stored')
    }
  }

  /** Never later than it was due already. */
  #dueIn(ms: number): void {
    if (!this.#isRunning) return
    const dueAt = this.#deps.now() + ms
    if (this.#timer !== undefined && dueAt >= this.#dueAt) return
    clearTimeout(this.#timer)
    this.#dueAt = dueAt
    this.#timer = setTimeout(() => this.#due(), ms)
  }

  #due(): void {
    this.#timer = undefined
    if (this.#delivering !== null) {
      void this.#delivering.then(() => this.#dueIn(0)) // #deliver never rejects
      return
    }
    this.#delivering = this.#deliver().finally(() => {
      this.#delivering = null
    })
  }

  /** Sends until nothing waits; ends by setting the time of the next attempt. Never rejects. */
  async #deliver(): Promise<void> {
    try {
      let isMore: boolean
      do {
        isMore = await this.#deliverOne()
        this.#failures = 0
      } while (isMore && this.#isRunning)
      this.#dueIn(this.#limits.heartbeatMs)
    } catch (error) {
      if (this.#failures === 0) this.#deps.log.warn(reasonOf(error), 'cannot deliver reports')
      this.#dueIn(this.#backoffMs())
    }
  }

  /** False when nothing waits any more, or the disk refuses what there is. */
  async #deliverOne(): Promise<boolean> {
    const { store, boot, now, state } = this.#deps
    const name = { boot, sequence: this.#sequence }
    const again = this.#open
    if (again !== null) this.#store()
    const batch = again ??
      this.#keep((reports) => store.take(reports, name))?.batch ?? { ...name, reports: [] }
    this.#open = batch
    await this.#deps.send({ ...batch, at: now(), ...state() })
    this.#open = null
    if (batch.reports.length > 0) store.taken(batch)
    if (batch.boot === boot) this.#sequence += 1
    return (batch.reports.length > 0 || again !== null) && store.size() > 0
  }

  /** Full jitter. */
  #backoffMs(): number {
    const { backoffFirstMs, backoffMostMs } = this.#limits
    const most = Math.min(backoffMostMs, backoffFirstMs * 2 ** this.#failures)
    this.#failures += 1
    return backoffFirstMs + this.#deps.random() * (most - backoffFirstMs)
  }
}

/** Receipt lines stay, however many there are; of the others the newest. */
function atMost(count: number, reports: Report[]): Report[] {
  let excess = reports.length - count
  return reports.filter(({ type }) => type === 'applied' || excess-- <= 0)
}

function reasonOf(error: unknown): object {
  return isMusterError(error) ? { code: error.code, reason: error.message } : { err: error }
}
