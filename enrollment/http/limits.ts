import { isIPv6 } from 'node:net'
import { RateLimiterMemory, RateLimiterRes } from 'rate-limiter-flexible'
import { MusterError } from '#shared/errors'
import { parseToken } from '#shared/token'

/** Requests that failed, per minute. Those that succeed are never counted: factories share one address. */
const PER_MINUTE = {
  /** Secrets that nobody issued, from one address. */
  guesses: 30,
  /** Failures with one token that does exist, from one address. */
  failures: 300,
  /** Refusals that are written to the registry, of one device or of all strangers at one address. */
  records: 300,
} as const
const WINDOW_S = 60

export interface Limits {
  /**
   * Finds what a secret stands for; guesses count against the address, and when there were too many of them the
   * next one is told to wait. A secret that exists is found all the same, so that nobody can lock out his neighbours.
   * @throws MusterError token_unknown, rate
   */
  resolve<Found>(guess: {
    text: string
    address: string
    find(hash: string): Promise<Found | null>
  }): Promise<Found>
  /** Counts a secret that cannot exist against the address. @throws MusterError token_unknown, rate */
  unknown(address: string): Promise<never>
  /** @throws MusterError rate when the key has failed too often */
  check(key: string, address: string): Promise<void>
  failed(key: string): Promise<void>
  /** Whether there is room for one more refusal of this device, or of strangers at this address. */
  mayRecord(who: { device: string } | { address: string }): Promise<boolean>
}

export function createLimits(): Limits {
  const limiter = (points: number) => new RateLimiterMemory({ points, duration: WINDOW_S })
  const guesses = limiter(PER_MINUTE.guesses)
  const failures = limiter(PER_MINUTE.failures)
  const records = limiter(PER_MINUTE.records)
  const unknown = async (address: string): Promise<never> => {
    const waitMs = await consume(guesses, network(address))
    if (waitMs !== null) throw tooMany(address, waitMs)
    throw new MusterError('token_unknown', 'Cannot use the token: nobody issued it', {
      evidence: { address },
    })
  }
  return {
    unknown,
    async resolve({ text, address, find }) {
      const parsed = parseToken(text)
      return (parsed && (await find(parsed.hash))) ?? unknown(address)
    },
    async check(key, address) {
      const used = await failures.get(key)
      if (used && used.consumedPoints >= PER_MINUTE.failures) throw tooMany(address, used.msBeforeNext)
    },
    async failed(key) {
      await consume(failures, key)
    },
    async mayRecord(who) {
      const key = 'device' in who ? `device ${who.device}` : network(who.address)
      return (await consume(records, key)) === null
    },
  }
}

/** Null, or how long to wait when there is nothing left, ms. */
async function consume(limiter: RateLimiterMemory, key: string): Promise<number | null> {
  try {
    await limiter.consume(key)
    return null
  } catch (rejection) {
    if (rejection instanceof RateLimiterRes) return rejection.msBeforeNext
    throw rejection
  }
}

function tooMany(address: string, waitMs: number): MusterError {
  const retryAfterS = Math.max(1, Math.ceil(waitMs / 1000))
  return new MusterError('rate', `Cannot answer "${address}" now: too many of its requests failed`, {
    evidence: { address, retryAfterS },
  })
}

/** One subscriber of IPv6 has 2^64 addresses: they count as one. An IPv4 address in IPv6 form (`::ffff:…`) is itself. */
function network(address: string): string {
  if (!isIPv6(address) || address.includes('.')) return address
  const [before = '', after = ''] = address.split('::')
  const [left, right] = [groupsOf(before), groupsOf(after)]
  const zeros = Array.from({ length: 8 - left.length - right.length }, () => '0') // what `::` stands for
  return [...left, ...zeros, ...right].slice(0, 4).join(':')
}

function groupsOf(text: string): string[] {
  return text === '' ? [] : text.split(':')
}
