import type { Evidence } from '#shared/errors'
import { type Allowance, capReached } from '#shared/policy/caps'
import type { CommitGroup } from './commit-group.ts'
import type { SessionRows } from './session-rows.ts'
import { TopicTree } from './topic-tree.ts'

export interface RetainedLimits {
  readonly retainedTotalBytes: number
}

export interface RetainedPacket {
  readonly cmd: 'publish'
  readonly topic: string
  readonly payload: Buffer | string
  readonly qos: number
  readonly retain: boolean
}

/** Whom a retained message counts for. */
export interface Owner {
  readonly identity: string
  readonly allowance: Allowance
}

interface Account {
  readonly owner: string | null
  readonly bytes: number
  /** Rises from message to message; 0 of those of an earlier run. */
  readonly number: number
}
/** What some identities have retained, of each up to the message with this number. */
export type RetainedOf = ReadonlyMap<string, number>
interface Usage {
  messages: number
  bytes: number
}
interface Kept {
  readonly packet: RetainedPacket
  readonly account: Account
}

/** What an index entry costs beside topic and payload, octets; small messages are not free. */
const OVERHEAD = 256

/** The last retained message of each topic, in memory and on disk, and what each identity has of it. */
export class Retained {
  readonly #rows: SessionRows
  readonly #limits: RetainedLimits
  readonly #messages = new TopicTree<Kept>()
  /** As it will be when everything that is pending is on disk. */
  readonly #accounts = new Map<string, Account>()
  /** Of each topic with something pending, what was planned last. */
  readonly #pending = new Map<string, object>()
  readonly #usage = new Map<string, Usage>()
  #bytes = 0
  #newest = 0
  #withheld: RetainedOf | null = null

  constructor(rows: SessionRows, limits: RetainedLimits) {
    this.#rows = rows
    this.#limits = limits
  }

  load(): void {
    for (const { topic, payload, qos, owner } of this.#rows.retained()) {
      const account = { owner, bytes: sizeOf(topic, payload), number: 0 }
      this.#messages.set(topic, { packet: { cmd: 'publish', topic, payload, qos, retain: true }, account })
      this.#book(topic, account)
    }
  }

