/** Wakes those who listen. A ring between two waits of a listener is not lost: the next wait returns at once. */
export class Bell {
  readonly #listeners = new Set<() => void>()

  ring(): void {
    for (const hear of this.#listeners) hear()
  }

  listen(): Listener {
    let isRung = false
    let wake = () => {}
    const hear = () => {
      isRung = true
      wake()
    }
    this.#listeners.add(hear)
    return {
      async wait({ ms, signal }) {
        const woken = Promise.withResolvers<void>()
        wake = woken.resolve
        if (isRung || signal.aborted) wake()
        const timer = setTimeout(wake, ms)
        signal.addEventListener('abort', wake)
        await woken.promise
        clearTimeout(timer)
        signal.removeEventListener('abort', wake)
        isRung = false
      },
      stop: () => this.#listeners.delete(hear),
    }
  }
}

export interface Listener {
  /** Resolves at a ring since the last wait, after `ms`, or with the signal, whichever is first. */
  wait(limits: { ms: number; signal: AbortSignal }): Promise<void>
  stop(): void
}
