import { setTimeout as after } from 'node:timers/promises'

/** Time as the simulator sees it; passed in, so that tests bring their own. */
export interface Clock {
  /** Milliseconds since 1970 UTC, with a fraction; never runs backwards within a process. */
  now(): number
  /** Resolves after `ms`, or at once when the signal aborts: the caller looks at the signal. */
  wait(ms: number, signal?: AbortSignal): Promise<void>
}

export const systemClock: Clock = {
  now: () => performance.timeOrigin + performance.now(),
  wait: async (ms, signal) => {
    try {
      await after(ms, undefined, signal ? { signal } : {})
    } catch {
      // Aborted: the caller asked to be woken by the signal, which is not an error here.
    }
  },
}

/** Resolves with the promise's value, or with `late` after `ms`; the promise itself goes on. */
export async function within<Value, Late>(
  promise: Promise<Value>,
  limit: { ms: number; late: Late; clock: Clock },
): Promise<Value | Late> {
  const done = new AbortController()
  const alarm = limit.clock.wait(limit.ms, done.signal).then(() => limit.late)
  try {
    return await Promise.race([promise, alarm])
  } finally {
    done.abort()
  }
}

/**
 * Looks again every `everyMs` until `look` returns something else than null, at most `ms` long.
 * For what other processes do, of which there is no event to wait for.
 */
export async function untilSeen<Value>(
  look: () => Promise<Value | null>,
  limit: { ms: number; everyMs: number; clock: Clock },
): Promise<Value | null> {
  const until = limit.clock.now() + limit.ms
  for (;;) {
    const seen = await look()
    if (seen !== null || limit.clock.now() >= until) return seen
    await limit.clock.wait(limit.everyMs)
  }
}