  totals(): { messages: number; bytes: number } {
    return { messages: this.#accounts.size, bytes: this.#bytes }
  }

  /**
   * Which limit keeps this message out, or null. The broker itself (`owner` null) is kept out by none; nor is a message
   * that is no longer than the author's own in its place: then the limit was lowered meanwhile.
   */
  fullness(packet: RetainedPacket, owner: Owner | null): Evidence | null {
    const { topic, payload } = packet
    if (owner === null || payload.length === 0) return null
    const { retainedTotalBytes } = this.#limits
    const before = this.#accounts.get(topic)
    const bytes = sizeOf(topic, payload)
    if (this.#bytes - (before?.bytes ?? 0) + bytes > retainedTotalBytes) {
      return { limit: 'retainedTotalBytes', allowed: retainedTotalBytes }
    }
    const own = before?.owner === owner.identity ? before : null
    const usage = this.#usage.get(owner.identity) ?? { messages: 0, bytes: 0 }
    const { allowance } = owner
    const { retainedMessages, retainedBytes } = allowance.caps
    if (own === null && usage.messages >= retainedMessages) return capReached(allowance, 'retainedMessages')
    const grownBy = bytes - (own?.bytes ?? 0)
    return grownBy > 0 && usage.bytes + grownBy > retainedBytes
      ? capReached(allowance, 'retainedBytes')
      : null
  }

  /** Books the message; returns how to write it and what to do when that is done, or has failed. */
  plan(packet: RetainedPacket, owner: string | null) {
    const { topic, qos } = packet
    const isRemoval = packet.payload.length === 0 // MQTT 3.1.1 section 3.3.1.3
    const kept = { ...packet, payload: owner === null ? packet.payload : ownCopy(packet.payload) }
    const account = { owner, bytes: sizeOf(topic, kept.payload), number: ++this.#newest }
    this.#book(topic, isRemoval ? null : account)
    this.#pending.set(topic, account)
    return {
      write: () => {
        if (isRemoval) this.#rows.deleteRetained(topic)
        else this.#rows.putRetained({ topic, payload: Buffer.from(kept.payload as Buffer), qos, owner }) // a string is encoded
      },
      done: () => {
        this.#end(topic, account)
        if (isRemoval) this.#messages.delete(topic)
        else this.#messages.set(topic, { packet: kept, account })
      },
      undone: () => {
        if (this.#end(topic, account)) this.#book(topic, this.#messages.get(topic)?.account ?? null)
      },
    }
  }

  /** Keeps a message of the broker itself, or forgets one that is empty; resolves when that is on disk. */
  async keep(packet: RetainedPacket, group: CommitGroup): Promise<void> {
    const { write, done, undone } = this.plan(packet, null)
    try {
      await group.commit(write, done)
    } catch (error) {
      undone()
      throw error
    }
  }

  /** Ends a plan; true when nothing was planned for its topic after it. */
  #end(topic: string, account: Account): boolean {
    return this.#pending.get(topic) === account && this.#pending.delete(topic)
  }

  /** True when this is what the topic retains. */
  isKept(topic: string, payload: Buffer | string): boolean {
    const kept = this.#messages.get(topic)?.packet.payload
    if (typeof kept === 'string' && typeof payload === 'string') return kept === payload
    return kept !== undefined && Buffer.from(kept as Buffer).equals(Buffer.from(payload as Buffer)) // strings as octets
  }

  /** Who has published what is retained. */
  owners(): string[] {
    return [...this.#usage.keys()]
  }

  /** Number of the newest message: what comes later has a higher one. */
  get newest(): number {
    return this.#newest
  }

  /** Hands out nothing of these from now on: it is to be forgotten, which the disk may refuse. Null ends that. */
  withhold(of: RetainedOf | null): void {
    this.#withheld = of
  }

  /** What these identities have published. */
  topicsOf(of: RetainedOf): string[] {
    return [...this.#accounts.keys()].filter((topic) => this.isOf(topic, of))
  }

  /** True while it is one of these identities who has published what the topic retains. */
  isOf(topic: string, of: RetainedOf): boolean {
    return isAccountOf(this.#accounts.get(topic), of)
  }

  *matching(filters: readonly string[]): Generator<RetainedPacket> {
    for (const filter of filters) {
      // Told by the message itself: what is about to take its place has an account before it is here.
      for (const { packet, account } of this.#messages.topicsUnder(filter)) {
        if (this.#withheld === null || !isAccountOf(account, this.#withheld)) yield packet
      }
    }
  }

  #book(topic: string, account: Account | null): void {
    const before = this.#accounts.get(topic)
    if (before !== undefined) this.#add(before, -1)
    if (account === null) this.#accounts.delete(topic)
    else {
      this.#accounts.set(topic, account)
      this.#add(account, 1)
    }
  }

  #add({ owner, bytes }: Account, sign: 1 | -1): void {
    this.#bytes += sign * bytes
    if (owner === null) return
    const usage = this.#usage.get(owner) ?? { messages: 0, bytes: 0 }
    usage.messages += sign
    usage.bytes += sign * bytes
    if (usage.messages === 0) this.#usage.delete(owner)
    else this.#usage.set(owner, usage)
  }
}

function isAccountOf(account: Account | undefined, of: RetainedOf): boolean {
  if (account === undefined || account.owner === null) return false
  return account.number <= (of.get(account.owner) ?? -1)
}

function sizeOf(topic: string, payload: Buffer | string): number {
  return topic.length + Buffer.byteLength(payload) + OVERHEAD
}

/** What the parser hands out is a view on everything that arrived with it. */
function ownCopy(payload: Buffer | string): Buffer | string {
  if (typeof payload === 'string') return payload
  const own = Buffer.allocUnsafeSlow(payload.length)
  own.set(payload)
  return own
}
