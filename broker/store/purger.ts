import { setTimeout as delay } from 'node:timers/promises'
import type { Cursor } from '#shared/feed'
import type { Log } from '#shared/log'
import { isGone } from '../mqtt/mqtt-client.ts'
import { isDue, latest, type Marks, type OrderReader } from '../replica/purge-rows.ts'
import { forgetRetained, PURGED, purgeClients } from './purge.ts'
import { findOrdered, named } from './purge-aim.ts'
import { type Batch, PurgeBatches } from './purge-batches.ts'
import type { RetainedOf } from './retained.ts'
import type { SessionStore } from './session-store.ts'

/** Times in ms. */
export interface PurgeLimits {
  readonly retryFirstMs: number
  readonly retryMostMs: number
}

export const PURGE_LIMITS = Object.freeze({ retryFirstMs: 1_000, retryMostMs: 60_000 }) satisfies PurgeLimits

export interface PurgerDeps {
  readonly store: SessionStore
  /** What the registry has ordered; the replica. */
  readonly replica: { cursor(): Cursor | null; readonly orders: OrderReader }
  /** Resolves when nothing is left of the connections that have been ended until now. */
  cleaned(): Promise<void>
  /** Something is done, or cannot be done. */
  changed(): void
  /** From 0 up to 1, for jitter. */
  random(): number
  readonly log: Log
  readonly limits?: PurgeLimits
}

/** What is to be forgotten of an identity. */
interface Aim {
  readonly identity: string
  /** The newest batch with an order on it. */
  readonly batch: number
}

/**
 * Forgets what holds and revocations take: sessions with queues and half-received messages, wills and, where they say
 * so, what is retained. It is one operation: the mark behind it moves when all of it is on disk, so that a crash, or a
 * disk that refuses, leaves it to be done again, at the next start or after a pause.
 *
 * An order takes what the broker had stored when it heard of it, and nothing that came later. A client that is connected
 * and may be, because the hold has ended before this broker heard of it, keeps its session.
 */
export class Purger {
  readonly #deps: PurgerDeps
  readonly #limits: PurgeLimits
  readonly #stopped = new AbortController()
  readonly #batches = new PurgeBatches()
  /**
   * Identities whose sessions have ended without an order: their last certificate was revoked, or they were retired. With
   * those of their clients that have connected since.
   */
  readonly #gone = new Map<string, Set<string>>()
  #isUnread = false
  #pause = new AbortController()
  #running: Promise<void> | null = null
  #rests: (() => void)[] = []
  #failures = 0
  #failed = 0
  #fault: string | null = null

  constructor(deps: PurgerDeps) {
    this.#deps = deps
    this.#limits = deps.limits ?? PURGE_LIMITS
  }

  /**
   * Looks for new orders. What they take is settled before it returns; a connection that they end has to be marked by
   * then.
   */
  ordered(): void {
    const { replica, store, log } = this.#deps
    try {
      const newest = replica.orders.newest()
      this.#isUnread = false
      const from = this.#batches.newest?.to ?? store.purged.all
      const isNews = [...newest].some(([epoch, position]) => isDue({ epoch, position }, from))
      if (!isNews) {
        this.#begin(newest)
        return
      }
      const batch = { from, to: latest(from, newest), upTo: store.retained.newest }
      this.#batches.add(batch, this.#served(from))
      this.#pause.abort() // what it takes is withheld at once, also while the disk refuses something else
      this.#run()
    } catch (error) {
      this.#isUnread = true
      log.error({ err: error }, 'cannot read what is to be forgotten') // the next change looks again, or the next start
    }
  }

  /** Forgets identities without an order. Resolves when that is done, or has to wait for the disk. */
  async forget(identities: readonly string[]): Promise<void> {
    for (const identity of identities) this.#gone.set(identity, new Set())
    this.#run()
    await this.rest()
  }

