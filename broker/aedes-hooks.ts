/**
 * The only importer of aedes (1.2.0): creates it, adapts its callbacks to our decisions, and repairs what it gets
 * wrong. Whatever throws in a hook denies.
 */
import type { EventEmitter } from 'node:events'
import type { Duplex } from 'node:stream'
import { TLSSocket } from 'node:tls'
import { Aedes } from 'aedes'
import { stillLive } from './admission.ts'
import {
  connectHooks,
  type Done,
  type MqttDeps,
  orDeny,
  type Published,
  refuse,
  screen,
  topicHooks,
} from './aedes-callbacks.ts'
import type { Inside } from './gate.ts'
import { isGone, type Link, type MqttClient } from './mqtt-client.ts'
import { News } from './news.ts'
import type { AdmissionRecord } from './replica.ts'
import { SessionStore } from './session-store.ts'
import type { Connection } from './sessions.ts'

export interface Mqtt extends Inside {
  /** Takes over the socket of a connection that the gate has let in. */
  handle(connection: Connection): void
  /** Forgets the sessions, queues and wills of identities; retained messages stay. */
  purge(identities: readonly string[]): Promise<void>
  /** Tells a device what is new for it; retained, so that it hears it when it subscribes. */
  tell(connection: Connection): void
  /** The same for all that are connected, paced. */
  tellAll(): void
  /** Clients that are registered, by Aedes' register and by its counter: always the same. */
  registered(): { readonly ids: string[]; readonly counted: number }
  close(): Promise<void>
}

const HEARTBEAT_MS = 60_000
/** Longest client id of MQTT 3.1, which says 23: ours are device ids of up to 64, and services add a name. */
const CLIENT_ID_LENGTH = 129

/** The parts of Aedes that we use, private ones included. */
interface AedesBroker extends EventEmitter {
  readonly clients: Readonly<Record<string, MqttClient>>
  readonly connectedClients: number
  handle(socket: Duplex, link: Link): MqttClient & { readonly _parser: EventEmitter }
  registerClient(client: MqttClient): void
  unregisterClient(client: MqttClient): void
  publish(packet: Published, client: MqttClient | null | Done, done?: Done): void
  listen(): Promise<void>
  close(done: () => void): void
}
const Base = Aedes as unknown as new (options: object) => AedesBroker // its declared types leave out what is private

interface Repairs {
  readonly store: SessionStore
  /** The last look at a client before it is registered. */
  mayRegister(client: MqttClient): boolean
  takenOver(previous: MqttClient, newcomer: MqttClient): void
}

/** Aedes, with its register of clients and its counter kept in step, and a last look before anything is routed. */
class Broker extends Base {
  /** Wills that must not be published; Aedes then deletes them as if they had been. */
  readonly voided = new WeakSet<object>()
  readonly #repairs: Repairs

  constructor(options: object, repairs: Repairs) {
    super({ ...options, persistence: repairs.store })
    this.#repairs = repairs
  }

  /**
   * The newcomer replaces the client before it in one tick [MQTT-3.1.4-2]. Aedes waits for the old one to close;
   * of several newcomers who wait, two may stay, and the one that closes last takes the other's entry with it.
   */
  override registerClient(client: MqttClient): void {
    if (!this.#repairs.mayRegister(client)) return
    const previous = this.clients[client.id]
    if (previous !== undefined) {
      this.#repairs.takenOver(previous, client)
      this.unregisterClient(previous)
      previous.conn.destroy()
      previous.close()
    }
    super.registerClient(client)
  }

  override unregisterClient(client: MqttClient): void {
    if (this.clients[client.id] === client) super.unregisterClient(client)
  }

  /** The last step before storing and routing, for a message that was permitted some turns ago. */
  override publish(packet: Published, client: MqttClient | null | Done, done: Done = noop): void {
    if (typeof client === 'function') this.#publishOwn(packet, client)
    else if (client === null || client === undefined) this.#publishOwn(packet, done)
    else if (packet.qos === 2) this.#route(packet, client, this.#forgetOnFailure(packet, client, done))
    else this.#route(packet, client, done)
  }

  /** Aedes' own messages, and wills of other brokers. */
  #publishOwn(packet: Published, done: Done): void {
    if (this.voided.has(packet)) done(null)
    else super.publish(packet, done)
  }

  #route(packet: Published, author: MqttClient, done: Done): void {
    const isRefused = author.req.connection.refused !== null || this.voided.has(packet)
    if (isRefused) done(new Error('refused'))
    else super.publish(packet, author, done)
  }

  /** Otherwise the client's repetition is taken for a message that was routed already. */
  #forgetOnFailure(packet: Published, client: MqttClient, done: Done): Done {
    return (error) => {
      if (!error) return done(error)
      const forgotten = this.#repairs.store.incomingDelPacket(client, packet)
      forgotten.then(noop, noop).finally(() => done(error))
    }
  }
}

