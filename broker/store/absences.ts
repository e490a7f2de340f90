import type { CommitGroup } from './commit-group.ts'
import type { SessionRows } from './session-rows.ts'

/** Since when a client is away, as far as it is known. */
interface Absence {
  /** When it was there last, ms of the broker's life. */
  sinceMs: number
  /** It is on disk. */
  isNoted: boolean
}

/** Who has been away for so long is noted on disk: whoever comes and goes costs no row, ms. */
const NOTED_MS = 3_600_000
const SECOND_MS = 1_000

export interface AbsencesOptions {
  readonly rows: SessionRows
  readonly group: CommitGroup
  /** ms since some moment, by a clock that nobody sets. */
  elapsed(): number
}

/**
 * How long the clients of sessions have been away, in time that this broker has lived: the sum of its runs, by a clock
 * that is never set. A wrong time at the start ends nobody's session, and while the broker is down nobody is away:
 * nobody could have come (MQTT 5 section 3.1.2.11.2 lets a server count like that). After a crash an absence is never
 * longer than it was, and shorter by {@link NOTED_MS} at most.
 */
export class Absences {
  readonly #rows: SessionRows
  readonly #group: CommitGroup
  readonly #elapsed: () => number
  readonly #known = new Map<string, Absence>()
  /** When this run began, ms of the broker's life. */
  #beganMs = 0
  #originMs: number
  /** What had been lived at the last look, ms. */
  #lookedMs = 0

  constructor({ rows, group, elapsed }: AbsencesOptions) {
    this.#rows = rows
    this.#group = group
    this.#elapsed = elapsed
    this.#originMs = elapsed()
  }

  /** Whoever is not noted as away was there, or had been a short while before. */
  load(clientIds: Iterable<string>): void {
    const noted = new Map(this.#rows.absences().map(({ client, since }) => [client, since * SECOND_MS]))
    this.#beganMs = this.#rows.life() * SECOND_MS
    for (const sinceMs of noted.values()) this.#beganMs = Math.max(this.#beganMs, sinceMs)
    this.#lookedMs = this.#beganMs
    for (const client of clientIds) {
      const sinceMs = noted.get(client)
      this.#known.set(client, { sinceMs: sinceMs ?? this.#beganMs, isNoted: sinceMs !== undefined })
    }
  }

  /** ms that this broker has lived. */
  get livedMs(): number {
    return this.#beganMs + Math.max(0, this.#elapsed() - this.#originMs)
  }

  /** The client is there, or was until now. */
  here(clientId: string): void {
    const known = this.#known.get(clientId)
    const sinceMs = this.livedMs
    if (known === undefined) this.#known.set(clientId, { sinceMs, isNoted: false })
    else {
      known.sinceMs = sinceMs
      if (known.isNoted) this.#write(clientId, { known, isAway: false })
    }
  }

  /** For how long it has been away, ms. */
  awayMs(clientId: string): number {
    const known = this.#known.get(clientId)
    return known === undefined ? 0 : this.livedMs - known.sinceMs
  }

  /** Writes that the client is away, once it has been for a while; of `limitMs` for a quarter. */
  note(clientId: string, limitMs: number): void {
    const known = this.#known.get(clientId)
    if (known === undefined || known.isNoted) return
    if (this.livedMs - known.sinceMs >= Math.min(NOTED_MS, limitMs / 4))
      this.#write(clientId, { known, isAway: true })
  }

  forget(clientId: string): void {
    this.#known.delete(clientId)
  }

  /** Since {@link keepLife} nobody could come: that time does not count. */
  standStill(): void {
    this.#originMs += this.livedMs - this.#lookedMs
  }

  /** Writes how long this broker has lived; what is lost of it at a crash nobody was away. */
  keepLife(): void {
    this.#lookedMs = this.livedMs
    if (this.#known.size > 0)
      this.#group.push(
        () => this.#rows.putLife(this.#seconds(this.livedMs)),
        () => {},
      )
  }

  /** One that cannot be written is tried again: by the next look at the session. */
  #write(clientId: string, { known, isAway }: { known: Absence; isAway: boolean }): void {
    known.isNoted = isAway
    const since = isAway ? this.#seconds(known.sinceMs) : null
    this.#group.push(
      () => this.#rows.putAbsence(clientId, since),
      (error) => {
        if (error !== null) known.isNoted = !isAway
      },
    )
  }

  /** Rounded up: nobody was away for longer than he was. */
  #seconds(ms: number): number {
    return Math.ceil(ms / SECOND_MS)
  }
}
