import { Incoming } from '../mqtt/incoming.ts'
import type { MqttClient } from '../mqtt/mqtt-client.ts'
import type { Absences } from './absences.ts'
import type { CommitGroup } from './commit-group.ts'
import type { Entry } from './queue-entry.ts'
import type { Queues } from './queues.ts'
import type { Session, SessionRows } from './session-rows.ts'
import { type Subscription, Subscriptions } from './subscriptions.ts'

/** Half-received messages of a client over all its connections; in one of them no more than its allowance, which ends there too. */
const MOST_INCOMING = 1_000

/** Sessions that outlive their connections, with all that belongs to them but the will. */
export class StoredSessions {
  readonly subscriptions = new Subscriptions()
  readonly incoming: Incoming
  readonly queues: Queues
  readonly absences: Absences
  /** Sessions that have ended since the start because their clients stayed away. */
  expired = 0
  readonly #rows: SessionRows
  readonly #group: CommitGroup
  readonly #sessions = new Map<string, Session>()
  readonly #byIdentity = new Map<string, Set<string>>()
  /** Sessions that began with the CONNECT that is the newest one of their client. */
  readonly #fresh = new Set<string>()
  /** Sessions that are being written. */
  readonly #opening = new Map<string, Promise<void>>()

  constructor(parts: { rows: SessionRows; group: CommitGroup; queues: Queues; absences: Absences }) {
    this.#rows = parts.rows
    this.#group = parts.group
    this.queues = parts.queues
    this.absences = parts.absences
    this.incoming = new Incoming(parts.rows)
  }

