/** Certificates begin an hour in the past, because device clocks are wrong, ms. */
export const BACKDATE_MS = 3_600_000

const wholeSeconds = (ms: number) => Math.floor(ms / 1000) * 1000

/** Both ends in whole seconds, as X.509 and CRLs write them, and no later than the issuer's (RFC 5280 section 4.1.2.5). */
export function validity(of: { now: number; lifetimeMs: number; issuerNotAfter: number }) {
  return {
    notBefore: wholeSeconds(of.now - BACKDATE_MS),
    notAfter: wholeSeconds(Math.min(of.now + of.lifetimeMs, of.issuerNotAfter)),
  }
}

/** `notAfter` names the last valid second, not the first invalid one (RFC 5280 section 4.1.2.5). */
export function isExpired(notAfter: number, now: number): boolean {
  return now >= notAfter + 1000
}
