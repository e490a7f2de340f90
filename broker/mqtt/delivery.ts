import type { Log } from '#shared/log'
import { publishHead, pubrel } from '../door/packet-octets.ts'
import { endedBy } from '../ending.ts'
import { mayForward } from '../judge/authorization.ts'
import { type Entry, LAST_QUEUE_ID } from '../store/queue-entry.ts'
import type { SessionStore } from '../store/session-store.ts'
import { isGone, type MqttClient } from './mqtt-client.ts'

/** A client with a session that is connected, and what is to be sent to it. */
interface Reader {
  readonly client: MqttClient
  /** In order; those before `next` have been sent or dropped. */
  entries: Entry[]
  next: number
  /** Sent and not answered. */
  inflight: number
  isScheduled: boolean
  /** It does not read: what was written has to leave first. */
  isBlocked: boolean
}

/** Sent entries that the list may keep before it is cut. */
const CUT_AFTER = 1_024

/**
 * Sends what is in the queue of a session, and is the only one that does: what was there before its client came, and
 * what is routed since, in one order. No more is under way than the client answers, and than it reads.
 */
export class Delivery {
  readonly #store: SessionStore
  readonly #log: Log
  readonly #readers = new Map<string, Reader>()
  #sent = 0

  constructor(store: SessionStore, log: Log) {
    this.#store = store
    this.#log = log
  }

  /** The client has been accepted: everything that waits goes to it, again if it went to a connection before. */
  start(client: MqttClient): void {
    leaveIds(client)
    const entries = this.#store.sessions.queues.entries(client.id)
    for (const entry of entries) entry.isSent = false
    const reader: Reader = { client, entries, next: 0, inflight: 0, isScheduled: false, isBlocked: false }
    this.#readers.set(client.id, reader)
    this.#schedule(reader)
  }

  /** Messages that were sent, since the start. */
  get sent(): number {
    return this.#sent
  }

  stop(client: MqttClient): void {
    if (this.#readers.get(client.id)?.client === client) this.#readers.delete(client.id)
  }

  /** A message has been queued for the client. */
  added(clientId: string, entry: Entry): void {
    const reader = this.#readers.get(clientId)
    if (reader === undefined) return
    reader.entries.push(entry)
    this.#schedule(reader)
  }

  /** The client has answered for a message. */
  answered(clientId: string): void {
    const reader = this.#readers.get(clientId)
    if (reader === undefined) return
    reader.inflight = Math.max(0, reader.inflight - 1)
    this.#schedule(reader)
  }

  /** In the next phase of the loop: messages of QoS 0 that were routed before are written by then. */
  #schedule(reader: Reader): void {
    if (reader.isScheduled || reader.isBlocked) return
    reader.isScheduled = true
    setImmediate(() => {
      reader.isScheduled = false
      this.#send(reader)
    })
  }

  #send(reader: Reader): void {
    const { client } = reader
    const { replayBufferBytes } = this.#store.limits
    const window = client.req.connection.policy.allowance.caps.inflightOutbound
    try {
      while (reader.next < reader.entries.length && reader.inflight < window && !isGone(client)) {
        if (client.conn.writableLength > replayBufferBytes && client.conn.writableNeedDrain) {
          this.#waitFor(reader)
          break
        }
        const entry = reader.entries[reader.next++]
        if (entry !== undefined && !entry.isLeaving && this.#sendEntry(client, entry)) reader.inflight++
      }
    } catch (error) {
      this.#log.error({ err: error, client: client.id }, 'cannot send what is queued')
      endedBy(client.req.connection, 'store')
      client.conn.destroy()
    }
    if (reader.next < CUT_AFTER) return
    reader.entries = reader.entries.slice(reader.next)
    reader.next = 0
  }

  #waitFor(reader: Reader): void {
    reader.isBlocked = true
    reader.client.conn.once('drain', () => {
      reader.isBlocked = false
      this.#schedule(reader)
    })
  }

  /** False when the client may not have it any more: then it leaves the queue. */
  #sendEntry(client: MqttClient, entry: Entry): boolean {
    const { conn } = client
    const { message, qos } = entry
    const { queues } = this.#store.sessions
    const messageId = entry.messageId ?? queues.number(client.id, entry)
    if (!mayForward(client.req, message.topic)) {
      this.#store.sessions.drop(client.id, [entry]).catch(() => {}) // logged by the group; it is looked at again next time
      return false
    }
    conn.cork()
    if (entry.state === 'released') conn.write(pubrel(messageId))
    else {
      const payload = queues.payloadOf(message)
      const { topic } = message
      conn.write(publishHead({ topic, payload, qos, messageId, dup: entry.mayBeRepeated }))
      if (payload.length > 0) conn.write(payload)
    }
    conn.uncork()
    entry.isSent = true
    entry.mayBeRepeated = true
    this.#sent++
    return true
  }
}

/** Packet identifiers of queued messages are ours: Aedes keeps to those above for what it sends by itself. */
function leaveIds(client: MqttClient): void {
  let id = LAST_QUEUE_ID + 1
  Object.defineProperty(client, '_nextId', {
    configurable: true,
    get: () => id,
    set(next: number) {
      id = next <= LAST_QUEUE_ID ? LAST_QUEUE_ID + 1 : next
    },
  })
}
