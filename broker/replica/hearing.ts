import type { Log } from '#shared/log'
import type { Replica } from './replica.ts'

export interface HearingDeps {
  readonly replica: Pick<Replica, 'heard' | 'lastHeardAt'>
  now(): number
  readonly log: Log
  /** Why what the registry says cannot be followed; null when it says nothing. */
  fault(): string | null
  /** Silence after which the log says so, once, ms. */
  readonly alarmMs: number
  /** Least time between two writes to the disk, ms: after a crash `lastHeardAt` is at most this much behind. */
  readonly storeEveryMs: number
}

/** Notes when the registry was heard, for `maxStaleness`, and sounds an alarm when it is silent. */
export class Hearing {
  readonly #deps: HearingDeps
  #alarm: NodeJS.Timeout | undefined
  #isSilent = false
  #storedAt = 0

  constructor(deps: HearingDeps) {
    this.#deps = deps
  }

  start(): void {
    this.#alarm = setTimeout(() => this.#sound(), this.#deps.alarmMs).unref()
  }

  /** The registry has spoken, and the replica is what it says. */
  heard(): void {
    const now = this.#deps.now()
    // What was stored by a clock that was ahead is overwritten at once.
    this.#note(now, Math.abs(now - this.#storedAt) >= this.#deps.storeEveryMs)
    this.#alarm?.refresh()
    if (this.#isSilent) this.#deps.log.info('the registry is heard again')
    this.#isSilent = false
  }

  /** A disk that refuses costs the time after a restart, not the stream: a hold would have to wait for the next one. */
  #note(now: number, isDue: boolean): void {
    try {
      this.#deps.replica.heard(now, isDue)
      if (isDue) this.#storedAt = now
    } catch (error) {
      this.#deps.log.warn({ err: error }, 'cannot store when the registry was heard')
    }
  }

  stop(): void {
    clearTimeout(this.#alarm)
  }

  #sound(): void {
    this.#isSilent = true
    const lastHeardAt = this.#deps.replica.lastHeardAt()
    const fault = this.#deps.fault()
    if (fault === null)
      this.#deps.log.error({ lastHeardAt }, 'the registry is silent; known devices are still admitted')
    else
      this.#deps.log.error(
        { lastHeardAt, fault },
        'the registry cannot be followed; known devices are still admitted',
      )
  }
}
