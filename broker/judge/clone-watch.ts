import { addressGroup } from '../door/address-group.ts'

/** One client took the identity of another that was still connected. */
export interface Takeover {
  readonly clientId: string
  /** Of the one that lost it, and of the one that has it now. */
  readonly from: string
  readonly to: string
  /** Somebody answered when the old connection was closed: it had not just lost its network. */
  readonly wasAlive: boolean
  readonly now: number
}

/** So many takeovers between different addresses, so close together, are an alarm, ms. */
const TAKEOVERS = 3
export const WITHIN_MS = 60_000
/** So many of them from somebody who was still there: a device whose network flaps takes over from nobody. */
const ALIVE = 2
/** Clients beyond this number are looked through for those of which nothing was heard for a while. */
const PRUNE_ABOVE = 1_024

interface Seen {
  readonly at: number
  readonly wasAlive: boolean
}

/** Notices when two addresses take one identity from each other: the key is in two places. */
export class CloneWatch {
  readonly #seen = new Map<string, Seen[]>()
  readonly #alarmedAt = new Map<string, number>()
  #pruneAbove = PRUNE_ABOVE

  /** How many takeovers there were, when that is an alarm; at most one a minute for each client id. */
  saw({ clientId, from, to, wasAlive, now }: Takeover): number | null {
    if (addressGroup(from) === addressGroup(to)) return null
    if (this.#seen.size >= this.#pruneAbove) this.#prune(now)
    const recent = [...this.#recent(clientId, now), { at: now, wasAlive }]
    this.#seen.set(clientId, recent)
    const isAlarm = recent.length >= TAKEOVERS && recent.filter((one) => one.wasAlive).length >= ALIVE
    const alarmedAt = this.#alarmedAt.get(clientId) ?? Number.NEGATIVE_INFINITY
    if (!isAlarm || now - alarmedAt < WITHIN_MS) return null
    this.#alarmedAt.set(clientId, now)
    return recent.length
  }

  #recent(clientId: string, now: number): readonly Seen[] {
    const seen = this.#seen.get(clientId) ?? []
    return seen.filter(({ at }) => now - at < WITHIN_MS)
  }

  #prune(now: number): void {
    for (const clientId of this.#seen.keys()) {
      if (this.#recent(clientId, now).length === 0) this.#seen.delete(clientId)
    }
    for (const [clientId, at] of this.#alarmedAt) {
      if (now - at >= WITHIN_MS) this.#alarmedAt.delete(clientId)
    }
    // A fleet may change its addresses within a minute: not all of it is looked through for each of its devices.
    this.#pruneAbove = Math.max(PRUNE_ABOVE, this.#seen.size * 2)
  }
}
