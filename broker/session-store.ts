import { createRequire } from 'node:module'
import { Readable } from 'node:stream'
import { isGone, type MqttClient, type Will } from './mqtt-client.ts'

/** What Aedes hands over as the owner of stored state: its Client, or only the id of one. */
type Owner = Pick<MqttClient, 'id'>
interface Subscription {
  readonly topic: string
}
interface StoredPacket {
  readonly cmd?: string
  readonly messageId?: number
}

/** What the store needs of the broker that it serves. */
interface Clients {
  readonly clients: Readonly<Record<string, MqttClient>>
}

/** The base class with the types that Aedes' own lack; every method below was checked against aedes-persistence 11.0.0. */
interface Persistence {
  setup(broker: Clients): Promise<void>
  addSubscriptions(client: Owner, subscriptions: readonly Subscription[]): Promise<void>
  removeSubscriptions(client: Owner, filters: readonly string[]): Promise<void>
  subscriptionsByClient(client: Owner): Promise<Subscription[]>
  cleanSubscriptions(client: Owner): Promise<void>
  createRetainedStreamCombi(filters: readonly string[]): Readable
  outgoingStream(client: Owner): Readable
  outgoingUpdate(client: Owner, packet: StoredPacket): Promise<void>
  outgoingClearMessageId(client: Owner, packet: StoredPacket): Promise<unknown>
  outgoingEnqueueCombi(subscriptions: readonly { clientId: string }[], packet: object): Promise<void>
  incomingStorePacket(client: Owner, packet: StoredPacket): Promise<void>
  incomingGetPacket(client: Owner, packet: StoredPacket): Promise<unknown>
  incomingDelPacket(client: Owner, packet: StoredPacket): Promise<void>
  cleanIncoming(client: Owner): Promise<void>
  putWill(client: MqttClient, will: Will): Promise<void>
  getWill(client: Owner): Promise<Will | undefined>
  delWill(client: Owner): Promise<Will | undefined>
}
// CommonJS without declarations of its own; those of the package import Aedes, which only one file may.
const Base = createRequire(import.meta.url)('aedes-persistence/asyncPersistence.js') as new () => Persistence

/**
 * Sessions, queues, retained messages and wills in memory, with what Aedes gets wrong put right: it stores filters
 * that were denied, wills of clients that are gone, and replays without regard for the reader.
 */
export class SessionStore extends Base {
  readonly #granted = new WeakSet<Subscription>()
  readonly #clientIds = new Map<string, Set<string>>()
  readonly #replayBufferBytes: number
  #broker: Clients = { clients: {} }
  #subscriber: MqttClient | null = null

  constructor(options: { replayBufferBytes: number }) {
    super()
    this.#replayBufferBytes = options.replayBufferBytes
  }

  override async setup(broker: Clients): Promise<void> {
    this.#broker = broker
    await super.setup(broker)
  }

  /** Notes that a subscription has been granted; others are not stored. */
  grant(subscription: Subscription): void {
    this.#granted.add(subscription)
  }

  /** Says whose retained messages are asked for next, before this turn is over: Aedes does not. */
  serve(client: MqttClient): void {
    this.#subscriber = client
    queueMicrotask(() => {
      this.#subscriber = null
    })
  }

  override async addSubscriptions(client: Owner, subscriptions: readonly Subscription[]): Promise<void> {
    const granted = subscriptions.filter((subscription) => this.#granted.has(subscription))
    if (granted.length === 0) return
    this.#note(client.id)
    await super.addSubscriptions(client, granted)
  }

  override outgoingStream(client: Owner): Readable {
    const stream = super.outgoingStream(client)
    return 'conn' in client ? this.#paced(stream, client as MqttClient) : stream // only a Client has a conn
  }

  /**
   * PUBREC is answered with PUBREL whatever the queue holds [MQTT-4.3.3-1]: a retained message is never in the queue of
   * the session that it is replayed to, and Aedes would close the connection for it.
   */
  override async outgoingUpdate(client: Owner, packet: StoredPacket): Promise<void> {
    const updated = super.outgoingUpdate(client, packet)
    await (packet.cmd === 'pubrel' ? updated.catch(() => {}) : updated)
  }

  override createRetainedStreamCombi(filters: readonly string[]): Readable {
    const stream = super.createRetainedStreamCombi(filters)
    const subscriber = this.#subscriber
    this.#subscriber = null
    return subscriber === null ? stream : this.#paced(stream, subscriber)
  }

  /** A will is stored with the certificate and the connection that it came from; a client that is gone leaves none. */
  override async putWill(client: MqttClient, will: Will): Promise<void> {
    if (isGone(client)) return
    const { fingerprint, id } = client.req.connection
    Object.assign(will, { fingerprint, connection: id } satisfies Partial<Will>)
    this.#note(client.id)
    await super.putWill(client, will)
  }

  /** A client that was taken over deletes "its" will when it has closed; the newcomer's, which is stored by then, stays. */
  override async delWill(client: Owner): Promise<Will | undefined> {
    const will = await super.getWill(client)
    const holder = this.#broker.clients[client.id]
    const isLeftover = client !== holder && holder !== undefined && !isGone(holder)
    if (isLeftover && will?.connection === holder.req.connection.id) return undefined
    return super.delWill(client)
  }

  /** Forgets subscriptions, queue, half-received messages and will of every client of these identities. */
  async purge(identities: readonly string[]): Promise<void> {
    for (const identity of identities) {
      for (const id of [identity, ...(this.#clientIds.get(identity) ?? [])]) await this.#purgeClient({ id })
      this.#clientIds.delete(identity)
    }
  }

  async #purgeClient(client: Owner): Promise<void> {
    await super.cleanSubscriptions(client)
    for await (const packet of super.outgoingStream(client))
      await super.outgoingClearMessageId(client, packet)
    await super.cleanIncoming(client)
    await super.delWill(client)
  }

  /** A service may have several clients, `<id>:<name>`; all of them are its own. */
  #note(clientId: string): void {
    const [identity = clientId] = clientId.split(':', 1)
    const ids = this.#clientIds.get(identity)
    if (ids === undefined) this.#clientIds.set(identity, new Set([clientId]))
    else ids.add(clientId)
  }

  /** The same packets, as fast as the client reads; the guard of its socket never makes a writer wait. */
  #paced(stream: Readable, { conn }: MqttClient): Readable {
    const limit = this.#replayBufferBytes
    async function* packets() {
      for await (const packet of stream) {
        while (conn.writableLength > limit && !conn.destroyed) await drained(conn)
        if (conn.destroyed) return
        yield packet
      }
    }
    return Readable.from(packets())
  }
}

async function drained(conn: MqttClient['conn']): Promise<void> {
  const { promise, resolve } = Promise.withResolvers<void>()
  conn.once('drain', resolve)
  conn.once('close', resolve)
  await promise
  conn.off('drain', resolve)
  conn.off('close', resolve)
}
