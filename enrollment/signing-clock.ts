import { isMusterError, MusterError } from '#shared/errors'
import type { Log } from '#shared/log'
import type { Registry } from './registry/registry.ts'

/** Certificates start this long before they are issued, ms: the clocks of devices run late. */
export const BACKDATE_MS = 3_600_000

/**
 * Refuses to sign when the clock is before this version was made, before the newest notBefore that was issued, or so far
 * ahead of everything that is known here that it cannot be right: certificates made under a wrong clock are refused by
 * every device and broker whose clock is right, and cannot be told from forged ones later.
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

/** What is known of the time at start, ms since 1970. */
export interface ClockEvidence {
  readonly newestNotBefore: number
  /** When the newest entry of the audit log was written; null when it does not count. */
  readonly lastEntryAt: number | null
}

export interface SigningClockOptions {
  /**
   * A service that runs writes to its audit log every few days, for its own certificates; one that has done nothing for
   * longer than this has a clock that is ahead, or was switched off, which it cannot tell. Ms; tests live through years.
   */
  readonly mostIdleMs?: number
}

/** Three certificates of its own in a row; a device that was away for so long is lost without grace. */
const MOST_IDLE_MS = 90 * 86_400_000
const FIX = 'fix: set the clock; if it is right, start once with --clock-is-right'

export function openSigningClock(evidence: ClockEvidence, options: SigningClockOptions = {}): SigningClock {
  const { mostIdleMs = MOST_IDLE_MS } = options
  const { lastEntryAt } = evidence
  let newest = evidence.newestNotBefore
  let latest = lastEntryAt
  return {
    check(now) {
      checkMadeBefore(now)
      if (now < newest) throw behind(now, newest)
      if (lastEntryAt !== null && now < lastEntryAt - BACKDATE_MS) {
        throw wrong(now, `the newest entry of the audit log is of ${iso(lastEntryAt)}; ${FIX}`)
      }
      if (latest !== null && now - latest > mostIdleMs) {
        const days = Math.floor((now - latest) / 86_400_000)
        throw wrong(now, `the last that it did here was at ${iso(latest)}, ${days} days before; ${FIX}`)
      }
      latest = Math.max(latest ?? now, now)
    },
    issued(notBefore) {
      newest = Math.max(newest, notBefore)
    },
  }
}

function behind(now: number, newest: number): MusterError {
  const fix = `fix: set the clock; if it was ahead then, wait until ${iso(newest)}, or restore a backup from before`
  return wrong(now, `a certificate was issued for ${iso(newest)}; ${fix}`, { newestNotBefore: newest })
}

function wrong(now: number, butSays: string, evidence: Record<string, number> = {}): MusterError {
  const message = `Cannot sign: the clock says ${iso(now)}, but ${butSays}`
  return new MusterError('clock_wrong', message, { evidence: { now, ...evidence } })
}

function iso(at: number): string {
  return new Date(at).toISOString()
}

/**
 * What the registry can vouch for. Each issuance commits a change within the hour by which its notBefore is backdated,
 * so the newest change bounds them all. Where an operator says that the clock is right, what else was changed counts for
 * nothing, and the certificates of devices are looked at one by one.
 */
export async function clockEvidence(
  registry: Pick<Registry, 'cursor' | 'changesAfter' | 'auditHead' | 'listAudit' | 'newestNotBefore'>,
  { isRight }: { isRight: boolean },
): Promise<ClockEvidence> {
  if (isRight) return { newestNotBefore: await registry.newestNotBefore(), lastEntryAt: null }
  const { position } = await registry.cursor()
  const [newest] = await registry.changesAfter(position - 1, 1)
  const head = await registry.auditHead()
  const [entry] = head === null ? [] : await registry.listAudit(head.sequence - 1, 1)
  return { newestNotBefore: newest ? newest.at - BACKDATE_MS : 0, lastEntryAt: entry?.at ?? null }
}

/**
 * For work that follows from time and cannot be taken back, as pruning and finalising: says whether the clock can be
 * believed, and logs when that changes.
 */
export function watchClock(of: { signingClock: SigningClock; now(): number; log: Log }): () => boolean {
  let isRight = true
  return () => {
    try {
      of.signingClock.check(of.now())
      if (!isRight) of.log.info('the clock can be believed again')
      isRight = true
    } catch (error) {
      if (!isMusterError(error, 'clock_wrong')) throw error
      if (isRight) of.log.error({ err: error }, 'nothing is signed, finalised or pruned under this clock')
      isRight = false
    }
    return isRight
  }
}
