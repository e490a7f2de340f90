import type { Duplex } from 'node:stream'
import type { RefusalErrorCode } from '#shared/errors'
import type { DeviceRecord, FleetRecord, Scope } from '#shared/feed'
import { closeSockets } from './closing.ts'
import type { Ending } from './ending.ts'
import { FleetPolicy, Standing } from './judge/decisions.ts'
import { type CompiledPolicy, LivePolicy } from './judge/topic-policy.ts'
import { LIMITS, type Limits } from './limits.ts'
import { type Defaults, defaultsOf } from './store/allowances.ts'

/** One open socket of an identified client, from the decision to let it in until it has closed. */
export type Connection = Described & Standing

interface Described {
  /** Unique within the broker's boot. */
  readonly id: string
  readonly socket: Duplex
  /** The TCP socket below, where closing it costs less than closing everything. */
  readonly wire?: Duplex | undefined
  readonly fingerprint: string
  readonly serial: string
  readonly device: string
  readonly kind: 'device' | 'service'
  readonly batch: string | null
  readonly fleet: string
  readonly issuer: string
  readonly address: string
  readonly openedAt: number
  /** When a decision had closed its descriptor, ms; everything else of it ends after that. */
  closedAt?: number
  /** Why it is about to end, where nothing was decided against it. */
  ending?: Ending
  /** Id of the second factor that it has proved; null when none was asked for, not set before CONNECT. */
  proved?: string | null
  /** Its TLS session is one from before. */
  readonly isResumed?: boolean
}

/** A connection that nothing has been decided against. */
export function openConnection({ policy, ...described }: Described & Pick<Standing, 'policy'>): Connection {
  return Object.assign(new Standing(policy), described)
}

export type Selector =
  | Scope
  | { readonly kind: 'certificate'; readonly id: string }
  | { readonly kind: 'devices'; readonly ids: ReadonlySet<string> }
  | { readonly kind: 'all' }

export interface CloseOptions {
  /** The code that ends the connection, or null when it may stay. Called in the tick of `close`. */
  judge(connection: Connection): RefusalErrorCode | null
  /** Commit time of what is being applied, ms; `closeMs` counts from it. */
  readonly since: number
}

export interface Closed {
  readonly closed: number
  /** From `since` to the socket's `close`, one entry a connection, ms. */
  readonly closeMs: number[]
  /** Devices with a socket that had not closed at the deadline. */
  readonly survivors: string[]
}

/** A device and its fleet, as the replica has them. */
interface Known {
  readonly device: DeviceRecord
  readonly fleet: FleetRecord
}

export interface SessionsOptions {
  now(): number
  /** What its clients may have where no policy says so; {@link LIMITS} when it is left out. */
  readonly limits?: Limits
  /** As many sockets are closed at once; of more the descriptors first, and the rest as many in a turn at most. */
  readonly sliceSize?: number
  /** How long `close` waits for the sockets, ms. */
  readonly deadlineMs?: number
  /** The open connections of the fleet have its new policy; subscriptions and queues do not follow by themselves. */
  policyChanged?(fleet: string): void
  /** A socket that a decision ended has closed, so many ms after the decision was committed. */
  closed?(afterMs: number): void
}

/** Each costs a third of a millisecond. */
const SLICE_SIZE = 64
const DEADLINE_MS = 5_000

const KEYS = ['fingerprint', 'device', 'batch', 'fleet', 'issuer'] as const
type Key = (typeof KEYS)[number]
const KEY_OF = {
  certificate: 'fingerprint',
  device: 'device',
  batch: 'batch',
  fleet: 'fleet',
  issuer: 'issuer',
} as const

/** Connections of one key. Most certificates and devices have one, for which a Set would be larger than the connection. */
type Found = Connection | Set<Connection>

