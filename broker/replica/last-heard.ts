/** Clocks of this machine, ms: the one that somebody may set, and one that only rises. */
export interface Clocks {
  now(): number
  monotonic(): number
}

/** How far ahead of the clock a stored time may be, ms: as much as a clock is moved by when it is disciplined. */
const AHEAD_MS = 60_000

/**
 * When the registry was heard last, and for how long it has been silent. The wall clock alone cannot say it: when it
 * was ahead and is set right, what it had noted lies in the future, and hides every silence until then. So within a
 * process a clock that only rises counts as well, and whichever says more. The wall clock sees a machine that slept,
 * which the other does not.
 */
export class LastHeard {
  readonly #clocks: Clocks
  #at: number | null
  /** Silence that had passed at {@link #since}, ms. */
  #before: number
  /** By the monotonic clock. */
  #since: number

  /**
   * @param storedAt by an earlier run. One that is ahead of the clock says nothing: the registry counts as never heard,
   *   until it is.
   */
  constructor(storedAt: number | null, clocks: Clocks) {
    const now = clocks.now()
    this.#clocks = clocks
    this.#since = clocks.monotonic()
    this.#at = storedAt === null || storedAt > now + AHEAD_MS ? null : Math.min(storedAt, now)
    this.#before = this.#at === null ? 0 : now - this.#at
  }

  /** Ms since 1970 by this machine's clock; null when it is not known. */
  get at(): number | null {
    return this.#at
  }

  heard(now: number): void {
    this.#at = now
    this.#before = 0
    this.#since = this.#clocks.monotonic()
  }

  /** Ms; for ever when the registry was never heard. */
  silentMs(now: number): number {
    if (this.#at === null) return Number.MAX_SAFE_INTEGER
    return Math.max(now - this.#at, this.#before + this.#clocks.monotonic() - this.#since)
  }
}
