/** Creates Aedes with our callbacks, and hears what becomes of its clients. Whatever throws in a hook denies. */

import type { Inside } from '../door/gate.ts'
import { reasonOf } from '../ending.ts'
import { asksForFactor } from '../judge/factor-at-connect.ts'
import { PublishRate } from '../judge/publish-rate.ts'
import type { Connection } from '../sessions.ts'
import { purge, type ReviewDeps, review, reviewDevice } from '../store/purge.ts'
import { type Expired, expireSessions, keepExpiring } from '../store/session-expiry.ts'
import { Broker } from './aedes-broker.ts'
import {
  connectHooks,
  forwarding,
  isGranted,
  type MqttDeps,
  orDeny,
  pace,
  screen,
  type Traffic,
  topicHooks,
} from './aedes-callbacks.ts'
import { isLive, observe } from './aedes-events.ts'
import { Answers } from './answers.ts'
import { Ingest, type IngestDeps } from './ingest.ts'
import { lighten } from './lighten.ts'
import { reportDropped, reportExpired } from './losses.ts'
import type { Link, MqttClient } from './mqtt-client.ts'
import { News } from './news.ts'
import { RepeatedFilters } from './repeated-filters.ts'
import { closeShort } from './short-close.ts'
import { type ConnectPacket, connectShort } from './short-connect.ts'
import { openTakeovers } from './takeover.ts'

export interface Mqtt extends Inside {
  /** Takes over the socket of a connection that the gate has let in. */
  handle(connection: Connection): void
  /** Forgets the sessions, queues, half-received messages and wills of identities. */
  purge(identities: readonly string[]): Promise<void>
  /**
   * Looks through what is stored: what belongs to certificates that are held or over is purged, and subscriptions and
   * queued messages that the policy of a fleet (of all, when none is named) does not grant any more are taken out.
   */
  review(fleet?: string): Promise<void>
  /** The same for one device. */
  reviewDevice(device: string): Promise<void>
  /** Ends the sessions whose clients have stayed away for too long; it does so by itself, too. */
  expire(): Promise<void>
  /** Tells a device what is new for it; retained, so that it hears it when it subscribes. */
  tell(connection: Connection): void
  /** The same for all that are connected, paced. */
  tellAll(): void
  /** Clients that are registered, by Aedes' register and by its counter: always the same. */
  registered(): { readonly ids: string[]; readonly counted: number }
  /** As the broker itself; whoever has a session has it in its queue. */
  publish(message: { topic: string; payload: string; retain: boolean }): void
  /** Since the start. */
  traffic(): Readonly<Traffic>
  close(): Promise<void>
}

const HEARTBEAT_MS = 60_000
/** Packets that wait for CONNACK. A client may send them at once, and no more than one piece is read before it: they are in memory already. */
const BEFORE_CONNACK = 8_192
/** Longest client id of MQTT 3.1, which says 23: ours are device ids of up to 64, and services add a name. */
const CLIENT_ID_LENGTH = 129

/** Starts the MQTT side of the broker. Sockets come in by `handle`, and only from the gate. */
export async function createMqtt(deps: MqttDeps): Promise<Mqtt> {
  const { store } = deps
  const traffic: Traffic = { published: 0, delivered: 0 }
  const broker = openBroker(deps, traffic)
  const rate = new PublishRate()
  store.allowances.follow(deps.replica)
  const news = openNews(broker, deps)
  const repeated = new RepeatedFilters()
  observe(broker, { deps: { ...deps, rate }, news, repeated })
  await broker.listen()
  const expiry = {
    ...{ store, log: deps.log },
    isConnected: (clientId: string) => broker.clients[clientId] !== undefined,
    isServing: () => deps.replica.silentMs(deps.now()) <= deps.maxStalenessMs,
    expired: (over: Expired) => reportExpired(deps, over),
  }
  const stopExpiring = keepExpiring(expiry, deps.expireEveryMs)
  const taking = {
    ...deps,
    rate,
    repeated,
    traffic,
    ingestion: ingestion(broker, { ...deps, rate, traffic }),
  }
  return {
    handle: (connection) => take(broker, taking, connection),
    expire: () => expireSessions(expiry),
    ...reviews({ ...deps, clients: broker.clients }),
    tell: (connection) => news.tell(connection),
    tellAll: () => news.tellAll(),
    registered: () => ({ ids: Object.keys(broker.clients), counted: broker.connectedClients }),
    publish(message) {
      broker.publish({ qos: 1, ...message }, (error) => {
        if (error) deps.log.error({ err: error, topic: message.topic }, 'not published')
      })
    },
    traffic: () => ({ ...traffic, delivered: traffic.delivered + broker.delivery.sent }),
    async close() {
      news.stop()
      stopExpiring()
      await new Promise<void>((resolve) => broker.close(resolve))
      await store.destroy()
    },
  }
}

