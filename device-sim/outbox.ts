import type { Link } from './mqtt-link.ts'

export interface Message {
  readonly sequence: number
  readonly topic: string
  readonly payload: string
}

/** What a device puts into a message. */
export interface Telemetry {
  readonly sequence: number
  /** When it was made, ms. */
  readonly at: number
}

/** A device that cannot send stops making messages at this many. */
const CAPACITY = 32

/** The messages of one device, numbered from 1, kept until a broker has acknowledged them. */
export class Outbox {
  readonly #topic: string
  readonly #now: () => number
  readonly #waiting = new Map<number, Message>()
  #last = 0
  #emptied: (() => void)[] = []

  constructor(topic: string, now: () => number) {
    this.#topic = topic
    this.#now = now
  }

  /** Sequence of the newest message. */
  get last(): number {
    return this.#last
  }

  /** Sequences that nobody has acknowledged. */
  get unacknowledged(): number[] {
    return [...this.#waiting.keys()]
  }

  /** The next message, or null while the outbox is full. */
  add(): Message | null {
    if (this.#waiting.size >= CAPACITY) return null
    this.#last += 1
    const payload = JSON.stringify({ sequence: this.#last, at: this.#now() } satisfies Telemetry)
    const message = { sequence: this.#last, topic: this.#topic, payload }
    this.#waiting.set(message.sequence, message)
    return message
  }

  /** Sends a message; it leaves the outbox at PUBACK, and stays when the link closes first. */
  send(message: Message, link: Link): void {
    void link.publish(message.topic, message.payload).then(
      () => this.#acknowledged(message.sequence),
      () => {
        // It stays in the outbox, and the next link sends it again.
      },
    )
  }

  sendAll(link: Link): void {
    for (const message of this.#waiting.values()) this.send(message, link)
  }

  /** Resolves when everything has been acknowledged. */
  drained(): Promise<void> {
    if (this.#waiting.size === 0) return Promise.resolve()
    return new Promise((resolve) => this.#emptied.push(resolve))
  }

  #acknowledged(sequence: number): void {
    this.#waiting.delete(sequence)
    if (this.#waiting.size > 0) return
    for (const resolve of this.#emptied.splice(0)) resolve()
  }
}
