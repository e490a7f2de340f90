import type { ErrorCode } from './errors.ts'
import type { Log } from './log.ts'

/** A part of a process with a lifetime: started in order, stopped in reverse. */
export interface Part {
  readonly name: string
  stop(): Promise<void>
}

/** Longest that one part may take to stop, ms; after it the next one is stopped all the same. */
const STOP_DEADLINE_MS = 5_000

/** Collects parts as they start; `stop` ends them in reverse order, once, whatever each of them throws. */
export class Lifecycle {
  readonly #parts: Part[] = []
  readonly #log: Log
  #stopping: Promise<void> | undefined

  constructor(log: Log) {
    this.#log = log
  }

  started(name: string, stop: () => Promise<void> | void): void {
    this.#parts.push({ name, stop: async () => stop() })
  }

  stop(): Promise<void> {
    this.#stopping ??= this.#stopAll()
    return this.#stopping
  }

  async #stopAll(): Promise<void> {
    for (const part of this.#parts.toReversed()) {
      const deadline = Promise.withResolvers<'late'>()
      const timer = setTimeout(() => deadline.resolve('late'), STOP_DEADLINE_MS)
      try {
        const ended = await Promise.race([part.stop(), deadline.promise])
        if (ended === 'late') this.#log.warn({ part: part.name }, 'part did not stop in time')
      } catch (error) {
        this.#log.error({ part: part.name, err: error }, 'part failed to stop')
      } finally {
        clearTimeout(timer)
      }
    }
  }
}

/** What a supervised process tells its supervisor over the IPC channel, when there is one. */
export type ProcessMessage =
  | { readonly type: 'ready'; readonly details: Readonly<Record<string, string>> }
  /** Why the process is about to end: one sentence, which the supervisor shows. */
  | { readonly type: 'failed'; readonly code: ErrorCode; readonly message: string }

/** Says that this process is ready: to the supervisor, or as a log line when it runs alone. */
export function announceReady(log: Log, details: Readonly<Record<string, string>>): void {
  log.info(details, 'ready')
  process.send?.({ type: 'ready', details } satisfies ProcessMessage)
}

/** Tells the supervisor, when there is one, why this process ends; resolves when the message is on its way. */
export async function announceFailure(code: ErrorCode, message: string): Promise<void> {
  const { promise, resolve } = Promise.withResolvers<void>()
  // A channel that is gone is no reason to fail again.
  if (!process.send?.({ type: 'failed', code, message } satisfies ProcessMessage, () => resolve())) resolve()
  await promise
}

/**
 * Runs a process until SIGINT, SIGTERM or the loss of its supervisor (IPC `disconnect`), then stops it.
 * A second signal ends it at once.
 */
export function runUntilStopped(lifecycle: Lifecycle, log: Log): void {
  const stop = (why: string) => {
    log.info({ why }, 'stopping')
    void lifecycle.stop().then(() => process.exit(0)) // stop() never rejects: it logs each part's failure
  }
  for (const signal of ['SIGINT', 'SIGTERM'] as const) {
    process.once(signal, () => {
      process.once(signal, () => process.exit(130))
      stop(signal)
    })
  }
  process.once('disconnect', () => stop('supervisor gone'))
}
