import type { Evidence } from '#shared/errors'
import { type Allowance, capReached } from '#shared/policy/caps'
import {
  type Entry,
  LAST_QUEUE_ID,
  type Message,
  newEntry,
  type Queue,
  type QueueLimits,
} from './queue-entry.ts'
import type { QueueRows } from './queue-rows.ts'

/** A message and the queues that it is going to be in. */
export interface Enqueueing {
  readonly message: Message
  readonly entries: readonly (readonly [clientId: string, entry: Entry])[]
}

/** Told of by {@link Queues.plan}: the queue of a client was full. */
export type Dropped = (clientId: string, evidence: Evidence & { readonly dropped: number }) => void

export interface QueuesOptions {
  readonly limits: QueueLimits
  /** What the client may have, connected or not. */
  allowance(clientId: string): Allowance
}

export interface Parcel {
  readonly topic: string
  readonly payload: Buffer | string
  readonly qos: number
  readonly brokerId?: string | undefined
  readonly brokerCounter?: number
  /** Aedes' contract wants to give packet identifiers itself. */
  readonly isUnnumbered?: boolean
}

/**
 * The queues of all sessions: numbers, sizes and order in memory, payloads too while there is room. What is planned
 * counts at once; it is in the queue when it is on disk.
 */
export class Queues {
  readonly #rows: QueueRows
  readonly #limits: QueueLimits
  readonly #allowance: QueuesOptions['allowance']
  readonly #queues = new Map<string, Queue>()
  #nextSeq = 1
  #messages = 0
  #bytes = 0
  #residentBytes = 0
  #dropped = 0

  constructor(rows: QueueRows, options: QueuesOptions) {
    this.#rows = rows
    this.#limits = options.limits
    this.#allowance = options.allowance
  }

  /** Reads what an earlier run has left; payloads stay on disk until they are sent. */
  load(): void {
    const messages = new Map<number, Message>()
    for (const { seq, topic, qos, bytes } of this.#rows.messages()) {
      messages.set(seq, {
        ...{ seq, topic, qos, bytes },
        payload: null,
        refs: 0,
        brokerId: undefined,
        brokerCounter: 0,
      })
      this.#nextSeq = seq + 1
    }
    for (const { client, seq, messageId, qos, released } of this.#rows.entries()) {
      const message = messages.get(seq)
      if (message === undefined) continue
      const state = released === 1 ? 'released' : 'queued'
      this.#count(client, message)
      this.#put(client, newEntry(message, { qos, messageId, state, mayBeRepeated: true }))
      if (messageId !== null) this.queue(client).nextId = (messageId % LAST_QUEUE_ID) + 1
    }
    for (const { seq, refs } of messages.values()) if (refs === 0) this.#rows.deleteMessage(seq)
  }

  /** The queue of a client, made when there is none. */
  queue(clientId: string): Queue {
    let queue = this.#queues.get(clientId)
    if (queue === undefined) {
      queue = { entries: new Map(), byMessageId: new Map(), messages: 0, bytes: 0, nextId: 1, dropped: 0 }
      this.#queues.set(clientId, queue)
    }
    return queue
  }