/** Every open connection of an identified client, found by certificate, device, batch, fleet and issuer. */
export class Sessions {
  readonly #now: () => number
  readonly #defaults: Defaults
  readonly #sliceSize: number
  readonly #deadlineMs: number
  readonly #policyChanged: (fleet: string) => void
  readonly #closed: (afterMs: number) => void
  readonly #all = new Set<Connection>()
  readonly #counted = new WeakSet<Connection>()
  readonly #policies = new Map<string, FleetPolicy>()
  /** Closings with descriptors that are still open. */
  #closing = 0
  /** Closings of which anything is left. */
  readonly #cleaning = new Set<Promise<void>>()
  readonly #by: Record<Key, Map<string, Found>> = {
    fingerprint: new Map(),
    device: new Map(),
    batch: new Map(),
    fleet: new Map(),
    issuer: new Map(),
  }

  constructor(options: SessionsOptions) {
    this.#now = options.now
    this.#defaults = defaultsOf(options.limits ?? LIMITS)
    this.#sliceSize = options.sliceSize ?? SLICE_SIZE
    this.#deadlineMs = options.deadlineMs ?? DEADLINE_MS
    this.#policyChanged = (fleet) => options.policyChanged?.(fleet)
    this.#closed = (afterMs) => options.closed?.(afterMs)
  }

  add(connection: Connection): void {
    this.#all.add(connection)
    for (const key of KEYS) {
      const value = connection[key]
      if (value === null) continue
      const found = this.#by[key].get(value)
      if (found === undefined) this.#by[key].set(value, connection)
      else if (found instanceof Set) found.add(connection)
      else this.#by[key].set(value, new Set([found, connection]))
    }
  }

  remove(connection: Connection): void {
    if (!this.#all.delete(connection)) return
    for (const key of KEYS) {
      const value = connection[key]
      if (value === null) continue
      const found = this.#by[key].get(value)
      if (found instanceof Set) found.delete(connection)
      if (found === connection || (found instanceof Set && found.size === 0)) this.#by[key].delete(value)
    }
  }

  /** Open sockets of identified clients. */
  count(): number {
    return this.#all.size
  }

  /** True while descriptors wait for the turn in which they are closed. */
  isClosing(): boolean {
    return this.#closing > 0
  }

  /** Resolves when nothing is left of the sessions that have been closed until now. */
  async cleaned(): Promise<void> {
    await Promise.all(this.#cleaning)
  }

  /** The connections that a selector names; costs as many steps as it finds. */
  select(selector: Selector): Connection[] {
    switch (selector.kind) {
      case 'all':
        return [...this.#all]
      case 'devices':
        return this.#ofDevices(selector.ids)
      case 'plan':
        throw new RangeError('The members of a plan are not known here: select by devices')
      default:
        return each(this.#by[KEY_OF[selector.kind]].get(selector.id))
    }
  }

  /** What the client may do; it follows the policy of its fleet. */
  policyFor({ device, fleet }: Known, address: string): CompiledPolicy {
    const policies = { policy: fleet.policy, own: device.policy, defaults: this.#defaults[device.kind] }
    return new LivePolicy(this.#policyOf(fleet.id), { policies, client: { ...device, address } })
  }

  /** Every connection of the fleet is judged by its new policy from now on; one step, however many there are. */
  setPolicy(fleet: FleetRecord): void {
    this.#policyOf(fleet.id).policy = fleet.policy
    this.#policyChanged(fleet.id)
  }

  /** The connections of the device are judged by its new attributes and its new policy from now on. */
  setDevice(known: Known): void {
    for (const connection of this.select({ kind: 'device', id: known.device.id })) {
      connection.policy = this.policyFor(known, connection.address)
    }
  }

  #policyOf(fleet: string): FleetPolicy {
    const known = this.#policies.get(fleet)
    if (known !== undefined) return known
    const made = new FleetPolicy()
    this.#policies.set(fleet, made)
    return made
  }

  /**
   * Marks the selected connections for which `judge` names a code, all in this tick, then closes their sockets, as
   * many in each turn of the event loop as fit in it. Resolves when all have closed, or at the deadline with the survivors.
   */
  async close(selector: Selector, options: CloseOptions): Promise<Closed> {
    const marked: Connection[] = []
    for (const connection of this.select(selector)) {
      const code = options.judge(connection)
      if (code === null) continue
      connection.refused ??= code
      marked.push(connection)
    }
    const open = new Set(marked)
    const closeMs: number[] = []
    const allClosed = Promise.withResolvers<void>()
    const closed = (connection: Connection) => {
      open.delete(connection)
      this.remove(connection)
      connection.closedAt ??= this.#now()
      const afterMs = Math.max(0, connection.closedAt - options.since)
      closeMs.push(afterMs)
      if (!this.#counted.has(connection)) this.#closed(afterMs) // two decisions may have ended it
      this.#counted.add(connection)
      if (open.size === 0) allClosed.resolve()
    }
    for (const connection of marked) onceClosed(connection, closed)
    if (open.size === 0) allClosed.resolve()
    const deadline = setTimeout(allClosed.resolve, this.#deadlineMs)
    this.#closeSockets(marked)
    await allClosed.promise
    clearTimeout(deadline)
    return {
      closed: closeMs.length,
      closeMs: [...closeMs],
      survivors: [...new Set([...open].map(({ device }) => device))],
    }
  }

  #closeSockets(connections: readonly Connection[]): void {
    const { promise, resolve } = Promise.withResolvers<void>()
    this.#cleaning.add(promise)
    this.#closing++
    closeSockets(connections, {
      now: this.#now,
      few: this.#sliceSize,
      cutOff: () => this.#closing--,
      done: () => {
        this.#cleaning.delete(promise)
        resolve()
      },
    })
  }

  #ofDevices(ids: ReadonlySet<string>): Connection[] {
    const index = this.#by.device
    const known = ids.size <= index.size ? [...ids] : [...index.keys()].filter((id) => ids.has(id))
    return known.flatMap((id) => each(index.get(id)))
  }
}

function each(found: Found | undefined): Connection[] {
  if (found === undefined) return []
  return found instanceof Set ? [...found] : [found]
}

function onceClosed(connection: Connection, closed: (connection: Connection) => void): void {
  const socket = connection.wire ?? connection.socket
  if (socket.closed) closed(connection)
  else socket.once('close', () => closed(connection))
}
