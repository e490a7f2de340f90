import type { Limits } from '../limits.ts'
import { addressGroup } from './address-group.ts'
import { TokenBuckets } from './token-buckets.ts'

export type BudgetLimits = Pick<
  Limits,
  'connections' | 'connectionsPerAddress' | 'halfOpenPerAddress' | 'connectsPerMinute' | 'refusedPerMinute'
>

/** A place that an open socket has, from accept to close. */
export interface Place {
  readonly group: string
  /** Its client has not been let in yet. */
  isHalfOpen: boolean
}

interface Taken {
  open: number
  halfOpen: number
}

/** Limits of places, by the name that the refusal gives. */
export type PlaceLimit = 'connections' | 'connectionsPerAddress' | 'halfOpenPerAddress'

const MINUTE_S = 60
/** What a refusal costs the address when the certificate has had its attempts: whoever hammers pays for it. */
const HAMMERING_COST = 10

/**
 * What one address and one certificate may have of the broker: places, attempts to connect, refusals. An address that
 * is over its refusals begins no handshake until it has some again; its clients that are let in cost it nothing, so
 * that a factory behind one address is not shut out by some of its devices.
 */
export class Budgets {
  readonly #limits: BudgetLimits
  readonly #taken = new Map<string, Taken>()
  readonly #attempts: TokenBuckets
  readonly #refusals: TokenBuckets
  readonly #told = new TokenBuckets({ burst: 1, perSecond: 1 / MINUTE_S })
  #open = 0

  constructor(limits: BudgetLimits) {
    this.#limits = limits
    const { connectsPerMinute, refusedPerMinute } = limits
    this.#attempts = new TokenBuckets({ burst: connectsPerMinute, perSecond: connectsPerMinute / MINUTE_S })
    this.#refusals = new TokenBuckets({ burst: refusedPerMinute, perSecond: refusedPerMinute / MINUTE_S })
  }

  /** A place for a socket from this address, or the limit that it would break. */
  take(address: string): Place | PlaceLimit {
    const group = addressGroup(address)
    const { connections, connectionsPerAddress, halfOpenPerAddress } = this.#limits
    const taken = this.#taken.get(group) ?? { open: 0, halfOpen: 0 }
    if (this.#open >= connections) return 'connections'
    if (taken.open >= connectionsPerAddress) return 'connectionsPerAddress'
    if (taken.halfOpen >= halfOpenPerAddress) return 'halfOpenPerAddress'
    this.#taken.set(group, taken)
    this.#open++
    taken.open++
    taken.halfOpen++
    return { group, isHalfOpen: true }
  }

  /** The client has been let in. */
  admitted(place: Place): void {
    if (!place.isHalfOpen) return
    place.isHalfOpen = false
    const taken = this.#taken.get(place.group)
    if (taken !== undefined) taken.halfOpen--
  }

  /** The socket has closed; once. */
  free(place: Place): void {
    const taken = this.#taken.get(place.group)
    if (taken === undefined) return
    this.#open--
    taken.open--
    if (place.isHalfOpen) taken.halfOpen--
    if (taken.open === 0) this.#taken.delete(place.group)
  }

  /** False when the certificate has had its attempts of this minute; `times` is its allowance. */
  mayAttempt(fingerprint: string, { now, times }: { now: number; times: number }): boolean {
    return this.#attempts.take(fingerprint, { now, times })
  }

  /** Seconds until a certificate that was refused has another attempt. */
  get retryAfterS(): number {
    return Math.ceil(MINUTE_S / Math.max(1, this.#limits.connectsPerMinute))
  }

  /** A handshake from the address came to nothing. */
  refused(address: string, { now, isHammering }: { now: number; isHammering: boolean }): void {
    this.#refusals.take(addressGroup(address), { now, cost: isHammering ? HAMMERING_COST : 1 })
  }

  /** How long nobody from these addresses may begin a handshake, ms. */
  bannedMs(group: string, now: number): number {
    return this.#refusals.waitMs(group, now)
  }

  /** True once a minute: what would be said again and again is said then. */
  mayTell(subject: string, now: number): boolean {
    return this.#told.take(subject, { now })
  }

  /** Sockets that have a place, of one address or of all. */
  open(group?: string): number {
    return group === undefined ? this.#open : (this.#taken.get(group)?.open ?? 0)
  }
}
