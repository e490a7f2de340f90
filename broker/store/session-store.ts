import { Readable } from 'node:stream'
import type { Allowance } from '#shared/policy/caps'
import type { Limits } from '../limits.ts'
import { cutOff, identityOf, isGone, type MqttClient, type Will } from '../mqtt/mqtt-client.ts'
import { paced } from '../mqtt/paced.ts'
import { Wills } from '../mqtt/wills.ts'
import type { Absences } from './absences.ts'
import { Allowances, defaultsOf } from './allowances.ts'
import type { CommitGroup } from './commit-group.ts'
import { isClient, type Owner } from './owner.ts'
import { PurgeMarks } from './purge-marks.ts'
import {
  dropAnswered,
  type Identified,
  type QueueContractDeps,
  type Update,
  updateEntry,
} from './queue-contract.ts'
import { asPacket, type Entry } from './queue-entry.ts'
import type { QueueRows } from './queue-rows.ts'
import { type Parcel, Queues } from './queues.ts'
import { Retained, type RetainedPacket } from './retained.ts'
import type { SessionRows } from './session-rows.ts'
import { StoredSessions } from './stored-sessions.ts'
import type { Subscriber, Subscription } from './subscriptions.ts'

/** What the store needs of the broker that it serves. */
interface Clients {
  readonly id: string
  readonly clients: Readonly<Record<string, MqttClient>>
}

export interface StoreParts {
  readonly rows: SessionRows
  readonly queueRows: QueueRows
  readonly group: CommitGroup
  readonly limits: Limits
  readonly absences: Absences
  /** Closes the database. */
  close(): void
}

/**
 * Stands for a session without subscriptions when it is taken up again: Aedes says "session present" only of those
 * that have some. It is never granted.
 */
export const NO_SUBSCRIPTION: Subscription = Object.freeze({ topic: '$session', qos: 0 })

/**
 * What Aedes calls its persistence: sessions, queues, retained messages and wills, on disk before anybody hears that
 * they are kept. Checked against the contract suite of aedes-persistence 11.0.0.
 */
export class SessionStore {
  readonly group: CommitGroup
  readonly sessions: StoredSessions
  readonly retained: Retained
  readonly limits: Limits
  readonly allowances: Allowances
  /** Told when a client has answered for a message of its queue. */
  answered: (clientId: string) => void = () => {}
  readonly #parts: StoreParts
  readonly #contract: QueueContractDeps
  readonly wills: Wills
  readonly purged: PurgeMarks
  /** What has been granted last, and is about to be stored. */
  #granted: Subscription | null = null
  #broker: Clients = { id: '', clients: {} }
  #subscriber: MqttClient | null = null

  constructor(parts: StoreParts) {
    const { rows, group, limits, queueRows, absences } = parts
    this.#parts = parts
    this.group = group
    this.limits = limits
    this.allowances = new Allowances(defaultsOf(limits))
    const queues = new Queues(queueRows, { limits, allowance: (clientId) => this.allowance(clientId) })
    this.sessions = new StoredSessions({ rows, group, queues, absences })
    this.#contract = { queueRows, group, sessions: this.sessions }
    this.retained = new Retained(rows, limits)
    this.wills = new Wills(rows, group)
    this.purged = new PurgeMarks(rows, group)
    this.purged.load()
    this.sessions.load()
    this.retained.load()
    this.wills.load()
  }

  async setup(broker: Clients): Promise<void> {
    this.#broker = broker
  }

  get broker(): Clients {
    return this.#broker
  }

  /** What the client may have by the policies of now, connected or not. */
  allowance(clientId: string): Allowance {
    return this.allowances.of(this.sessions.get(clientId) ?? { identity: identityOf(clientId) })
  }

  /** Notes that a subscription has been granted; others are not stored. Aedes stores it in the same turn. */
  grant(subscription: Subscription): void {
    this.#granted = subscription
  }

  /** Says whose retained messages are asked for next, before this turn is over: Aedes does not. */
  serve(client: MqttClient): void {
    this.#subscriber = client
    queueMicrotask(() => {
      this.#subscriber = null
    })
  }

  async addSubscriptions(client: Owner, subscriptions: readonly Subscription[]): Promise<void> {
    // For each subscription of a packet Aedes asks to store them all.
    const granted = this.#granted
    if (isClient(client)) this.#granted = null
    const added = isClient(client) ? subscriptions.filter((one) => one === granted) : subscriptions
    // A client whose session another one has ended, and that does not know it yet, has none.
    if (isClient(client) && this.sessions.get(client.id) === undefined) return
    if (added.length > 0) await this.sessions.subscribe(client.id, added)
  }

  async removeSubscriptions(client: Owner, filters: readonly string[]): Promise<void> {
    await this.sessions.unsubscribe(client.id, filters) // as many promises as an addition: behind one that came before
  }

  async subscriptionsByClient(client: Owner): Promise<Subscription[]> {
    await this.sessions.opened(client.id)
    const found = this.sessions.subscriptions.of(client.id)
    return found.length === 0 && this.sessions.isResumed(client.id) ? [NO_SUBSCRIPTION] : found
  }

  async subscriptionsByTopic(topic: string): Promise<Subscriber[]> {
    return this.sessions.subscriptions.matching(topic)
  }

  /** For a client that begins with a clean session the one before it ends [MQTT-3.1.2-6]; queue and all. */
  async cleanSubscriptions(client: Owner): Promise<void> {
    if (isClient(client)) return this.discard(client.id)
    const filters = this.sessions.subscriptions.of(client.id).map(({ topic }) => topic)
    if (filters.length > 0) await this.sessions.unsubscribe(client.id, filters)
  }

