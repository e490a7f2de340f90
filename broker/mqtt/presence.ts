import type { Report } from '#shared/feed'
import { PRESENCE } from '#shared/presence'
import type { Connection, Sessions } from '../sessions.ts'
import type { RetainedPacket } from '../store/retained.ts'

export interface PresenceMessage {
  readonly topic: string
  readonly payload: string
  readonly retain: boolean
}

export interface PresenceDeps {
  readonly sessions: Pick<Sessions, 'select'>
  /** What an earlier run has left. */
  readonly retained: { matching(filters: readonly string[]): Iterable<RetainedPacket> }
  publish(message: PresenceMessage): void
  failed(error: unknown): void
  now(): number
}

/** A connection that is told of. */
interface Present {
  readonly device: string
  readonly connection: string
  readonly serial: string
}

/** Messages in one turn of the event loop: a hold may end ten thousand connections at once. */
const SLICE = 200

/**
 * Tells services which devices are connected: retained below {@link PRESENCE} while they are, and once more, with the
 * reason, when they are not. Whoever subscribes has those that are connected, and then every change. The sequence
 * rises with every message, also over restarts: of two about one device the higher one is true.
 */
export class Presence {
  readonly #deps: PresenceDeps
  readonly #open = new Map<string, Present>()
  /** The connection that is retained for each device. */
  readonly #retained = new Map<string, string>()
  #sequence = 0
  #waiting: PresenceMessage[] = []
  #isScheduled = false
  #isStopped = false

  constructor(deps: PresenceDeps) {
    this.#deps = deps
  }

  /** Ends what an earlier run has left, which nobody else would. */
  start(): void {
    const left = [...this.#deps.retained.matching([`${PRESENCE}/#`])].map(({ topic, payload }) => ({
      topic,
      ...readLeft(payload),
    }))
    for (const { sequence } of left) this.#sequence = Math.max(this.#sequence, sequence)
    for (const { topic, serial, connection } of left) {
      const device = topic.slice(PRESENCE.length + 1)
      this.#tell({ device, connection, serial }, { state: 'disconnected', reason: 'broker-restarted' })
      this.#send({ topic, payload: '', retain: true })
    }
  }

  /** What is queued is not sent any more; the next start ends what is retained. */
  stop(): void {
    this.#isStopped = true
    this.#waiting = []
  }

  saw(report: Report): void {
    if (this.#isStopped) return
    if (report.type === 'connected') this.#connected(report)
    else if (report.type === 'disconnected') this.#disconnected(report)
  }

  #connected({ device, connection }: Extract<Report, { type: 'connected' }>): void {
    const isIt = (one: Connection) => one.id === connection && one.kind === 'device'
    const found = this.#deps.sessions.select({ kind: 'device', id: device }).find(isIt)
    if (found === undefined) return
    const present = { device, connection, serial: found.serial }
    this.#open.set(connection, present)
    this.#retained.set(device, connection)
    this.#tell(present, { state: 'connected' })
  }

  /** Of a connection that another one has replaced the end is told, and the other one stays retained. */
  #disconnected({ device, connection, reason }: Extract<Report, { type: 'disconnected' }>): void {
    const present = this.#open.get(connection)
    if (present === undefined) return
    this.#open.delete(connection)
    this.#tell(present, { state: 'disconnected', reason })
    if (this.#retained.get(device) !== connection) return
    this.#retained.delete(device)
    this.#send({ topic: `${PRESENCE}/${device}`, payload: '', retain: true })
  }

  #tell({ device, connection, serial }: Present, what: { state: string; reason?: string }): void {
    const at = this.#deps.now()
    this.#sequence = Math.max(this.#sequence + 1, at)
    const payload = JSON.stringify({ device, sequence: this.#sequence, at, ...what, connection, serial })
    this.#send({ topic: `${PRESENCE}/${device}`, payload, retain: what.state === 'connected' })
  }

  #send(message: PresenceMessage): void {
    this.#waiting.push(message)
    if (this.#isScheduled) return
    this.#isScheduled = true
    setImmediate(() => this.#sendSlice())
  }

  #sendSlice(): void {
    this.#isScheduled = false
    const slice = this.#waiting.slice(0, SLICE)
    this.#waiting = this.#waiting.slice(SLICE)
    for (const message of slice) {
      try {
        this.#deps.publish(message)
      } catch (error) {
        this.#deps.failed(error)
      }
    }
    if (this.#waiting.length === 0) return
    this.#isScheduled = true
    setImmediate(() => this.#sendSlice())
  }
}

/** Nobody but this broker writes there; what cannot be read is ended all the same. */
function readLeft(payload: RetainedPacket['payload']): {
  sequence: number
  serial: string
  connection: string
} {
  try {
    const { sequence, serial, connection } = JSON.parse(payload.toString())
    return { sequence: Number.isSafeInteger(sequence) ? sequence : 0, serial, connection }
  } catch {
    return { sequence: 0, serial: '', connection: '' }
  }
}
