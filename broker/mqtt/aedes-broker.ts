/**
 * The only importer of aedes (1.2.0): what it gets wrong is repaired here. Nothing is published by it; every message
 * takes our route.
 */
import type { EventEmitter } from 'node:events'
import type { Duplex } from 'node:stream'
import { Aedes } from 'aedes'
import type { Log } from '#shared/log'
import type { Dropped } from '../store/queues.ts'
import type { SessionStore } from '../store/session-store.ts'
import { levelsOf } from '../topic-syntax.ts'
import { Delivery } from './delivery.ts'
import { Exchange, type ExchangeDeps, type Handler } from './exchange.ts'
import { isGone, type Link, type MqttClient } from './mqtt-client.ts'
import { type Done, type Parcel, Route } from './route.ts'
import type { ShortConnectDeps } from './short-connect.ts'

/** Most levels of a topic that Aedes' own matcher takes. */
const LEVELS = 100
interface Parser extends EventEmitter {
  parse(octets: Buffer): void
}
/** The parts of Aedes that we use, private ones included. */
interface AedesBroker extends EventEmitter {
  readonly clients: Record<string, MqttClient>
  connectedClients: number
  handle(socket: Duplex, link: Link): MqttClient & { readonly _parser: Parser }
  registerClient(client: MqttClient): void
  unregisterClient(client: MqttClient): void
  /** Takes it out of the register. */
  deleteClient(clientId: string): void
  /** Ours, as they were handed over. */
  readonly preConnect: ShortConnectDeps['broker']['preConnect']
  readonly authenticate: ShortConnectDeps['broker']['authenticate']
  readonly id: string
  counter: number
  publish(packet: Parcel, client: MqttClient | null | Done, done?: Done): void
  subscribe(filter: string, handler: Handler, done: Done): void
  listen(): Promise<void>
  close(done: () => void): void
}
const Base = Aedes as unknown as new (options: object) => AedesBroker // its declared types leave out what is private

export interface Repairs extends ExchangeDeps {
  readonly store: SessionStore
  readonly log: Log
  /** The queue of a client was full. */
  readonly dropped: Dropped
  /** The last look at a client before it is registered. */
  mayRegister(client: MqttClient): boolean
  takenOver(previous: MqttClient, newcomer: MqttClient): void
}

/** Aedes, with its register of clients and its counter kept in step, and one route for whatever is published. */
export class Broker extends Base {
  /** Wills that must not be published; Aedes then deletes them as if they had been. */
  readonly voided = new WeakSet<object>()
  readonly delivery: Delivery
  readonly exchange: Exchange
  readonly route: Route
  readonly #repairs: Repairs
  /** Messages that were routed before Aedes acknowledged them. */
  readonly #routed = new WeakSet<object>()

  constructor(options: object, repairs: Repairs) {
    const { store, log, dropped } = repairs
    const exchange = new Exchange(repairs)
    super({ ...options, persistence: store, mq: exchange })
    this.#repairs = repairs
    this.exchange = exchange
    this.delivery = new Delivery(store, log)
    store.answered = (clientId) => this.delivery.answered(clientId)
    this.route = new Route({
      store,
      delivery: this.delivery,
      brokerId: this.id,
      nextCounter: () => ++this.counter,
      exchange,
      dropped,
    })
  }

  /**
   * The newcomer replaces the client before it in one tick [MQTT-3.1.4-2]. Aedes waits for the old one to close;
   * of several newcomers who wait, two may stay, and the one that closes last takes the other's entry with it. Who
   * comes and goes is told as presence, not below `$SYS`.
   */
  override registerClient(client: MqttClient): void {
    if (!this.#repairs.mayRegister(client)) return
    const previous = this.clients[client.id]
    if (previous !== undefined) {
      // One that has said goodbye, or was decided against, has lost nothing to the newcomer: it is only not cleaned up yet.
      if (!isGone(previous)) this.#repairs.takenOver(previous, client)
      this.unregisterClient(previous)
    }
    this.connectedClients++
    this.clients[client.id] = client
    if (previous === undefined) return
    previous.conn.destroy()
    previous.close() // with the newcomer in the register, so that what it tidies up is its own
  }

  override unregisterClient(client: MqttClient): void {
    this.delivery.stop(client)
    if (!client.clean) this.#repairs.store.sessions.left(client.id)
    if (this.clients[client.id] === client) this.deleteClient(client.id)
  }

  override subscribe(filter: string, handler: Handler, done: Done): void {
    if (levelsOf(filter) > LEVELS) done(new Error('filter has too many levels'))
    else this.exchange.subscribe(filter, handler, done)
  }

  /** Aedes acknowledges QoS 1 before it publishes; so it is published before Aedes hears that it may be. */
  acknowledge(packet: Parcel, client: MqttClient, done: Done): void {
    this.#routed.add(packet)
    this.route.publish(packet, client, done)
  }

  /** Never Aedes' own way; a message that was permitted some turns ago is looked at once more. */
  override publish(packet: Parcel, client: MqttClient | null | Done, done: Done = noop): void {
    if (typeof client === 'function') this.#publish(packet, null, client)
    else this.#publish(packet, client ?? null, done) // undefined, when Aedes publishes by itself
  }

  #publish(packet: Parcel, author: MqttClient | null, done: Done): void {
    if (this.#routed.delete(packet)) done(null)
    else if (author !== null && author.req.connection.refused !== null) this.#refuse(packet, author, done)
    else if (this.voided.has(packet)) done(author === null ? null : new Error('refused'))
    else if (levelsOf(packet.topic) > LEVELS) done(new Error('topic has too many levels'))
    else this.route.publish(packet, author, done)
  }

  /** What was half-received is forgotten: otherwise its repetition is taken for a message that was routed. */
  #refuse({ messageId }: Parcel, author: MqttClient, done: Done): void {
    const error = new Error('refused')
    if (messageId !== undefined) this.#repairs.store.sessions.incoming.settle(author.id, messageId, error)
    done(error)
  }
}

function noop(): void {}
