import type { Log } from '#shared/log'

export interface JobOptions {
  readonly name: string
  /** Longest time between two runs, ms. */
  readonly everyMs: number
  readonly log: Log
  /** One run; it ends early with the signal. */
  run(signal: AbortSignal): Promise<void>
}

/** Repeats a task, one run at a time; a run that fails is logged, and the next one tries again. */
export class Job {
  readonly #options: JobOptions
  readonly #ending = new AbortController()
  readonly #timer: NodeJS.Timeout
  #running: Promise<void> | null = null
  #isWanted = false

  constructor(options: JobOptions) {
    this.#options = options
    this.#timer = setInterval(() => this.wake(), options.everyMs)
    this.#timer.unref()
  }

  /** Runs now, or once more after the run in progress. */
  wake(): void {
    this.#isWanted = true
    this.#running ??= this.#work()
  }

  /** Resolves when the run in progress has ended. */
  async stop(): Promise<void> {
    clearInterval(this.#timer)
    this.#ending.abort()
    await this.#running
  }

  async #work(): Promise<void> {
    const { name, log, run } = this.#options
    while (this.#isWanted && !this.#ending.signal.aborted) {
      this.#isWanted = false
      try {
        await run(this.#ending.signal)
      } catch (error) {
        log.error({ job: name, err: error }, 'job failed')
      }
    }
    this.#running = null
  }
}
