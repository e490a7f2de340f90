import type { Dropped, Enqueueing } from '../store/queues.ts'
import type { RetainedPacket } from '../store/retained.ts'
import type { SessionStore } from '../store/session-store.ts'
import type { Delivery } from './delivery.ts'
import type { Exchange } from './exchange.ts'
import type { MqttClient } from './mqtt-client.ts'
import { Outgoing } from './outgoing.ts'

/** A message that is to be routed, as the parser or Aedes made it. */
export interface Parcel {
  readonly topic: string
  readonly payload?: Buffer | string
  readonly qos?: number
  readonly retain?: boolean
  readonly messageId?: number
  /** Of a will. */
  readonly clientId?: string
}

/** A message as Aedes' parts pass it on. The counter rises in the order of routing: they drop one that does not. */
export interface Routed {
  /** No message of its own to itself (MQTT 5); Aedes sets it. */
  readonly nl?: boolean
  readonly cmd: 'publish'
  readonly brokerId: string
  readonly brokerCounter: number
  readonly topic: string
  readonly payload: Buffer | string
  readonly qos: number
  readonly retain: boolean
  readonly dup: false
  readonly clientId: string | undefined
}

export type Done = (error?: Error | null) => void

export interface RouteDeps {
  readonly store: SessionStore
  readonly delivery: Delivery
  readonly brokerId: string
  nextCounter(): number
  readonly exchange: Exchange
  readonly dropped: Dropped
}

interface Way {
  readonly parcel: Parcel
  readonly author: MqttClient | null
  /** Sessions that it is queued for, with the QoS of each. */
  readonly targets: ReadonlyMap<string, number> | null
  readonly done: Done
}

interface Plan {
  readonly enqueueing: Enqueueing | null
  readonly retained: { write(): void; done(): void; undone(): void } | null
  /** A half-received message of a session, or of a clean one, which is not written. */
  readonly incoming: {
    readonly clientId: string
    readonly messageId: number
    readonly isStored: boolean
  } | null
  isVoid: boolean
}

const EMPTY = Buffer.alloc(0)

/**
 * The one way of every message, whoever sent it: what has to be kept is written first, and nobody hears of it before.
 * Messages leave in the order in which they came, those that need no disk behind those that do.
 */
export class Route {
  readonly #deps: RouteDeps
  /** Who gets the message that is being handed out by its queue. */
  #queuedFor: ReadonlyMap<string, number> | null = null
  /** How Aedes' parts number what is handed out now. */
  readonly numbering: () => Pick<Routed, 'brokerId' | 'brokerCounter'>

  constructor(deps: RouteDeps) {
    this.#deps = deps
    const { brokerId, nextCounter } = deps
    this.numbering = () => ({ brokerId, brokerCounter: nextCounter() })
  }

  /** True when a message of QoS 0 or 1 that is not retained is kept for nobody and waits for nothing. */
  isShort(topic: string, qos: 0 | 1): boolean {
    const { group, sessions } = this.#deps.store
    return group.isIdle && (qos === 0 || !sessions.subscriptions.isAnybodys(topic))
  }

  /** True, while a message is handed to open connections, when this client gets it from its queue. */
  isQueuedFor(client: MqttClient): boolean {
    return !client.clean && this.#queuedFor?.has(client.id) === true
  }

