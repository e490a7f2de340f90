import { setTimeout as delay, setImmediate as nextTurn } from 'node:timers/promises'
import { isMusterError } from '#shared/errors'
import type { Cursor } from '#shared/feed'
import { Enforcement, type EnforcementDeps } from '../enforcement.ts'
import { missingAfter, readMessages, type Turn, turns } from './feed-lines.ts'
import { Hearing } from './hearing.ts'
import { RecordWaiters } from './record-waiters.ts'
import type { AdmissionRecord, PositionedChange } from './replica.ts'
import { feedPath, outOfOrder, renewed, silent } from './stream-faults.ts'
import { Unstorable } from './unstorable.ts'

/** Times in ms. */
export interface FollowLimits {
  /** The stream says something every 5 s; after this long without a byte it is taken for dead. */
  readonly silenceMs: number
  /** From then on the log says that the registry is silent, once. */
  readonly alarmMs: number
  readonly backoffFirstMs: number
  readonly backoffMostMs: number
  readonly recordWaitMs: number
  /** `lastHeardAt` is at most this much behind after a crash. */
  readonly heardEveryMs: number
}

export const FOLLOW_LIMITS = Object.freeze({
  silenceMs: 15_000,
  alarmMs: 60_000,
  backoffFirstMs: 100,
  backoffMostMs: 5_000,
  recordWaitMs: 2_000,
  heardEveryMs: 10_000,
}) satisfies FollowLimits

export interface FollowerDeps extends EnforcementDeps {
  /** Opens the stream; the client may be another one each time, after a renewal. */
  open(path: string, signal: AbortSignal): Promise<AsyncIterable<Uint8Array>>
  /** The cursor has moved. */
  moved(): void
  random(): number
  readonly limits?: Partial<FollowLimits>
}

/** Most connections that wait at the gate for their record. */
const WAITING_CAPACITY = 1_000

/**
 * Follows the registry's change stream: applies each change to the replica and decides about its sessions in one
 * tick. A cut or silent stream is opened again from the cursor; until then the replica serves as it is.
 */
export class Follower {
  readonly #deps: FollowerDeps
  readonly #limits: FollowLimits
  readonly #enforcement: Enforcement
  readonly #waiters: RecordWaiters
  readonly #hearing: Hearing
  readonly #unstorable: Unstorable
  readonly #stopped = new AbortController()
  readonly #complete = Promise.withResolvers<void>()
  readonly #attempted = Promise.withResolvers<void>()
  #stream = new AbortController()
  #failures = 0
  /** Why the stream cannot be followed, as long as asking again would not help; the registry is told. */
  #fault: string | null = null
  /** What the snapshot that is being received will be; null outside of one. */
  #snapshot: Cursor | null = null
  /** While a whole snapshot is made ready nothing is read, so the stream's silence means nothing. */
  #isFinishing = false
  #isSweeping = false
  #following: Promise<void> = Promise.resolve()

