/** Who may begin a TLS handshake, and when: it is the most that a stranger can make the broker do. */
export interface PacingLimits {
  /** Most handshakes begun a second, while the event loop is idle; 0 for any number, at once. */
  readonly handshakesPerSecond: number
  /** As few as that while the event loop is late. */
  readonly handshakesPerSecondLeast: number
  /** Most handshakes begun in one turn of the event loop. */
  readonly handshakeBurst: number
  /** The event loop is late when a timer is later than this, ms. */
  readonly loopLagMs: number
  /** Connections that wait for their handshake, accepted and not read. */
  readonly waitingConnections: number
  /** Longest wait for a handshake, ms; then the connection is closed. */
  readonly waitingMs: number
}

export interface Arrival {
  /** Whom it counts for: {@link addressGroup} of its address. */
  readonly group: string
  /** Begins the handshake. */
  enter(): void
  /** Closes the connection: there is no room for it to wait, or it has waited for too long. */
  drop(limit: 'waitingConnections' | 'waitingMs'): void
}

export interface PacerDeps {
  readonly limits: PacingLimits
  /** Monotonic, ms. */
  clock(): number
  /** How long nobody of the group may enter, ms; 0 for now. */
  bannedMs(group: string): number
  /** Runs the work once, so many ms from now; what it returns prevents that. */
  later(work: () => void, ms: number): () => void
  /** True while sessions are being closed: nobody enters, for that work waits for nobody. */
  isClosing(): boolean
}

/** How often the event loop is looked at and handshakes are begun, while somebody waits, ms. */
const TICK_MS = 20
/** What a late event loop leaves of the rate. */
const DECREASE = 0.7
/** Ticks from the least rate to the most. */
const INCREASE_TICKS = 50
/** Groups that are compared when there is no more room. */
const COMPARED = 64

/**
 * A token bucket in front of the handshake, whose rate follows the lag of the event loop: less by a third whenever it
 * is late, a little more whenever it is not. Who waits is let in address by address, the oldest of each first. When
 * there is no room to wait, the newest of whoever has most waiting makes room.
 */
export class Pacer {
  readonly #deps: PacerDeps
  readonly #waiting = new Map<Arrival, number>()
  /** In the order of their turns. */
  readonly #groups = new Map<string, Set<Arrival>>()
  #rate: number
  #tokens: number
  #filledAt: number
  #cancel: (() => void) | null = null
  #dueAt = 0

  constructor(deps: PacerDeps) {
    this.#deps = deps
    this.#rate = deps.limits.handshakesPerSecond
    this.#tokens = deps.limits.handshakeBurst
    this.#filledAt = deps.clock()
  }

  /** Handshakes begun a second, as the lag of the event loop has it now. */
  get rate(): number {
    return this.#rate
  }

  get waiting(): number {
    return this.#waiting.size
  }

  /** Lets the arrival enter now, or wait, or drops it. */
  arrive(arrival: Arrival): void {
    const { limits, bannedMs, isClosing, clock } = this.#deps
    if (this.#waiting.size === 0) this.#fill(clock())
    const isFree = limits.handshakesPerSecond === 0 || (this.#waiting.size === 0 && this.#tokens >= 1)
    if (isFree && bannedMs(arrival.group) === 0 && !isClosing()) {
      this.#tokens--
      arrival.enter()
      return
    }
    if (this.#waiting.size >= limits.waitingConnections && !this.#makeRoom(arrival.group)) {
      arrival.drop('waitingConnections')
      return
    }
    this.#waiting.set(arrival, clock() + limits.waitingMs)
    const group = this.#groups.get(arrival.group)
    if (group === undefined) this.#groups.set(arrival.group, new Set([arrival]))
    else group.add(arrival)
    this.#schedule()
  }

  /** It has closed by itself while it waited, or is none of ours. */
  leave(arrival: Arrival): void {
    if (!this.#waiting.delete(arrival)) return
    const group = this.#groups.get(arrival.group)
    group?.delete(arrival)
    if (group?.size === 0) this.#groups.delete(arrival.group)
  }

  stop(): void {
    this.#cancel?.()
    this.#cancel = null
    for (const arrival of [...this.#waiting.keys()]) this.#drop(arrival, 'waitingMs')
  }

  #schedule(): void {
    if (this.#cancel !== null) return
    this.#dueAt = this.#deps.clock() + TICK_MS
    this.#cancel = this.#deps.later(() => this.#tick(), TICK_MS)
  }

  #tick(): void {
    this.#cancel = null
    const now = this.#deps.clock()
    this.#adapt(now - this.#dueAt)
    this.#expire(now)
    this.#fill(now)
    if (!this.#deps.isClosing()) this.#admit()
    if (this.#waiting.size > 0) this.#schedule()
  }

  #adapt(lagMs: number): void {
    const { handshakesPerSecond: most, handshakesPerSecondLeast: least, loopLagMs } = this.#deps.limits
    this.#rate =
      lagMs > loopLagMs
        ? Math.max(Math.min(least, most), this.#rate * DECREASE)
        : Math.min(most, this.#rate + most / INCREASE_TICKS)
  }

  #fill(now: number): void {
    const grown = ((now - this.#filledAt) / 1_000) * this.#rate
    this.#tokens = Math.min(this.#deps.limits.handshakeBurst, this.#tokens + grown)
    this.#filledAt = now
  }

  #expire(now: number): void {
    for (const [arrival, deadline] of this.#waiting) {
      if (deadline > now) return
      this.#drop(arrival, 'waitingMs')
    }
  }

  /** One of each group in turn; a group whose turn was used goes to the end. */
  #admit(): void {
    const isUnlimited = this.#deps.limits.handshakesPerSecond === 0
    let passedOver = 0
    while (passedOver < this.#groups.size && (isUnlimited || this.#tokens >= 1)) {
      const [first] = this.#groups
      if (first === undefined) return
      const [name, group] = first
      this.#groups.delete(name)
      this.#groups.set(name, group)
      const [arrival] = group
      if (arrival === undefined || this.#deps.bannedMs(name) > 0) {
        passedOver++
        continue
      }
      passedOver = 0
      this.leave(arrival)
      this.#tokens--
      arrival.enter()
    }
  }

  /** False when nobody has clearly more waiting than the newcomer's group. */
  #makeRoom(newcomer: string): boolean {
    let greediest: Set<Arrival> | null = null
    let compared = 0
    for (const group of this.#groups.values()) {
      if (group.size > (greediest?.size ?? 0)) greediest = group
      if (++compared === COMPARED) break
    }
    if (greediest === null || greediest.size <= (this.#groups.get(newcomer)?.size ?? 0) + 1) return false
    let newest: Arrival | null = null
    for (const arrival of greediest) newest = arrival
    if (newest !== null) this.#drop(newest, 'waitingConnections')
    return true
  }

  #drop(arrival: Arrival, limit: 'waitingConnections' | 'waitingMs'): void {
    this.leave(arrival)
    arrival.drop(limit)
  }
}