  load(): void {
    for (const session of this.#rows.sessions()) this.#put(session)
    this.absences.load(this.#sessions.keys())
    for (const { client, topic, qos } of this.#rows.subscriptions())
      this.subscriptions.add(client, { topic, qos })
    this.incoming.load()
    this.queues.load()
  }

  get(clientId: string): Session | undefined {
    return this.#sessions.get(clientId)
  }

  all(): Session[] {
    return [...this.#sessions.values()]
  }

  /** One after the other, over many turns of the event loop: what changes meanwhile is followed. */
  each(): IterableIterator<Session> {
    return this.#sessions.values()
  }

  /** The client was there until now; perhaps it has no session. */
  left(clientId: string): void {
    if (this.#sessions.has(clientId)) this.absences.here(clientId)
  }

  get count(): number {
    return this.#sessions.size
  }

  /** Client ids of the sessions of an identity: a service may have several. */
  clientsOf(identity: string): string[] {
    return [...(this.#byIdentity.get(identity) ?? [])]
  }

  /** Notes that the client has a session from now on; {@link opened} says when that is on disk. */
  open({ id, req: { connection } }: MqttClient): void {
    this.absences.here(id)
    const { device: identity, kind, fleet, fingerprint } = connection
    const session: Session = { client: id, identity, kind, fleet, fingerprint }
    const before = this.#sessions.get(id)
    if (before === undefined) this.#fresh.add(id)
    else this.#fresh.delete(id)
    if (before?.fingerprint === fingerprint && before.fleet === fleet) return
    this.#put(session)
    const opening = this.#group.commit(() => this.#rows.putSession(session))
    this.#opening.set(id, opening)
    const ended = () => {
      if (this.#opening.get(id) === opening) this.#opening.delete(id)
    }
    opening.then(ended, () => {
      ended()
      if (this.#sessions.get(id) !== session) return
      if (before !== undefined) return this.#put(before) // as it is on disk
      this.#take(id)
      this.absences.forget(id)
    })
  }

  /** True when the session was there before its client connected. */
  isResumed(clientId: string): boolean {
    return this.#sessions.has(clientId) && !this.#fresh.has(clientId)
  }

  async opened(clientId: string): Promise<void> {
    await this.#opening.get(clientId)
  }

  async subscribe(clientId: string, added: readonly Subscription[]): Promise<void> {
    const copies = added.map((subscription) => ({ ...subscription }))
    await this.#group.commit(
      () => {
        for (const one of copies) this.#rows.putSubscription(clientId, one)
      },
      () => {
        for (const one of copies) this.subscriptions.add(clientId, one)
      },
    )
  }

  async unsubscribe(clientId: string, filters: readonly string[]): Promise<void> {
    await this.#group.commit(
      () => {
        for (const filter of filters) this.#rows.deleteSubscription(clientId, filter)
      },
      () => {
        for (const filter of filters) this.subscriptions.remove(clientId, filter)
      },
    )
  }

  /** Takes messages out of a queue; one that another call is taking out already is left to that one. */
  async drop(clientId: string, entries: readonly Entry[]): Promise<void> {
    const leaving = this.queues.leaving(clientId, entries)
    if (leaving.isEmpty) return
    try {
      await this.#group.commit(leaving.write, leaving.done)
    } catch (error) {
      leaving.takeBack()
      throw error
    }
  }

  /** Begins to take in a message of QoS 2. Of very many that were never released the oldest is forgotten: its client is, too. */
  receive(clientId: string, packet: { readonly messageId: number }): void {
    const oldest = this.incoming.count(clientId) < MOST_INCOMING ? null : this.incoming.oldest(clientId)
    if (oldest !== null) this.forgetIncoming(clientId, oldest).catch(() => {}) // logged by the group
    this.incoming.begin(clientId, packet)
  }

  /** The row of a half-received message, within the transaction of what it was routed to. */
  writeIncoming(clientId: string, messageId: number): void {
    this.#rows.putIncoming(clientId, messageId)
  }

  /** The row of one whose PUBREL has come, within the transaction of this turn. */
  writeReleased(clientId: string, messageId: number): void {
    this.#rows.deleteIncoming(clientId, messageId)
  }

  async forgetIncoming(clientId: string, messageId: number): Promise<void> {
    try {
      await this.#group.commit(
        () => this.#rows.deleteIncoming(clientId, messageId),
        () => this.incoming.remove(clientId, messageId),
      )
    } catch (error) {
      this.incoming.keep(clientId, messageId)
      throw error
    }
  }

  async clearIncoming(clientId: string): Promise<void> {
    if (!this.incoming.hasAny(clientId)) return
    await this.#group.commit(
      () => this.#rows.clearIncoming(clientId),
      () => this.incoming.removeAll(clientId),
    )
  }

  /** Ends a session: subscriptions, queue and half-received messages. Nothing is queued for it from now on. */
  async discard(clientId: string): Promise<void> {
    const session = this.#take(clientId)
    const filters = this.subscriptions.of(clientId)
    this.subscriptions.removeAll(clientId)
    const leaving = this.queues.leaving(clientId, this.queues.entries(clientId))
    const write = () => {
      leaving.write()
      this.#rows.deleteSession(clientId)
    }
    let late: Promise<void> | null = null
    try {
      await this.#group.commit(write, () => {
        this.incoming.removeAll(clientId)
        leaving.done()
        if (!this.#sessions.has(clientId)) this.absences.forget(clientId)
        late = this.#forgetLate(clientId)
      })
    } catch (error) {
      if (session !== undefined) this.#put(session)
      for (const filter of filters) this.subscriptions.add(clientId, filter)
      leaving.takeBack()
      throw error
    }
    await late
  }

  /**
   * What was on its way to the disk when the session ended, and has come there before its end: it is nobody's, also
   * when the client has begun another session meanwhile. Its rows went with the session; messages that are in no queue
   * follow, now or at the next start.
   */
  async #forgetLate(clientId: string): Promise<void> {
    this.subscriptions.removeAll(clientId)
    const leaving = this.queues.leaving(clientId, this.queues.entries(clientId))
    if (leaving.isEmpty) return
    leaving.done()
    await this.#group.commit(leaving.write).catch(() => {}) // logged by the group
  }

  /** True when there is something of this client to discard. */
  hasAnythingOf(clientId: string): boolean {
    return (
      this.#sessions.has(clientId) ||
      this.subscriptions.of(clientId).length > 0 ||
      this.queues.entries(clientId).length > 0 ||
      this.incoming.hasAny(clientId)
    )
  }

  #put(session: Session): void {
    this.#sessions.set(session.client, session)
    const clients = this.#byIdentity.get(session.identity) ?? new Set()
    this.#byIdentity.set(session.identity, clients.add(session.client))
  }

  #take(clientId: string): Session | undefined {
    const session = this.#sessions.get(clientId)
    if (session === undefined) return undefined
    this.#sessions.delete(clientId)
    this.#fresh.delete(clientId)
    const clients = this.#byIdentity.get(session.identity)
    clients?.delete(clientId)
    if (clients?.size === 0) this.#byIdentity.delete(session.identity)
    return session
  }
}