  async countOffline(): Promise<{ subsCount: number; clientsCount: number }> {
    return this.sessions.subscriptions.counts()
  }

  getClientList(filter: string): Readable {
    return Readable.from(this.sessions.subscriptions.holders(filter))
  }

  storeRetained(packet: RetainedPacket): Promise<void> {
    return this.retained.keep(packet, this.group)
  }

  createRetainedStream(filter: string): Readable {
    return this.createRetainedStreamCombi([filter])
  }

  createRetainedStreamCombi(filters: readonly string[]): Readable {
    const subscriber = this.#subscriber
    this.#subscriber = null
    const packets = this.retained.matching(filters)
    return Readable.from(
      subscriber === null
        ? packets
        : paced(packets, { client: subscriber, limit: this.limits.replayBufferBytes }),
    )
  }

  outgoingEnqueue(subscription: { clientId: string }, packet: Parcel): Promise<void> {
    return this.outgoingEnqueueCombi([subscription], packet)
  }

  /** Of Aedes' contract only: messages are queued by their route, with packet identifiers of their own. */
  async outgoingEnqueueCombi(targets: readonly { clientId: string }[], packet: Parcel): Promise<void> {
    const { queues } = this.sessions
    const parcel = { ...packet, isUnnumbered: true }
    const clients = new Map(targets.map(({ clientId }) => [clientId, packet.qos]))
    const plan = queues.plan(parcel, clients, () => {})
    if (plan === null) return
    try {
      await this.group.commit(
        () => queues.write(plan, packet.payload),
        () => queues.keep(plan),
      )
    } catch (error) {
      queues.cancel(plan)
      throw error
    }
  }

  /** What waits for a client. One that is connected gets it from its delivery, in order with what comes meanwhile. */
  outgoingStream(client: Owner): Readable {
    const { queues } = this.sessions
    const entries = isClient(client) ? [] : queues.entries(client.id)
    const payloadOf = ({ message }: Entry) => message.payload ?? queues.payloadOf(message)
    return Readable.from(entries.map((entry) => asPacket(entry, payloadOf(entry))))
  }

  outgoingUpdate(client: Owner, packet: Update): Promise<void> {
    return updateEntry(this.#contract, { client, packet })
  }

  async outgoingClearMessageId(client: Owner, { messageId }: Identified): Promise<object | undefined> {
    const found = await dropAnswered(this.#contract, { client, messageId })
    if (found === null) return undefined
    this.answered(client.id)
    return found
  }

  /** From a client it is on disk when it has been routed, together with what it was routed to. */
  async incomingStorePacket(client: Owner, packet: { messageId: number; length?: number }): Promise<void> {
    const { messageId, length: _, ...fields } = packet
    // What it was routed to has the payload; for a client its identifier is enough.
    this.sessions.receive(client.id, isClient(client) ? { messageId } : { ...fields, messageId })
    if (isClient(client)) return
    await this.group.commit(() => this.#parts.rows.putIncoming(client.id, packet.messageId))
    this.sessions.incoming.settle(client.id, packet.messageId, null)
  }

  incomingGetPacket(client: Owner, packet: Identified): Promise<object> {
    return this.sessions.incoming.get(client.id, packet.messageId ?? 0)
  }

  /** PUBREL has come. Aedes answers it also when this fails: then its client has to be gone. */
  async incomingDelPacket(client: Owner, packet: Identified): Promise<void> {
    try {
      await this.sessions.forgetIncoming(client.id, packet.messageId ?? 0)
    } catch (error) {
      if (isClient(client)) cutOff(client)
      throw error
    }
  }

  cleanIncoming(client: Owner): Promise<void> {
    return this.sessions.clearIncoming(client.id)
  }

  /** A will is stored with the certificate and the connection that it came from; a client that is gone leaves none. */
  async putWill(client: Owner | MqttClient, will: Will): Promise<void> {
    if (isClient(client)) {
      if (isGone(client)) return
      const { fingerprint, id } = client.req.connection
      Object.assign(will, { fingerprint, connection: id } satisfies Partial<Will>)
    }
    await this.wills.put(client.id, will, this.#broker.id)
  }

  async getWill(client: Owner): Promise<Will | undefined> {
    return this.wills.get(client.id)
  }

  /** A client that was taken over deletes "its" will when it has closed; the newcomer's, which is stored by then, stays. */
  async delWill(client: Owner): Promise<Will | undefined> {
    const will = this.wills.get(client.id)
    const holder = this.#broker.clients?.[client.id]
    const isLeftover = client !== holder && holder !== undefined && !isGone(holder)
    if (isLeftover && will?.connection === holder.req.connection.id) return undefined
    return this.wills.delete(client.id)
  }

  /** Wills that no broker of `brokers` has; this one lives, however long it has not heard itself. */
  streamWill(brokers?: Readonly<Record<string, unknown>>): Readable {
    const own = brokers === undefined ? null : this.#broker.id
    const isOrphan = ({ brokerId = '' }: Will) => brokerId !== own && brokers?.[brokerId] === undefined
    return Readable.from([...this.wills.all()].filter(isOrphan))
  }

  /** Writes what is pending and closes. */
  async destroy(): Promise<void> {
    this.sessions.absences.keepLife()
    this.group.close()
    this.#parts.close()
  }

  async discard(clientId: string): Promise<void> {
    if (this.sessions.hasAnythingOf(clientId)) await this.sessions.discard(clientId)
  }

  /** Client ids under which something of an identity is kept: a service may have several, `<id>:<name>`. */
  clientsOf(identity: string): string[] {
    return [...this.sessions.clientsOf(identity), ...this.wills.clientsOf(identity)]
  }
}
