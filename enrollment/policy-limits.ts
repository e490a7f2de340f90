import type { LimitChange, LimitView } from '#shared/api'
import { type Allowance, CAP_NAMES, type CapName, nameOfCap, UNLIMITED_AT_ZERO } from '#shared/policy/caps'
import { levelsOf } from '#shared/topic-syntax'

/** What a client may have; where no policy says so, the default that a broker has unless its operator says otherwise. */
export function limitsOf({ caps, from }: Allowance): LimitView[] {
  return CAP_NAMES.map((limit) => ({ limit, value: caps[limit], from: from[limit] ?? null }))
}

/** Why a broker would not grant a filter of so many levels, as far as policies say so. */
export function tooDeep({ caps, from }: Allowance, filter: string): string | null {
  const origin = from.filterLevels
  const levels = levelsOf(filter)
  return origin === undefined || levels <= caps.filterLevels
    ? null
    : `it has ${levels} levels, and ${nameOfCap(origin, 'filterLevels')} allows ${caps.filterLevels}`
}

export type LimitTally = Map<string, LimitChange>

interface Compared {
  readonly isOnline: boolean
  readonly before: Allowance
  readonly after: Allowance
}

/** Adds what would be another limit for one device; true when one of them is lower than it is now. */
export function limitChangesOf(tally: LimitTally, { isOnline, before, after }: Compared): boolean {
  let isLower = false
  for (const limit of CAP_NAMES) {
    const [now, then] = [saidOf(before, limit), saidOf(after, limit)]
    if (now === then) continue
    isLower ||= widthOf(after, limit) < widthOf(before, limit)
    const key = `${limit} ${now} ${then}`
    const { devices, online } = tally.get(key) ?? { devices: 0, online: 0 }
    const counted = { devices: devices + 1, online: online + (isOnline ? 1 : 0) }
    tally.set(key, { limit, before: now, after: then, ...counted })
  }
  return isLower
}

/** In the order in which limits are always listed. */
export function changesIn(tally: LimitTally): LimitChange[] {
  return CAP_NAMES.flatMap((name) => [...tally.values()].filter(({ limit }) => limit === name))
}

/** Null where no policy says anything. */
function saidOf({ caps, from }: Allowance, limit: CapName): number | null {
  return from[limit] === undefined ? null : caps[limit]
}

function widthOf({ caps }: Allowance, limit: CapName): number {
  return UNLIMITED_AT_ZERO.includes(limit) && caps[limit] === 0 ? Number.POSITIVE_INFINITY : caps[limit]
}
