import { isGrantedStill } from '../judge/authorization.ts'
import { decisions, NEVER } from '../judge/decisions.ts'
import { TopicTree } from '../store/topic-tree.ts'
import type { MqttClient } from './mqtt-client.ts'
import type { Outgoing } from './outgoing.ts'
import type { Done, Routed } from './route.ts'

/** A subscription as Aedes makes it: a closure that hands a message to its client. */
export type Handler = (packet: Routed, done: Done) => void

interface Listener {
  handler: Handler
  /** Null for what Aedes hears itself, and when the subscription has ended: whoever remembers it holds nobody by that. */
  client: MqttClient | null
  readonly qos: number
  /** It wants the retain flag as it was published, or not what it has published itself: Aedes hands it out. */
  readonly isPlain: boolean
}

/** Who gets a message on one topic. */
interface Match {
  readonly listener: Listener
  /** Count of decisions at which its client might have messages on the topic. */
  permittedAt: number
}

/** Each client once. */
export type Matches = readonly Match[]

export interface ExchangeDeps {
  /** May a message on the topic reach the client, here and now? What throws denies. */
  mayForward(client: MqttClient, topic: string): boolean
  /** Plain counts of messages that were handed out. */
  readonly traffic: { delivered: number }
}

/** What a client does when it is asked whose subscription a closure is. */
interface Asked {
  client: MqttClient | null
  isPlain: boolean
}

const EMPTY = Buffer.alloc(0)
const QUESTION: Routed = Object.freeze({
  ...({ cmd: 'publish', brokerId: '', brokerCounter: 0, topic: '-', payload: EMPTY } as const),
  ...({ qos: 0, retain: true, dup: false, clientId: undefined } as const),
})

/**
 * Stands where Aedes has its emitter: subscriptions of open connections by filter. A message is matched once for as
 * long as no subscription changes, encoded once, and written in the same tick; Aedes takes two turns of the event loop
 * for each of its readers, and encodes it for each. What needs more than one packet (QoS 2), or a session, is still
 * handed out by Aedes.
 */
export class Exchange {
  readonly #deps: ExchangeDeps
  readonly #tree = new TopicTree<Map<Handler, Listener>>()
  #asked: Asked | null = null
  #version = 0
  #isClosed = false

  constructor(deps: ExchangeDeps) {
    this.#deps = deps
  }

  /** Changes with every subscription; what was matched before is not true any more. */
  get version(): number {
    return this.#version
  }

  /** Lets the client say which subscriptions are its own. */
  adopt(client: MqttClient): void {
    for (const name of ['deliver0', 'deliverQoS'] as const) {
      const deliver = client[name]
      client[name] = (packet, done) => {
        if (this.#asked === null) deliver(packet, done)
        else this.#asked = { client, isPlain: packet.retain !== true && packet.nl !== true }
      }
    }
  }

  /** A subscription of a client. */
  subscribe(filter: string, handler: Handler, done?: Done): void {
    this.#asked = { client: null, isPlain: false }
    handler(QUESTION, noop)
    const { client, isPlain } = this.#asked
    this.#asked = null
    this.#add(filter, { handler, client, isPlain, qos: client?.subscriptions?.[filter]?.qos ?? 0 })
    if (done !== undefined) setImmediate(done)
  }

  /** What Aedes hears itself. */
  on(filter: string, handler: Handler, done?: Done): void {
    this.#add(filter, { handler, client: null, isPlain: false, qos: 0 })
    if (done !== undefined) setImmediate(done)
  }

  #add(filter: string, listener: Listener): void {
    const known = this.#tree.get(filter)
    if (known === undefined) this.#tree.set(filter, new Map([[listener.handler, listener]]))
    else known.set(listener.handler, listener)
    this.#version++
  }

  removeListener(filter: string, handler: Handler, done?: Done): void {
    const known = this.#tree.get(filter)
    const client = known?.get(handler)?.client
    const ended = known?.get(handler)
    if (ended !== undefined) Object.assign(ended, { handler: noop, client: null } satisfies Partial<Listener>)
    known?.delete(handler)
    if (known?.size === 0) this.#tree.delete(filter)
    this.#version++
    if (done === undefined) return
    // Only now Aedes forgets that the client had the filter, which its next packet may ask for again.
    if (client?.closed === false) done()
    else setImmediate(done)
  }

  /** Of a client with overlapping filters the one that was granted most. */
  matching(topic: string): Matches {
    const sets = this.#tree.filtersFor(topic)
    const found: Match[] = []
    const own = new Map<MqttClient, number>()
    for (const set of sets) {
      for (const listener of set.values()) {
        const { client, qos } = listener
        const at = client === null || sets.length === 1 ? undefined : own.get(client)
        if (at === undefined) {
          if (client !== null && sets.length > 1) own.set(client, found.length)
          found.push({ listener, permittedAt: NEVER })
        } else if (qos > (found[at]?.listener.qos ?? 0)) found[at] = { listener, permittedAt: NEVER }
      }
    }
    return found
  }

  /**
   * Hands the message to all of them, in this tick.
   * @param queued sessions that it is queued for, and get it from there
   */
  deliver(matches: Matches, message: Outgoing, queued: ReadonlyMap<string, number> | null): void {
    if (this.#isClosed) return
    const { topic } = message
    for (let at = 0; at < matches.length; at++) {
      const match = matches[at] as Match // within its length
      const { listener } = match
      const { client } = listener
      if (queued !== null && client?.clean === false && queued.has(client.id)) continue
      const qos = Math.min(listener.qos, message.qos)
      const isOurs = listener.isPlain && qos < 2 && (qos === 0 || client?.clean === true)
      if (client === null) listener.handler(message.routed(), noop)
      else if (!isOurs) listener.handler(message.routed(qos), noop)
      else if (this.#isPermitted(match, client, topic)) {
        this.#deps.traffic.delivered++
        write(client, message, qos)
      }
    }
  }

  /** What a policy has said of a topic it says again, as long as nothing has been decided. */
  #isPermitted(match: Match, client: MqttClient, topic: string): boolean {
    if (client.closed) return false
    if (isGrantedStill(match.permittedAt)) return true
    const at = decisions()
    const isPermitted = client.req.connection.refused === null && this.#deps.mayForward(client, topic)
    match.permittedAt = isPermitted ? at : NEVER
    return isPermitted
  }

  close(done: Done): void {
    this.#isClosed = true
    setImmediate(done)
  }
}

function write(client: MqttClient, message: Outgoing, qos: number): void {
  client.conn.cork()
  client.conn.write(qos === 0 ? message.unnumbered() : message.numbered(nextId(client)))
  client.conn.uncork()
}

const LAST_ID = 65_535

/** Of a clean session, which Aedes numbers in the same way. */
function nextId(client: MqttClient): number {
  const id = client._nextId
  client._nextId = id >= LAST_ID ? 1 : id + 1
  return id
}

function noop(): void {}
