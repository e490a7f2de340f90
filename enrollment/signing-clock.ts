import { MusterError } from '#shared/errors'
import type { Registry } from './registry/registry.ts'

/** Certificates start this long before they are issued, ms: the clocks of devices run late. */
export const BACKDATE_MS = 3_600_000

/**
 * Refuses to sign when the clock is before this version was made, or before the newest notBefore that was issued: certificates made under a wrong
 * clock are refused by every device and broker whose clock is right, and cannot be told from forged ones later.
 */
export interface SigningClock {
  /** @throws MusterError clock_wrong */
  check(now: number): void
  /** Remembers what was issued. */
  issued(notBefore: number): void
}

/** Nothing was ever signed by this version before; raised with every release. */
const MADE_AT = Date.UTC(2026, 9, 1)

/** A clock that is before this program was made is wrong, whatever has been issued. @throws MusterError clock_wrong */
export function checkMadeBefore(now: number): void {
  if (now >= MADE_AT) return
  const [clock, made] = [now, MADE_AT].map((at) => new Date(at).toISOString())
  throw new MusterError(
    'clock_wrong',
    `Cannot sign: the clock says ${clock}, and this version was made after ${made}; fix: set the clock`,
    { evidence: { now, madeAt: MADE_AT } },
  )
}

/** @param floor the newest notBefore known at start, ms */
export function openSigningClock(floor: number): SigningClock {
  let newest = floor
  return {
    check(now) {
      checkMadeBefore(now)
      if (now >= newest) return
      throw new MusterError(
        'clock_wrong',
        `Cannot sign: the clock says ${new Date(now).toISOString()}, but a certificate was issued for ${new Date(newest).toISOString()}; fix: set the clock`,
        { evidence: { now, newestNotBefore: newest } },
      )
    },
    issued(notBefore) {
      newest = Math.max(newest, notBefore)
    },
  }
}

/**
 * The newest notBefore that the registry can vouch for: each issuance commits a change within the hour by which
 * its notBefore is backdated, so the newest change bounds them all.
 */
export async function newestNotBefore(registry: Registry): Promise<number> {
  const { position } = await registry.cursor()
  const [newest] = await registry.changesAfter(position - 1, 1)
  return newest ? newest.at - BACKDATE_MS : 0
}
