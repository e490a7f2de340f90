import type { SessionRows } from '../store/session-rows.ts'

interface Received {
  readonly packet: object
  /** Resolves when the message has been routed; null once it has. */
  routed: Promise<void> | null
  readonly settle: (error: Error | null) => void
  /** PUBREL has come, and is being dealt with. */
  isReleasing: boolean
}

/**
 * QoS 2 messages that have come and whose PUBREL has not: their packet identifiers [MQTT-4.3.3-2]. One is on disk
 * together with what it was routed to, or not at all, so that a message that is sent again is neither lost nor doubled.
 */
export class Incoming {
  readonly #rows: SessionRows
  readonly #byClient = new Map<string, Map<number, Received>>()

  constructor(rows: SessionRows) {
    this.#rows = rows
  }

  load(): void {
    for (const { client, messageId } of this.#rows.incoming())
      this.#of(client).set(messageId, isRouted(messageId))
  }

  /** Takes a message in, which {@link settle} ends. @throws Error when one with this identifier is being routed */
  begin(clientId: string, packet: { readonly messageId: number }): void {
    const own = this.#of(clientId)
    if ((own.get(packet.messageId)?.routed ?? null) !== null) throw new Error('packet identifier in use')
    const { promise, resolve, reject } = Promise.withResolvers<void>()
    promise.catch(() => {}) // whoever waits hears it; perhaps nobody does
    const settle = (error: Error | null) => (error === null ? resolve() : reject(error))
    own.set(packet.messageId, { packet, routed: promise, settle, isReleasing: false })
  }

  /** The message was routed, or could not be: then it may come again. */
  settle(clientId: string, messageId: number, error: Error | null): void {
    const received = this.#byClient.get(clientId)?.get(messageId)
    if (received === undefined) return
    if (error !== null) this.remove(clientId, messageId)
    else received.routed = null
    received.settle(error)
  }

  /** @throws Error when there is none, or it could not be routed */
  async get(clientId: string, messageId: number): Promise<object> {
    const received = this.#byClient.get(clientId)?.get(messageId)
    if (received === undefined) throw new Error('no such packet')
    await received.routed
    return received.packet
  }

  has(clientId: string, messageId: number): boolean {
    return this.#byClient.get(clientId)?.has(messageId) === true
  }

  /**
   * PUBREL has come: what is known of its message. The first PUBREL of one that has been routed, or is being routed, has
   * to end in {@link remove} or {@link keep}; those after it change nothing.
   */
  release(clientId: string, messageId: number): 'unknown' | 'routed' | 'routing' | 'releasing' {
    const received = this.#byClient.get(clientId)?.get(messageId)
    if (received === undefined) return 'unknown'
    if (received.isReleasing) return 'releasing'
    received.isReleasing = true
    return received.routed === null ? 'routed' : 'routing'
  }

  /** Its PUBREL could not be stored, and may come again. */
  keep(clientId: string, messageId: number): void {
    const received = this.#byClient.get(clientId)?.get(messageId)
    if (received !== undefined) received.isReleasing = false
  }

  count(clientId: string): number {
    return this.#byClient.get(clientId)?.size ?? 0
  }

  /** The packet identifier that has waited longest, of those that were routed. */
  oldest(clientId: string): number | null {
    for (const [messageId, { routed }] of this.#byClient.get(clientId) ?? []) {
      if (routed === null) return messageId
    }
    return null
  }

  hasAny(clientId: string): boolean {
    return this.#byClient.has(clientId)
  }

  remove(clientId: string, messageId: number): void {
    const own = this.#byClient.get(clientId)
    own?.delete(messageId)
    if (own?.size === 0) this.#byClient.delete(clientId)
  }

  removeAll(clientId: string): void {
    this.#byClient.delete(clientId)
  }

  #of(clientId: string): Map<number, Received> {
    const own = this.#byClient.get(clientId) ?? new Map<number, Received>()
    this.#byClient.set(clientId, own)
    return own
  }
}

function isRouted(messageId: number): Received {
  return { packet: { cmd: 'publish', messageId }, routed: null, settle: () => {}, isReleasing: false }
}
