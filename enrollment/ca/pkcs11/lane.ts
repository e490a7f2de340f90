import { MusterError } from '#shared/errors'

/** Requests that may wait for their turn; more are turned away at once. */
export const MAX_WAITING = 256
const DEADLINE_MS = 5_000

/**
 * One piece of work after the other, for a module that may not be asked twice at a time. Who has waited too long gets
 * an answer; work that has begun is not stopped, because a call into a module cannot be, and the next waits for it.
 */
export class Lane {
  readonly #deadlineMs: number
  #waiting = 0
  #turn: Promise<unknown> = Promise.resolve()

  /** @param deadlineMs longest that a caller waits for his turn and its end */
  constructor(deadlineMs = DEADLINE_MS) {
    this.#deadlineMs = deadlineMs
  }

  /** @throws MusterError unavailable, and what the work throws */
  async run<T>(work: () => Promise<T>): Promise<T> {
    if (this.#waiting >= MAX_WAITING) throw slow('too many requests wait for it')
    const caller = { isGone: false }
    const turn = this.#turn.then(() => {
      if (caller.isGone) throw slow('it is too slow')
      return work()
    })
    this.#waiting++
    this.#turn = turn.then(
      () => this.#waiting--,
      () => this.#waiting--,
    )
    const late = Promise.withResolvers<never>()
    const timer = setTimeout(() => {
      caller.isGone = true
      late.reject(slow('it is too slow'))
    }, this.#deadlineMs)
    try {
      return await Promise.race([turn, late.promise])
    } finally {
      clearTimeout(timer)
    }
  }

  /** Resolves when all that has been asked for so far is over. */
  async idle(): Promise<void> {
    await this.#turn
  }
}

function slow(why: string): MusterError {
  return new MusterError('unavailable', `Cannot use the security module: ${why}`)
}
