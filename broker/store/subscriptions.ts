import { TopicTree } from './topic-tree.ts'

/** What SUBSCRIBE asked for; the last three are of MQTT 5 and travel with it unread. */
export interface Subscription {
  readonly topic: string
  readonly qos: number
  readonly rh?: number
  readonly rap?: boolean
  readonly nl?: boolean
}

export interface Subscriber extends Subscription {
  readonly clientId: string
}

/** Subscriptions of sessions that outlive their connection, by client and by topic. */
export class Subscriptions {
  readonly #byClient = new Map<string, Map<string, Subscription>>()
  /** Those with QoS 1 and 2: messages of QoS 0 are not kept for anybody. */
  readonly #matching = new TopicTree<Map<string, Subscription>>()
  #count = 0

  add(clientId: string, subscription: Subscription): void {
    const { topic } = subscription
    this.remove(clientId, topic)
    const own = this.#byClient.get(clientId) ?? new Map<string, Subscription>()
    this.#byClient.set(clientId, own.set(topic, subscription))
    if (subscription.qos === 0) return
    this.#count++
    const clients = this.#matching.get(topic)
    if (clients === undefined) this.#matching.set(topic, new Map([[clientId, subscription]]))
    else clients.set(clientId, subscription)
  }

  remove(clientId: string, filter: string): void {
    const own = this.#byClient.get(clientId)
    const before = own?.get(filter)
    if (own === undefined || before === undefined) return
    own.delete(filter)
    if (own.size === 0) this.#byClient.delete(clientId)
    if (before.qos === 0) return
    this.#count--
    const clients = this.#matching.get(filter)
    clients?.delete(clientId)
    if (clients?.size === 0) this.#matching.delete(filter)
  }

  removeAll(clientId: string): void {
    for (const { topic } of this.of(clientId)) this.remove(clientId, topic)
  }

  of(clientId: string): Subscription[] {
    return [...(this.#byClient.get(clientId)?.values() ?? [])]
  }

  has(clientId: string, filter: string): boolean {
    return this.#byClient.get(clientId)?.has(filter) === true
  }

  /** Every subscription that a topic matches; a client with overlapping filters is there more than once. */
  matching(topic: string): Subscriber[] {
    const found: Subscriber[] = []
    for (const clients of this.#matching.filtersFor(topic)) {
      for (const [clientId, { topic, qos, rh, rap, nl }] of clients)
        found.push({ clientId, topic, qos, rh, rap, nl } as Subscriber) // as they came: absent stays undefined
    }
    return found
  }

  /** True when a session has subscribed to the topic with QoS 1 or 2. */
  isAnybodys(topic: string): boolean {
    return this.#matching.size > 0 && this.#matching.filtersFor(topic).length > 0
  }

  /** Whom a message goes to, each once, with the highest QoS that it was granted, and no higher than the message's [MQTT-3.3.5-1]. */
  targets(topic: string, qos: number): Map<string, number> | null {
    const matching = this.#matching.size === 0 ? [] : this.#matching.filtersFor(topic)
    if (matching.length === 0) return null
    const targets = new Map<string, number>()
    for (const clients of matching) {
      for (const [clientId, granted] of clients)
        targets.set(clientId, Math.max(targets.get(clientId) ?? 0, Math.min(granted.qos, qos)))
    }
    return targets
  }

  /** Clients with exactly this filter. */
  holders(filter: string): string[] {
    return [...this.#byClient].filter(([, own]) => own.has(filter)).map(([clientId]) => clientId)
  }

  counts(): { subsCount: number; clientsCount: number } {
    return { subsCount: this.#count, clientsCount: this.#byClient.size }
  }
}
