import { MusterError } from '#shared/errors'

/** Units in ms, the largest first. */
const UNITS = { d: 86_400_000, h: 3_600_000, m: 60_000, s: 1_000, ms: 1 } as const

/** Furthest that a time may lie ahead: 100 years, ms; more is a slip of the hand. */
const LONGEST_MS = 100 * 365 * UNITS.d

/**
 * `24h`, `15m`, `30d`, `1h30m` in ms; `0` is none.
 * @throws MusterError invalid_request
 */
export function parseDuration(text: string): number {
  if (text === '0') return 0
  if (!/^(?:\d{1,12}(?:ms|[dhms]))+$/.test(text)) {
    throw new MusterError(
      'invalid_request',
      `Cannot read the duration "${text}": write it like 90s, 15m, 24h or 30d`,
    )
  }
  let total = 0
  for (const [, count, unit] of text.matchAll(/(\d+)(ms|[dhms])/g)) {
    total += Number(count) * UNITS[unit as keyof typeof UNITS] // the pattern admits no other unit
  }
  if (total > LONGEST_MS) {
    throw new MusterError('invalid_request', `Cannot take the duration "${text}": it is more than 100 years`)
  }
  return total
}

/**
 * A time to come, as ms since 1970: a duration from now, or an ISO date (`2027-01-31`, `2027-01-31T12:00:00Z`).
 * @throws MusterError invalid_request when it is neither, or past
 */
export function parseExpiry(text: string, now: number): number {
  const at = /^\d{4}-\d{2}-\d{2}/.test(text) ? Date.parse(text) : now + parseDuration(text)
  if (Number.isNaN(at)) {
    throw new MusterError('invalid_request', `Cannot read the time "${text}": write 24h, 30d or 2027-01-31`)
  }
  if (at <= now) throw new MusterError('invalid_request', `Cannot expire at "${text}": that time is past`)
  return at
}

/** The largest unit, and the next one while it matters: `29d`, `3d 4h`, `14m`, `1.2 s`, `850 ms`. */
export function formatDuration(ms: number): string {
  if (ms < UNITS.s) return `${Math.round(ms)} ms`
  if (ms < 10 * UNITS.s) return `${(ms / UNITS.s).toFixed(1)} s`
  if (ms < 2 * UNITS.m) return `${Math.round(ms / UNITS.s)} s`
  const rounded = Math.round(ms / UNITS.m) * UNITS.m
  const [days, hours, minutes] = [
    Math.floor(rounded / UNITS.d),
    Math.floor((rounded % UNITS.d) / UNITS.h),
    Math.floor((rounded % UNITS.h) / UNITS.m),
  ]
  if (days > 0) return hours > 0 && days < 10 ? `${days}d ${hours}h` : `${days}d`
  if (hours > 0) return minutes > 0 ? `${hours}h ${minutes}m` : `${hours}h`
  return `${minutes}m`
}

/** `in 3h`, `5m ago`, `-` for null. */
export function formatWhen(at: number | null, now: number): string {
  if (at === null) return '-'
  return at > now ? `in ${formatDuration(at - now)}` : `${formatDuration(now - at)} ago`
}
