import { MusterError } from '#shared/errors'
import type { Registry } from './registry/registry.ts'

/** Certificates start this long before they are issued, ms: the clocks of devices run late. */
export const BACKDATE_MS = 3_600_000

/**
 * Refuses to sign when the clock is before the newest notBefore that was issued: certificates made under a wrong
 * clock are refused by every device and broker whose clock is right, and cannot be told from forged ones later.
 */
export interface SigningClock {
  /** @throws MusterError clock_wrong */
  check(now: number): void
  /** Remembers what was issued. */
  issued(notBefore: number): void
}

/** @param floor the newest notBefore known at start, ms */
export function openSigningClock(floor: number): SigningClock {
  let newest = floor
  return {
    check(now) {
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