/** Aedes with our callbacks. */
function openBroker(deps: MqttDeps, traffic: Traffic): Broker {
  const mayForward = forwarding(deps)
  const broker: Broker = new Broker(
    {
      concurrency: 0, // as many listeners to events of a socket as there are
      heartbeatInterval: deps.heartbeatMs ?? HEARTBEAT_MS,
      connectTimeout: deps.limits.connectMs,
      maxInflightInbound: 0, // it knows one number for all clients: ours is that of each
      maxClientsIdLength: CLIENT_ID_LENGTH,
      queueLimit: BEFORE_CONNACK,
      ...connectHooks(deps),
      ...topicHooks(deps, {
        acknowledge: (packet, client, done) => broker.acknowledge(packet, client, done),
        isQueuedFor: (client) => broker.route.isQueuedFor(client),
        voidWill: (will) => broker.voided.add(will),
        mayForward,
        traffic,
      }),
    },
    {
      store: deps.store,
      log: deps.log,
      dropped: (clientId, evidence) => reportDropped(deps, clientId, evidence),
      mayForward,
      traffic,
      mayRegister: (client) => isLive(deps, client),
      takenOver: openTakeovers(deps),
    },
  )
  return broker
}

function reviews(deps: ReviewDeps): Pick<Mqtt, 'purge' | 'review' | 'reviewDevice'> {
  return {
    purge: (identities) => purge(deps.store, identities),
    review: (fleet) => review(deps, fleet),
    reviewDevice: (device) => reviewDevice(deps, device),
  }
}

interface TakeDeps extends MqttDeps {
  readonly rate: PublishRate
  readonly repeated: RepeatedFilters
  readonly traffic: Traffic
  readonly ingestion: IngestDeps
}

function take(broker: Broker, deps: TakeDeps, connection: Connection): void {
  const link: Link = {
    connection,
    clientId: '',
    will: null,
    filters: new Set(),
    isAccepted: false,
    isThrottled: false,
    refusals: 0,
  }
  const { store } = deps
  connection.socket.on('end', () => closeShort({ broker, store }, client)) // before Aedes hears of it
  const client = broker.handle(connection.socket, link)
  broker.exchange.adopt(client)
  lighten(client)
  screen(client._parser, { deps, link, connect: connecting(broker, { deps, client }) })
  shorten(deps, client)
  connection.socket.on('close', () => {
    if (!link.isAccepted) return
    const { fingerprint, device, id, closedAt: at = deps.now() } = connection
    const reason = reasonOf(connection)
    deps.report({ type: 'disconnected', at, fingerprint, device, connection: id, reason })
  })
}

/** The short way of a CONNECT; in a function of its own, because it is let go when the client has connected. */
function connecting(broker: Broker, { deps, client }: { deps: TakeDeps; client: MqttClient }) {
  const { store, sessions } = deps
  const { connection } = client.req
  const short = {
    ...{ client, broker },
    // Another connection of the same device may have come before, and be on the long way still: it must not end this one.
    isUnknown: (id: string) =>
      !store.sessions.hasAnythingOf(id) &&
      store.wills.get(id) === undefined &&
      sessions.select({ kind: 'device', id: connection.device }).length < 2,
    isDecidedAtOnce: () => !orDeny(deps, 'factor', () => asksForFactor(deps, client.req), true),
  }
  return (packet: ConnectPacket) => connectShort(short, packet)
}

/** For all clients. */
function ingestion(
  { exchange, route }: Broker,
  deps: MqttDeps & Pick<TakeDeps, 'rate' | 'traffic'>,
): IngestDeps {
  return {
    ...{ exchange, route },
    isGranted: (client, arrival) => isGranted(deps, client, arrival),
    published({ req: link }, arrival) {
      deps.traffic.published++
      pace(deps, link, arrival)
    },
    answers: new Answers(deps.store),
  }
}

/** What the client sends goes through {@link Ingest} first. */
function shorten(deps: TakeDeps, client: ReturnType<Broker['handle']>): void {
  const { _parser: parser } = client
  const ingest = new Ingest(deps.ingestion, { client, parse: parser.parse.bind(parser) })
  parser.parse = (octets) => {
    // A stream says that it is readable once more only when somebody has read to its end: with packets of its own Aedes does.
    let next: Buffer | null = octets
    for (; next !== null; next = client._parsingBatch === 0 ? client.conn.read() : null) ingest.take(next)
  }
}

/** From the broker itself: the reserved topics are open to nobody else. */
function openNews(broker: Broker, { replica, sessions, log, store }: MqttDeps): News {
  return new News({
    replica,
    sessions,
    publish(message) {
      // It is kept: whoever was subscribed has it in its queue, whoever subscribes gets it.
      if (store.retained.isKept(message.topic, message.payload)) return
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