  /** Resolves when nothing is left to do, or the disk has refused it. */
  rest(): Promise<void> {
    if (this.#running === null || this.#fault !== null) return Promise.resolve()
    return new Promise((resolve) => this.#rests.push(resolve))
  }

  /**
   * Called for a client that connects: forgets what of it is still to be forgotten. What it has from now on is its own.
   * A disk that refuses refuses the new session as well.
   */
  claim(clientId: string, identity: string): void {
    if (!this.isOwed(clientId, identity)) return
    const gone = this.#gone.get(identity)
    const undo = this.#batches.excuse(clientId)
    gone?.add(clientId)
    purgeClients(this.#deps.store, [clientId]).catch(() => {
      undo() // logged by the group
      gone?.delete(clientId)
    })
  }

  /** True while what is stored of a client, its will as well, is still to be forgotten. */
  isOwed(clientId: string, identity: string): boolean {
    if (this.#gone.get(identity)?.has(clientId) === false) return true
    if (this.#batches.count === 0) return false // the replica is not asked at each CONNECT
    const newest = this.#batches.newestOf(this.#deps.replica.orders.on(identity))
    return newest !== undefined && !this.#batches.isExcused(clientId, newest.number)
  }

  /** Up to where everything is forgotten; null before the first snapshot. */
  purged(): Cursor | null {
    const { replica, store } = this.#deps
    const cursor = replica.cursor()
    if (cursor === null || (this.#batches.count === 0 && !this.#isUnread)) return cursor
    return { epoch: cursor.epoch, position: Math.max(0, store.purged.all.get(cursor.epoch) ?? 0) }
  }

  /** Why it does not go on, in a sentence; null while it does, or has nothing to do. */
  fault(): string | null {
    return this.#fault
  }

  /** What waits, in orders that came together and identities, and how often the disk has refused. */
  counts(): { readonly waiting: number; readonly failed: number } {
    return { waiting: this.#batches.count + this.#gone.size, failed: this.#failed }
  }

  async stop(): Promise<void> {
    this.#stopped.abort()
    await this.#running
  }

  /** A store without a mark is one that was empty, or of an earlier version, which has carried out what there was. */
  #begin(newest: Marks): void {
    const { replica, store } = this.#deps
    const [cursor, from] = [replica.cursor(), store.purged.all]
    if (cursor === null || newest.size > 0 || from.size > 0 || this.#batches.count > 0) return
    const to = new Map([[cursor.epoch, cursor.position]])
    this.#batches.add({ from: to, to, upTo: 0 }, []) // from there on, whatever is heard of meanwhile
    this.#run()
  }

  #run(): void {
    this.#running ??= this.#work().finally(() => {
      this.#running = null
      if (this.#hasWork())
        this.#run() // it came when the last look was over, and before this
      else this.#rested()
    })
  }

  #hasWork(): boolean {
    return !this.#stopped.signal.aborted && (this.#batches.count > 0 || this.#gone.size > 0)
  }

  async #work(): Promise<void> {
    const { signal } = this.#stopped
    while (this.#hasWork()) {
      try {
        await this.#deps.cleaned()
        this.#pause = new AbortController()
        const last = this.#batches.newest
        const ordered = await this.#aim()
        await this.#forgetGone()
        await this.#carryOut(ordered)
        if (last !== undefined) await this.#finish(last)
        this.#succeeded()
      } catch (error) {
        this.#refused(error)
        this.#rested()
        const either = AbortSignal.any([signal, this.#pause.signal])
        await delay(this.#pauseMs(), undefined, { signal: either, ref: false }).catch(() => {}) // only the signal rejects it
      }
    }
  }

  #rested(): void {
    const rests = this.#rests
    this.#rests = []
    for (const resolve of rests) resolve()
  }

  #succeeded(): void {
    if (this.#fault !== null) this.#deps.log.info('what holds and revocations take is forgotten again')
    this.#failures = 0
    this.#fault = null
    this.#deps.changed()
  }

  #refused(error: unknown): void {
    const { log, changed } = this.#deps
    if (this.#stopped.signal.aborted) return
    this.#failed += 1
    const reason = error instanceof Error ? error.message : String(error)
    this.#fault = `Cannot forget what holds and revocations take: ${reason}; fix: make room on the disk of sessions.db`
    log[this.#failures === 0 ? 'error' : 'debug'](
      { err: error },
      'cannot forget what holds and revocations take',
    )
    changed()
  }

  /** Rises to a most, with jitter. */
  #pauseMs(): number {
    const { retryFirstMs, retryMostMs } = this.#limits
    const most = Math.min(retryMostMs, retryFirstMs * 2 ** this.#failures++)
    return most * (0.5 + this.#deps.random() / 2)
  }

  /** Whom the orders are on. What they take of what is retained is withheld from now on: the disk may not let it go. */
  async #aim(): Promise<{ aims: Aim[]; retained: RetainedOf }> {
    const { store, replica } = this.#deps
    const { oldest } = this.#batches
    const retained = new Map<string, number>()
    if (oldest === undefined) return { aims: [], retained }
    const { signal } = this.#stopped
    const found = await findOrdered({ store, orders: replica.orders, from: oldest.from, signal })
    const aims = found.map(({ identity, due }) => {
      const batch = this.#batches.newestOf(due.filter((order) => order.retained))
      if (batch !== undefined) retained.set(identity, batch.upTo)
      return { identity, batch: this.#batches.newestOf(due)?.number ?? 0 }
    })
    store.retained.withhold(retained)
    return { aims, retained }
  }

  async #forgetGone(): Promise<void> {
    const gone = [...this.#gone]
    for (let at = 0; at < gone.length; at += PURGED) {
      this.#stopped.signal.throwIfAborted()
      const some = gone.slice(at, at + PURGED)
      const clients = some.flatMap(([identity, back]) => this.#clientsOf(identity, (id) => back.has(id)))
      await purgeClients(this.#deps.store, clients)
      for (const [identity, back] of some) {
        if (this.#gone.get(identity) === back) this.#gone.delete(identity)
      }
    }
  }

  async #carryOut({ aims, retained }: { aims: readonly Aim[]; retained: RetainedOf }): Promise<void> {
    for (let at = 0; at < aims.length; at += PURGED) {
      this.#stopped.signal.throwIfAborted()
      const clients = aims
        .slice(at, at + PURGED)
        .flatMap(({ identity, batch }) =>
          this.#clientsOf(identity, (id) => this.#batches.isExcused(id, batch)),
        )
      await purgeClients(this.#deps.store, clients)
    }
    await forgetRetained(this.#deps.store, retained)
  }

  /** All up to this batch is forgotten. */
  async #finish(batch: Batch): Promise<void> {
    const { purged, retained } = this.#deps.store
    await purged.move(batch.to)
    this.#batches.finish(batch)
    if (this.#batches.count === 0) retained.withhold(null)
  }

  /** Clients that are connected, and on whom those orders may be. */
  #served(from: Marks): string[] {
    const { replica, store } = this.#deps
    const clients = named(replica.orders, from)?.flatMap((id) => [id, ...store.clientsOf(id)])
    return (clients ?? Object.keys(store.broker.clients)).filter((id) => this.#isServed(id))
  }

  #isServed(clientId: string): boolean {
    const client = this.#deps.store.broker.clients[clientId]
    return client !== undefined && !isGone(client)
  }

  #clientsOf(identity: string, isExcused: (clientId: string) => boolean): string[] {
    const all = new Set([identity, ...this.#deps.store.clientsOf(identity)])
    return [...all].filter((id) => !isExcused(id) && !this.#isServed(id))
  }
}
