/** The first signal asks to stop, the second one to end at once. */
export interface StopSignals {
  readonly stop: AbortSignal
  readonly kill: AbortSignal
  /** Gives the signals back to the process. */
  release(): void
}

/**
 * One Ctrl-C can arrive twice: from the terminal, which signals its whole process group, and from npm, which passes on
 * what it gets. A second one counts as such when it comes later than this, ms.
 */
const SAME_SIGNAL_MS = 1_000

/**
 * Takes SIGINT, SIGTERM and SIGHUP from the process; the loss of a supervisor (IPC `disconnect`) counts as one.
 */
export function stopSignals(now: () => number): StopSignals {
  const [stop, kill] = [new AbortController(), new AbortController()]
  let firstAt = 0
  const heard = () => {
    if (!stop.signal.aborted) {
      firstAt = now()
      stop.abort()
    } else if (now() - firstAt > SAME_SIGNAL_MS) kill.abort()
  }
  const names = ['SIGINT', 'SIGTERM', 'SIGHUP', 'disconnect'] as const
  for (const name of names) process.on(name, heard)
  return {
    stop: stop.signal,
    kill: kill.signal,
    release: () => {
      for (const name of names) process.off(name, heard)
    },
  }
}
