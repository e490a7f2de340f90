import { trustTopic } from '#shared/trust-bundle'
import type { AdmissionRecord } from '../replica/replica.ts'
import type { TrustRow } from '../replica/replica-rows.ts'
import type { Connection, Sessions } from '../sessions.ts'
import { hintFor } from './renewal-hints.ts'

/** What the broker itself tells a device, below the topics that are reserved for it. */
export interface NewsMessage {
  readonly topic: string
  readonly payload: string | Buffer
}

export interface NewsDeps {
  readonly replica: {
    record(fingerprint: string): AdmissionRecord | null
    /** Null before the first rollover. */
    trust?(): TrustRow | null
  }
  readonly sessions: Pick<Sessions, 'select'>
  /** Publishes it as a retained message. */
  publish(message: NewsMessage): void
  failed(error: unknown): void
  /** Calls back after so many ms, unless what it returns is called first. */
  later(work: () => void, ms: number): () => void
}

/**
 * Devices told in one turn, and the pause until the next, ms: 500 a second. Each of them may ask the enrollment service
 * for the bundle, so this is the pace of their questions, too.
 */
const SLICE = 50
const PAUSE_MS = 100

/** What a connection was told last; the same is not told again. */
interface Told {
  hint: string
  trust: number
}

/** Tells devices when to renew, and what to trust: each at its CONNACK, and all of them, paced, when that changes. */
export class News {
  readonly #deps: NewsDeps
  readonly #told = new WeakMap<Connection, Told>()
  /** One buffer for all devices: the retained messages share it. */
  #bundle: { readonly version: number; readonly payload: Buffer } | null = null
  #waiting: Connection[] = []
  #cancel: (() => void) | null = null

  constructor(deps: NewsDeps) {
    this.#deps = deps
  }

  /** What is new for one connection. A replica that cannot be read tells nothing now; the next CONNACK does. */
  tell(connection: Connection): void {
    try {
      this.#tell(connection)
    } catch (error) {
      this.#deps.failed(error)
    }
  }

  /** The same for every connection, some in each turn of the event loop. Called again meanwhile, it begins anew. */
  tellAll(): void {
    this.#waiting = this.#deps.sessions.select({ kind: 'all' })
    this.#cancel ??= this.#deps.later(() => this.#tellSlice(), 0)
  }

  stop(): void {
    this.#cancel?.()
    this.#waiting = []
    this.#cancel = null
  }

  #tellSlice(): void {
    for (const connection of this.#waiting.splice(-SLICE)) {
      if (connection.refused === null && !connection.socket.destroyed) this.tell(connection)
    }
    const isDone = this.#waiting.length === 0
    this.#cancel = isDone ? null : this.#deps.later(() => this.#tellSlice(), PAUSE_MS)
  }

  #tell(connection: Connection): void {
    const { replica, publish } = this.#deps
    if (connection.kind !== 'device') return
    const told = this.#told.get(connection) ?? { hint: '', trust: 0 }
    this.#told.set(connection, told)
    const hint = hintFor(replica.record(connection.fingerprint))
    if (hint !== null && hint.payload !== told.hint) {
      told.hint = hint.payload
      publish(hint)
    }
    const bundle = this.#newest()
    if (bundle === null || bundle.version === told.trust) return
    told.trust = bundle.version
    publish({ topic: trustTopic(connection.device), payload: bundle.payload })
  }

  #newest(): { readonly version: number; readonly payload: Buffer } | null {
    const row = this.#deps.replica.trust?.() ?? null
    if (row === null) return null
    if (this.#bundle?.version !== row.version) {
      this.#bundle = { version: row.version, payload: Buffer.from(row.bundle) }
    }
    return this.#bundle
  }
}