/** Starts the MQTT side of the broker. Sockets come in by `handle`, and only from the gate. */
export async function createMqtt(deps: MqttDeps): Promise<Mqtt> {
  const store = deps.store ?? new SessionStore(deps.limits)
  const broker: Broker = new Broker(
    {
      // Without it 100 slow deliveries stop all others.
      concurrency: 0,
      heartbeatInterval: deps.heartbeatMs ?? HEARTBEAT_MS,
      connectTimeout: deps.limits.connectMs,
      maxInflightInbound: deps.limits.inflightInbound,
      maxClientsIdLength: CLIENT_ID_LENGTH,
      ...connectHooks(deps),
      ...topicHooks(deps, store, (will) => broker.voided.add(will)),
    },
    {
      store,
      mayRegister: (client) => isLive(deps, client),
      takenOver: (previous, newcomer) => reportTakeover(deps, previous.req, newcomer.req),
    },
  )
  const news = openNews(broker, deps)
  observe(broker, { deps, store, news })
  await broker.listen()
  return {
    handle: (connection) => take(broker, deps, connection),
    purge: (identities) => store.purge(identities),
    tell: (connection) => news.tell(connection),
    tellAll: () => news.tellAll(),
    registered: () => ({ ids: Object.keys(broker.clients), counted: broker.connectedClients }),
    close() {
      news.stop()
      return new Promise((resolve) => broker.close(resolve))
    },
  }
}

function take(broker: Broker, deps: MqttDeps, connection: Connection): void {
  const link: Link = {
    connection,
    clientId: '',
    will: null,
    filters: new Set(),
    isAccepted: false,
    refusals: 0,
    ending: 'lost',
  }
  const client = broker.handle(connection.socket, link)
  screen(client._parser, deps, link)
  connection.socket.once('close', () => {
    if (!link.isAccepted) return
    const { fingerprint, device, id, refused } = connection
    const reason = refused ?? link.ending
    deps.report({ type: 'disconnected', at: deps.now(), fingerprint, device, connection: id, reason })
  })
}

/** A client that has closed, or may not be here any more, is taken out of the register in the same tick. */
function observe(broker: Broker, of: { deps: MqttDeps; store: SessionStore; news: News }): void {
  const { deps, store, news } = of
  const check = (client: MqttClient) => {
    if (isLive(deps, client)) return
    client.conn.destroy()
    if (client.closed) broker.unregisterClient(client)
  }
  broker.on('clientReady', check)
  broker.on('connackSent', ({ returnCode }: { returnCode: number }, client: MqttClient) => {
    if (returnCode !== 0 || isGone(client)) return
    accepted(deps, client.req)
    news.tell(client.req.connection)
  })
  broker.on('keepaliveTimeout', (client: MqttClient) => {
    client.req.ending = 'keepalive'
  })
  broker.on('subscribe', (_: unknown, client: MqttClient) => store.serve(client))
  broker.on('unsubscribe', (filters: readonly string[], client: MqttClient) => {
    for (const filter of filters) client.req.filters.delete(filter)
  })
  broker.on('error', (error: Error) => deps.log.error({ err: error }, 'broker error'))
}

/** Looks once more at a client; one that may not be here any more is marked and its socket destroyed. */
function isLive(deps: MqttDeps, client: MqttClient): boolean {
  if (isGone(client)) return false
  const { connection } = client.req
  const code = orDeny(
    deps,
    'register',
    () => stillLive(deps.replica.record(connection.fingerprint), deps.now()),
    'unrecorded',
  )
  if (code === null) return true
  connection.refused ??= code
  client.conn.destroy()
  return false
}

function accepted(deps: MqttDeps, link: Link): void {
  const { fingerprint, device, address, id, socket } = link.connection
  link.isAccepted = true
  const resumed = socket instanceof TLSSocket && socket.isSessionReused()
  deps.report({ type: 'connected', at: deps.now(), fingerprint, device, address, connection: id, resumed })
}

/** From the broker itself: the reserved topics are open to nobody else. */
function openNews(broker: Broker, { replica, sessions, log }: MqttDeps): News {
  return new News({
    replica,
    sessions,
    publish(message) {
      const packet = { cmd: 'publish', dup: false, qos: 1, retain: true, ...message } as const
      broker.publish(packet, (error) => {
        if (error) log.error({ err: error, topic: message.topic }, 'news not published')
      })
    },
    failed: (error) => log.error({ err: error }, 'cannot tell a device its news'),
    later(work, ms) {
      const timer = setTimeout(work, ms)
      return () => clearTimeout(timer)
    },
  })
}

/** Two clients with one identity may be a clone; a device that comes with its newer certificate is rotating. */
function reportTakeover(deps: MqttDeps, previous: Link, { connection }: Link): void {
  const { address, fingerprint } = previous.connection
  const isRotation =
    fingerprint !== connection.fingerprint &&
    orDeny(deps, 'takeover', () => isNewest(deps.replica.record(connection.fingerprint)), false)
  previous.ending = isRotation ? 'rotated' : 'duplicate'
  if (isRotation) return
  refuse(deps, previous, { code: 'duplicate', evidence: { address, otherAddress: connection.address } })
}

/** The overlap of a certificate begins when its successor is seen. */
function isNewest(record: AdmissionRecord | null): boolean {
  return record?.certificate.supersededFrom === null
}

function noop(): void {}