  entries(clientId: string): Entry[] {
    return [...(this.#queues.get(clientId)?.entries.values() ?? [])].filter(({ isLeaving }) => !isLeaving)
  }

  /** Messages that wait for the client, with what is not on disk yet. */
  waiting(clientId: string): number {
    return this.#queues.get(clientId)?.messages ?? 0
  }

  byMessageId(clientId: string, messageId: number): Entry | undefined {
    return this.#queues.get(clientId)?.byMessageId.get(messageId)
  }

  /** `dropped`: messages that found a queue full, since the start; each counts once a queue. */
  totals() {
    const [messages, bytes] = [this.#messages, this.#bytes]
    return { messages, bytes, residentBytes: this.#residentBytes, dropped: this.#dropped }
  }

  /** Makes a place for the message in each queue that has one; null when none has. A full queue stays as it is. */
  plan(parcel: Parcel, targets: Iterable<readonly [string, number]>, dropped: Dropped): Enqueueing | null {
    const message = this.#message(parcel)
    const entries: [string, Entry][] = []
    for (const [clientId, qos] of targets) {
      const full = this.#fullness(clientId, message)
      if (full !== null) {
        this.#dropped++
        dropped(clientId, { ...full, dropped: ++this.queue(clientId).dropped })
        continue
      }
      this.#count(clientId, message)
      const messageId = parcel.isUnnumbered ? null : this.#freeId(this.queue(clientId))
      const entry = newEntry(message, { qos, messageId, state: 'queued', mayBeRepeated: false })
      if (messageId !== null) this.queue(clientId).byMessageId.set(messageId, entry)
      entries.push([clientId, entry])
    }
    if (entries.length === 0) return null
    this.#nextSeq++
    this.#keepPayload(message, parcel.payload)
    return { message, entries }
  }

  /** The rows of a plan. */
  write({ message, entries }: Enqueueing, payload: Buffer | string): void {
    this.#rows.insertMessage({ ...message, payload: Buffer.from(payload as Buffer) }) // a string is encoded, octets are taken as they are
    for (const [clientId, { messageId, qos }] of entries)
      this.#rows.insertEntry({ client: clientId, seq: message.seq, messageId, qos })
  }

  /** The client has the message (QoS 2), and PUBREL is owed to it. */
  writeReleased(clientId: string, { message: { seq }, messageId }: Entry): void {
    this.#rows.updateEntry({ client: clientId, seq, messageId, released: 1 })
  }

  /** The plan is on disk. */
  keep({ entries }: Enqueueing): void {
    for (const [clientId, entry] of entries) this.#put(clientId, entry)
  }

  /** The plan is not going to be on disk. */
  cancel({ message, entries }: Enqueueing): void {
    for (const [clientId, { messageId }] of entries) {
      if (messageId !== null) this.queue(clientId).byMessageId.delete(messageId)
      this.#uncount(clientId, message)
    }
    this.#dropPayload(message)
  }

  /** Begins to take entries out; returns how to write that, how to end it, and how to take it back. */
  leaving(clientId: string, entries: readonly Entry[]) {
    const leaving = entries.filter(({ isLeaving }) => !isLeaving)
    const orphans: number[] = []
    for (const entry of leaving) {
      entry.isLeaving = true
      this.#uncount(clientId, entry.message)
      if (entry.message.refs === 0) orphans.push(entry.message.seq)
    }
    return {
      isEmpty: leaving.length === 0,
      write: () => {
        for (const { message } of leaving) this.#rows.deleteEntry(clientId, message.seq)
        for (const seq of orphans) this.#rows.deleteMessage(seq)
      },
      done: () => this.#remove(clientId, leaving),
      takeBack: () => {
        for (const entry of leaving) {
          entry.isLeaving = false
          this.#count(clientId, entry.message)
        }
      },
    }
  }

  payloadOf(message: Message): Buffer {
    return Buffer.from((message.payload ?? this.#rows.payload(message.seq)) as Buffer) // strings as octets
  }

  /** Gives the entry another packet identifier, as Aedes' contract has it. */
  setMessageId(clientId: string, entry: Entry, messageId: number): void {
    const { byMessageId } = this.queue(clientId)
    if (entry.messageId !== null && byMessageId.get(entry.messageId) === entry)
      byMessageId.delete(entry.messageId)
    entry.messageId = messageId
    byMessageId.set(messageId, entry)
  }

  /** Gives the entry a packet identifier of its own. */
  number(clientId: string, entry: Entry): number {
    const messageId = this.#freeId(this.queue(clientId))
    this.setMessageId(clientId, entry, messageId)
    return messageId
  }

  #message({ topic, payload, qos, brokerId, brokerCounter = 0 }: Parcel): Message {
    const bytes = Buffer.byteLength(payload) + topic.length
    return { seq: this.#nextSeq, topic, payload: null, bytes, qos, refs: 0, brokerId, brokerCounter }
  }

  /** A copy of its own: what the parser hands out is a view on everything that arrived with it. */
  #keepPayload(message: Message, payload: Buffer | string): void {
    if (this.#residentBytes + message.bytes > this.#limits.queueResidentBytes) return
    this.#residentBytes += message.bytes
    if (typeof payload === 'string') message.payload = payload
    else {
      const own = Buffer.allocUnsafeSlow(payload.length)
      own.set(payload)
      message.payload = own
    }
  }

  #dropPayload(message: Message): void {
    if (message.payload === null) return
    this.#residentBytes -= message.bytes
    message.payload = null
  }

  #fullness(clientId: string, { bytes }: Message): Evidence | null {
    const queue = this.#queues.get(clientId)
    const { queueTotalMessages, queueTotalBytes } = this.#limits
    const allowance = this.#allowance(clientId)
    const { queueMessages, queueBytes } = allowance.caps
    const isNumbered = (queue?.byMessageId.size ?? 0) >= LAST_QUEUE_ID - 1 // what is leaving has its identifier still
    if (isNumbered || (queue?.messages ?? 0) >= queueMessages) {
      const reached = capReached(allowance, 'queueMessages')
      return { ...reached, allowed: Math.min(reached.allowed, LAST_QUEUE_ID - 1) }
    }
    if ((queue?.bytes ?? 0) + bytes > queueBytes) return capReached(allowance, 'queueBytes')
    if (this.#messages >= queueTotalMessages)
      return { limit: 'queueTotalMessages', allowed: queueTotalMessages }
    if (this.#bytes + bytes > queueTotalBytes) return { limit: 'queueTotalBytes', allowed: queueTotalBytes }
    return null
  }

  #count(clientId: string, message: Message): void {
    const queue = this.queue(clientId)
    queue.messages++
    queue.bytes += message.bytes
    this.#messages++
    this.#bytes += message.bytes
    message.refs++
  }

  #uncount(clientId: string, message: Message): void {
    const queue = this.queue(clientId)
    queue.messages--
    queue.bytes -= message.bytes
    this.#messages--
    this.#bytes -= message.bytes
    message.refs--
  }

  #put(clientId: string, entry: Entry): void {
    const queue = this.queue(clientId)
    queue.entries.set(entry.message.seq, entry)
    if (entry.messageId !== null) queue.byMessageId.set(entry.messageId, entry)
  }

  #remove(clientId: string, entries: readonly Entry[]): void {
    const queue = this.queue(clientId)
    for (const entry of entries) {
      const { message, messageId } = entry
      queue.entries.delete(message.seq)
      if (messageId !== null && queue.byMessageId.get(messageId) === entry)
        queue.byMessageId.delete(messageId)
      if (message.refs === 0) this.#dropPayload(message)
    }
    if (queue.entries.size === 0 && queue.messages === 0) this.#queues.delete(clientId)
  }

  #freeId(queue: Queue): number {
    while (queue.byMessageId.has(queue.nextId)) queue.nextId = (queue.nextId % LAST_QUEUE_ID) + 1
    const id = queue.nextId
    queue.nextId = (id % LAST_QUEUE_ID) + 1
    return id
  }
}
