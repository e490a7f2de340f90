import { setTimeout as delay } from 'node:timers/promises'
import { Compile } from 'typebox/compile'
import { isMusterError } from '#shared/errors'
import { type Cursor, Report, type ReportBatch, type ReportReply } from '#shared/feed'
import type { Log } from '#shared/log'
import type { SpooledBatch } from './spool.ts'

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
  take(
    reports: readonly Report[],
    name: { readonly boot: string; readonly sequence: number },
  ): { batch: SpooledBatch | null; dropped: number }
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
  /** An empty batch was sent under `#sequence` and its reply is missing: its name must not get other content. */
  #isHeartbeatOpen = false
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
  #keep<T extends { readonly dropped: number }>(write: (reports: readonly Report[]) => T): T | null {
    const reports = this.#unstored
    try {
      const kept = write(reports)
      this.#unstored = []
      if (kept.dropped > 0)
        this.#deps.log.warn({ dropped: kept.dropped }, 'the spool is full: oldest reports were dropped')
      for (const report of reports) if (report.type === 'applied') this.#deps.stored(report.hold)
      return kept
    } catch (error) {
      this.#unstored = reports.slice(-UNSTORED_CAPACITY)
      this.#deps.log.error({ err: error, waiting: reports.length }, 'cannot store reports')
      return null
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
    const isRepeated = this.#isHeartbeatOpen
    if (isRepeated) this.#store()
    const spooled = isRepeated ? null : (this.#keep((reports) => store.take(reports, name))?.batch ?? null)
    const batch = spooled ?? { ...name, reports: [] }
    this.#isHeartbeatOpen = spooled === null
    await this.#deps.send({ ...batch, at: now(), ...state() })
    this.#isHeartbeatOpen = false
    if (spooled !== null) store.taken(spooled)
    if (batch.boot === boot) this.#sequence += 1
    return (spooled !== null || isRepeated) && store.size() > 0
  }

  /** Full jitter. */
  #backoffMs(): number {
    const { backoffFirstMs, backoffMostMs } = this.#limits
    const most = Math.min(backoffMostMs, backoffFirstMs * 2 ** this.#failures)
    this.#failures += 1
    return backoffFirstMs + this.#deps.random() * (most - backoffFirstMs)
  }
}

function reasonOf(error: unknown): object {
  return isMusterError(error) ? { code: error.code, reason: error.message } : { err: error }
}
