import { setTimeout as delay } from 'node:timers/promises'
import type { Cursor } from '#shared/feed'
import type { Log } from '#shared/log'
import { isGone } from '../mqtt/mqtt-client.ts'
import { isDue, type Marks, type OrderReader } from '../replica/purge-rows.ts'
import { forgetRetained, PURGED, purgeClients } from './purge.ts'
import { findOrdered, named } from './purge-aim.ts'
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

/** Orders that came together. */
interface Batch {
  /** Those up to here are of the batch before. */
  readonly from: Marks
  to: Marks
  /** What is retained later than this is not theirs. */
  upTo: number
  readonly excused: Excused
}

/** Clients that were connected then, or have since, without what was left of them: what they have now is theirs. */
type Excused = Set<string>

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
  #batches: Batch[] = []
  /** Identities whose sessions have ended without an order: their last certificate was revoked, or they were retired. */
  readonly #gone = new Map<string, Excused>()
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
      const from = this.#batches.at(-1)?.to ?? store.purged.all
      const isNews = [...newest].some(([epoch, position]) => isDue({ epoch, position }, from))
      if (!isNews) {
        this.#begin(newest)
        return
      }
      const waiting = this.#batches[1] ?? { from, to: newest, upTo: 0, excused: new Set() }
      if (!this.#batches.includes(waiting)) this.#batches.push(waiting)
      for (const clientId of this.#served(from)) waiting.excused.add(clientId)
      waiting.to = newest
      waiting.upTo = store.retained.newest
      this.#run()
    } catch (error) {
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
    const open = this.#owing(clientId, identity)
    if (open.length === 0) return
    for (const excused of open) excused.add(clientId)
    purgeClients(this.#deps.store, [clientId]).catch(() => {
      for (const excused of open) excused.delete(clientId) // logged by the group
    })
  }

  /** True while what is stored of a client, its will as well, is still to be forgotten. */
  isOwed(clientId: string, identity: string): boolean {
    return this.#owing(clientId, identity).length > 0
  }

  /** Those from whom the client is not excused. */
  #owing(clientId: string, identity: string): Excused[] {
    const owed = this.#batches.filter((batch) => this.#isOn(identity, batch)).map(({ excused }) => excused)
    const gone = this.#gone.get(identity)
    if (gone !== undefined) owed.push(gone)
    return owed.filter((excused) => !excused.has(clientId))
  }

  /** Up to where everything is forgotten; null before the first snapshot. */
  purged(): Cursor | null {
    const { replica, store } = this.#deps
    const cursor = replica.cursor()
    if (cursor === null || this.#batches.length === 0) return cursor
    return { epoch: cursor.epoch, position: Math.max(0, store.purged.all.get(cursor.epoch) ?? 0) }
  }

  /** Why it does not go on, in a sentence; null while it does, or has nothing to do. */
  fault(): string | null {
    return this.#fault
  }

  /** What waits, in orders that came together and identities, and how often the disk has refused. */
  counts(): { readonly waiting: number; readonly failed: number } {
    return { waiting: this.#batches.length + this.#gone.size, failed: this.#failed }
  }

  async stop(): Promise<void> {
    this.#stopped.abort()
    await this.#running
  }

  #isOn(identity: string, { from }: Batch): boolean {
    return this.#deps.replica.orders.on(identity).some((order) => isDue(order, from))
  }

  /** A store without a mark is one that was empty, or of an earlier version, which has carried out what there was. */
  #begin(newest: Marks): void {
    const { replica, store } = this.#deps
    const [cursor, from] = [replica.cursor(), store.purged.all]
    if (cursor === null || newest.size > 0 || from.size > 0 || this.#batches.length > 0) return
    const to = new Map([[cursor.epoch, cursor.position]])
    this.#batches.push({ from, to, upTo: 0, excused: new Set() })
    this.#run()
  }

  #run(): void {
    this.#running ??= this.#work().finally(() => {
      this.#running = null
      this.#rested()
    })
  }

  async #work(): Promise<void> {
    const { signal } = this.#stopped
    while (!signal.aborted && (this.#batches.length > 0 || this.#gone.size > 0)) {
      try {
        await this.#deps.cleaned()
        await this.#forgetGone()
        const [batch] = this.#batches
        if (batch !== undefined) await this.#carryOut(batch)
        this.#succeeded()
      } catch (error) {
        this.#refused(error)
        this.#rested()
        await delay(this.#pauseMs(), undefined, { signal, ref: false }).catch(() => {}) // only the signal rejects it
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

  async #forgetGone(): Promise<void> {
    const gone = [...this.#gone]
    for (let at = 0; at < gone.length; at += PURGED) {
      const some = gone.slice(at, at + PURGED)
      const clients = some.flatMap(([identity, excused]) => this.#clientsOf([identity], excused))
      await purgeClients(this.#deps.store, clients)
      for (const [identity, excused] of some) {
        if (this.#gone.get(identity) === excused) this.#gone.delete(identity)
      }
    }
  }

  async #carryOut(batch: Batch): Promise<void> {
    const { store } = this.#deps
    const { from, to, upTo } = batch
    const { ordered, identities } = await findOrdered({
      store,
      orders: this.#deps.replica.orders,
      from,
      signal: this.#stopped.signal,
    })
    const retained = { identities, upTo }
    store.retained.withhold(retained) // nobody reads what the disk will not let go
    for (let at = 0; at < ordered.length; at += PURGED) {
      await purgeClients(store, this.#clientsOf(ordered.slice(at, at + PURGED), batch.excused))
    }
    await forgetRetained(store, retained)
    await store.purged.move(to)
    store.retained.withhold(null)
    this.#batches.shift()
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

  #clientsOf(identities: readonly string[], excused: ReadonlySet<string>): string[] {
    const { store } = this.#deps
    const all = identities.flatMap((identity) => [identity, ...store.clientsOf(identity)])
    return [...new Set(all)].filter((id) => !excused.has(id) && !this.#isServed(id))
  }
}