  /** `done` hears of the failure of what should have been kept. */
  publish(parcel: Parcel, author: MqttClient | null, done: Done): void {
    const { group, sessions } = this.#deps.store
    const { topic, qos = 0, retain } = parcel
    const targets = qos > 0 ? sessions.subscriptions.targets(topic, qos) : null
    const way: Way = { parcel, author, targets, done }
    const plan = targets === null && qos < 2 && retain !== true ? null : this.#plan(way)
    if (plan !== null) {
      const write = () => this.#write(plan, way)
      group.push(write, (error) => this.#settle({ plan, way, error }))
    } else if (group.isIdle) this.#leave(way)
    else group.push(null, () => (isRefused(author) ? done(new Error('refused')) : this.#leave(way)))
  }

  #settle({ plan, way, error }: { plan: Plan; way: Way; error: Error | null }): void {
    const fault = plan.isVoid ? new Error('refused') : error
    this.#keepOrForget(plan, fault)
    if (fault !== null) {
      way.done(fault)
      return
    }
    this.#leave(way)
    for (const [clientId, entry] of plan.enqueueing?.entries ?? []) this.#deps.delivery.added(clientId, entry)
  }

  #plan({ parcel, author, targets }: Way): Plan | null {
    const { sessions } = this.#deps.store
    const { topic, payload = EMPTY, qos = 0, messageId } = parcel
    const enqueueing =
      targets === null ? null : sessions.queues.plan({ topic, payload, qos }, targets, this.#deps.dropped)
    const retained = parcel.retain === true ? this.#planRetained(parcel, author) : null
    const isHalf = qos === 2 && author !== null && messageId !== undefined
    const incoming = isHalf ? { clientId: author.id, messageId, isStored: !author.clean } : null
    if (enqueueing === null && retained === null && incoming?.isStored !== true) {
      if (incoming !== null) sessions.incoming.settle(incoming.clientId, incoming.messageId, null)
      return null
    }
    return { enqueueing, retained, incoming, isVoid: false }
  }

  /** A will that would be too much is published and not retained: nobody is there to hear a refusal. */
  #planRetained(parcel: Parcel, author: MqttClient | null): Plan['retained'] {
    const { store } = this.#deps
    const { topic, payload = EMPTY, qos = 0 } = parcel
    const packet: RetainedPacket = { cmd: 'publish', topic, payload, qos, retain: true }
    const identity = author?.req.connection.device ?? parcel.clientId?.split(':', 1)[0] ?? null
    const isWill = author === null || author.closed
    const allowance =
      author === null ? store.allowance(parcel.clientId ?? '') : author.req.connection.policy.allowance
    const owner = identity === null ? null : { identity, allowance }
    if (isWill && store.retained.fullness(packet, owner) !== null) return null
    return store.retained.plan(packet, identity)
  }

  /** The last look before anything is kept: the decision against the author may have come since. */
  #write(plan: Plan, { parcel: { payload = EMPTY }, author }: Way): void {
    plan.isVoid = isRefused(author)
    if (plan.isVoid) return
    if (plan.enqueueing !== null) this.#deps.store.sessions.queues.write(plan.enqueueing, payload)
    plan.retained?.write()
    const { incoming } = plan
    if (incoming?.isStored === true)
      this.#deps.store.sessions.writeIncoming(incoming.clientId, incoming.messageId)
  }

  #keepOrForget({ enqueueing, retained, incoming }: Plan, error: Error | null): void {
    const { sessions } = this.#deps.store
    if (error === null) {
      if (enqueueing !== null) sessions.queues.keep(enqueueing)
      retained?.done()
    } else {
      if (enqueueing !== null) sessions.queues.cancel(enqueueing)
      retained?.undone()
    }
    if (incoming !== null) sessions.incoming.settle(incoming.clientId, incoming.messageId, error)
  }

  #leave({ parcel, author, targets, done }: Way): void {
    const { topic, payload = EMPTY, qos = 0, retain = false } = parcel
    const { exchange } = this.#deps
    const fields = { topic, payload, qos, retain, clientId: author?.id }
    this.#queuedFor = targets
    try {
      exchange.deliver(exchange.matching(topic), new Outgoing(fields, this.numbering), targets)
    } finally {
      this.#queuedFor = null
    }
    if (qos > 0) done(null)
    else setImmediate(done) // its author is read again from here, and is not to be called from itself
  }
}

function isRefused(author: MqttClient | null): boolean {
  return author !== null && author.req.connection.refused !== null
}
