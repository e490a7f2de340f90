/** The first signal asks to stop, the second one to end at once. */
export interface StopSignals {
  readonly stop: AbortSignal
  readonly kill: AbortSignal
  /** Gives the signals back to the process. */
  release(): void
}

/**
 * Takes SIGINT, SIGTERM and SIGHUP from the process; the loss of a supervisor (IPC `disconnect`) counts as one.
 */
export function stopSignals(): StopSignals {
  const [stop, kill] = [new AbortController(), new AbortController()]
  const heard = () => {
    if (stop.signal.aborted) kill.abort()
    stop.abort()
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