  constructor(deps: FollowerDeps) {
    this.#deps = deps
    this.#limits = { ...FOLLOW_LIMITS, ...deps.limits }
    this.#enforcement = new Enforcement(deps)
    this.#waiters = new RecordWaiters({
      lookup: (fingerprint) => deps.replica.record(fingerprint),
      deadlineMs: this.#limits.recordWaitMs,
      capacity: WAITING_CAPACITY,
    })
    const { alarmMs, heardEveryMs: storeEveryMs, backoffMostMs: lullMs } = this.#limits
    this.#unstorable = new Unstorable({
      lullMs,
      end: (error) => this.#stream.abort(error),
      stop: (changes) => this.#enforcement.unstored(deps.replica.stopUnstored(changes)),
    })
    this.#hearing = new Hearing({ ...deps, alarmMs, storeEveryMs, fault: () => this.#fault })
  }

  start(): void {
    if (this.#deps.replica.cursor() !== null) this.#complete.resolve()
    this.#enforcement.resumed()
    this.#sweepReplica()
    this.#hearing.start()
    this.#following = this.#follow()
  }

  /** Resolves when the replica holds a complete state: at once after a restart, else with the first snapshot. */
  complete(): Promise<void> {
    return this.#complete.promise
  }

  /**
   * Resolves when the replica has caught up for the first time, or the first attempt has failed: after it nothing is
   * gained by waiting. A hold from the time when this broker was down is then in force before anybody comes in.
   */
  attempted(): Promise<void> {
    return this.#attempted.promise
  }

  /** For a certificate whose chain verifies: its record, at once when known, else when it comes, else null. */
  waitForRecord(fingerprint: string): Promise<AdmissionRecord | null> {
    return this.#waiters.wait(fingerprint)
  }

  /** Opens the stream anew, with the newest certificate. */
  reconnect(): void {
    this.#failures = 0
    this.#stream.abort(renewed())
  }

  async stop(): Promise<void> {
    this.#stopped.abort()
    this.#stream.abort()
    this.#hearing.stop()
    this.#waiters.close()
    await this.#following
    await this.#enforcement.settled()
  }

  async #follow(): Promise<void> {
    const { signal } = this.#stopped
    while (!signal.aborted) {
      this.#stream = new AbortController()
      try {
        await this.#followOnce(this.#stream)
        this.#deps.log.info('change stream ended')
      } catch (error) {
        if (!signal.aborted) this.#failed(this.#stream.signal.reason ?? error)
      }
      this.#snapshot = null
      this.#deps.replica.abandonSnapshot()
      this.#sweepReplica()
      this.#attempted.resolve()
      await delay(this.#backoffMs(), undefined, { signal }).catch(() => {}) // only the signal rejects it
    }
  }

  #failed(error: unknown): void {
    const why = isMusterError(error) ? { code: error.code, reason: error.message } : { err: error }
    const fault = isMusterError(error, 'invalid_request') ? error.message : this.#fault
    const isNews = this.#failures === 0 && (fault === null || fault !== this.#fault)
    const level = isNews ? (fault === null ? 'warn' : 'error') : 'debug' // once an outage; the alarm follows if it lasts
    this.#deps.log[level](why, 'change stream failed')
    this.#fault = fault
    // A message that cannot be understood will not be understood sooner by asking fast.
    if (isMusterError(error, 'invalid_request', 'forbidden')) this.#failures = 16
  }

  /** Full jitter, so that brokers that were cut together do not come back together. */
  #backoffMs(): number {
    const { backoffFirstMs, backoffMostMs } = this.#limits
    const most = Math.min(backoffMostMs, backoffFirstMs * 2 ** this.#failures)
    this.#failures += 1
    return backoffFirstMs + this.#deps.random() * (most - backoffFirstMs)
  }

  async #followOnce(stream: AbortController): Promise<void> {
    const silence = setTimeout(() => {
      if (this.#isFinishing) silence.refresh()
      else stream.abort(silent())
    }, this.#limits.silenceMs).unref()
    try {
      const body = await this.#deps.open(feedPath(this.#deps.replica.cursor(), this.#fault), stream.signal)
      for await (const messages of readMessages(body)) {
        silence.refresh()
        for (const turn of turns(messages)) {
          const isWhole = turn.type === 'snapshot-end' && !this.#unstorable.isRest
          if (isWhole) await this.#finishSnapshot(turn, stream.signal)
          silence.refresh()
          this.#take(turn)
          await nextTurn()
          if (stream.signal.aborted) return
        }
      }
    } finally {
      clearTimeout(silence)
      this.#unstorable.end()
    }
  }

  #take(turn: Turn): void {
    if (this.#unstorable.isRest) this.#unstorable.take(turn)
    else if (turn.type === 'changes') this.#takeChanges(turn.changes)
    else if (turn.type === 'alive') this.#takeAlive(turn)
    else if (turn.type === 'snapshot') this.#beginSnapshot(turn)
    else this.#endSnapshot(turn)
    // What never becomes whole, or is refused by the disk, is not asked for without a pause.
    if (this.#snapshot === null && !this.#unstorable.isRest) this.#failures = 0
  }

  /** The one tick: the replica changes, and every session that it no longer admits is refused. */
  #takeChanges(changes: readonly PositionedChange[]): void {
    const { replica, moved } = this.#deps
    if (this.#snapshot !== null) {
      this.#stored([...replica.stagedStops, ...changes], () => replica.stage(changes)) // members come before their hold
      return
    }
    const cursor = replica.cursor()
    if (cursor === null) throw outOfOrder('a change came before the first snapshot')
    const missing = missingAfter(cursor.position, changes)
    if (missing !== null) throw outOfOrder(`change ${missing} is missing`)
    const fresh = this.#stored(changes, () => replica.apply(changes))
    if (fresh === null) return
    this.#enforcement.changed(fresh)
    this.#hearing.heard()
    this.#waiters.settle()
    if (changes.some(({ change }) => change.kind === 'hold')) this.#sweepReplica()
    moved()
  }

  /** Null when the disk refuses. */
  #stored<T>(changes: readonly PositionedChange[], store: () => T): T | null {
    try {
      return store()
    } catch (error) {
      this.#unstorable.begin(error, changes)
      return null
    }
  }

  #takeAlive({ epoch, position }: Cursor): void {
    const cursor = this.#deps.replica.cursor()
    if (this.#snapshot !== null) return
    if (cursor?.epoch !== epoch) throw outOfOrder(`it is of epoch "${epoch}"`)
    if (cursor.position < position) throw outOfOrder(`change ${cursor.position + 1} is missing`)
    this.#fault = null
    this.#hearing.heard()
    this.#attempted.resolve()
  }

  #beginSnapshot({ epoch, position }: Cursor): void {
    this.#deps.log.info({ epoch, position }, 'receiving a snapshot')
    this.#snapshot = { epoch, position }
    this.#stored([], () => this.#deps.replica.beginSnapshot())
  }

  /** What comes before the tick in which the snapshot takes over. */
  async #finishSnapshot({ epoch, position }: Cursor, signal: AbortSignal): Promise<void> {
    const begun = this.#snapshot
    if (begun?.epoch !== epoch || begun.position !== position) {
      throw outOfOrder('a snapshot ended that was not begun')
    }
    this.#isFinishing = true
    try {
      await this.#deps.replica.finishSnapshot(begun, signal)
      signal.throwIfAborted()
    } catch (error) {
      signal.throwIfAborted()
      this.#unstorable.begin(error, this.#deps.replica.stagedStops)
    } finally {
      this.#isFinishing = false
    }
  }

  /** The one tick: the new state serves, and every session that it no longer admits is refused. */
  #endSnapshot({ epoch, position }: Cursor): void {
    const { replica } = this.#deps
    if (this.#stored(replica.stagedStops, () => replica.endSnapshot()) === null) return
    this.#snapshot = null
    this.#enforcement.replaced()
    this.#hearing.heard()
    this.#waiters.settle()
    this.#complete.resolve()
    this.#attempted.resolve()
    this.#sweepReplica()
    this.#deps.moved()
    this.#deps.log.info({ epoch, position }, 'snapshot is complete')
  }

  /** Deletes what no longer counts, a slice a turn. */
  #sweepReplica(): void {
    if (this.#isSweeping) return
    this.#isSweeping = true
    const sweep = async () => {
      while (!this.#stopped.signal.aborted && this.#deps.replica.sweep()) await nextTurn()
    }
    void sweep()
      .catch((error: unknown) => this.#deps.log.warn({ err: error }, 'cannot clean up the replica'))
      .finally(() => {
        this.#isSweeping = false
      })
  }
}
