import { mkdirSync, readFileSync } from 'node:fs'
import { join } from 'node:path'
import { setImmediate } from 'node:timers/promises'
import { writeFileDurably } from '#shared/files'
import { readThisUpdate } from '#shared/pki/crl'
import { signCrl } from './ca/crl.ts'
import type { Issuer } from './ca/issue.ts'
import { RevokedEntries } from './ca/revoked-entries.ts'
import { shardOf, shardUrl } from './ca/shard.ts'
import type { Registry } from './registry/registry.ts'

/** Time from thisUpdate to nextUpdate, ms. */
const VALIDITY_MS = 24 * 3_600_000
/** A CRL older than this is signed anew although nothing was revoked, ms. */
const RENEW_AFTER_MS = VALIDITY_MS / 2
/** Revocations that are read and encoded in one turn of the event loop. */
const SLICE = 1_000

/** A CRL as it is served. */
export interface PublishedCrl {
  readonly der: Buffer
  /** RFC 5280 section 5.2.3; never repeats or falls. */
  readonly number: number
  readonly thisUpdate: number
  readonly nextUpdate: number
  readonly entries: number
}

export interface RevocationListOptions {
  readonly registry: Pick<Registry, 'revokedAfter' | 'revocationMark'>
  readonly issuer: Issuer
  /** Holds the number and the newest full list, outside the database so that a restore cannot turn them back. */
  readonly directory: string
}

/** The entries of one shard, and the list that was signed last. */
interface Shard {
  readonly entries: RevokedEntries
  published: PublishedCrl | null
  /** Of the entries, when the list was signed. */
  revision: number
}

/**
 * The CRLs of one issuer, served from memory: the full one, which certificates from before there were shards name,
 * and the shards. Each revocation is read and encoded once; a new list is a copy of what is there, and a signature.
 */
export class RevocationList {
  readonly #options: RevocationListOptions
  readonly #shards: readonly Shard[]
  #published: PublishedCrl | null = null
  /** Of the newest revocation that was read, and of the newest on the full list. */
  #mark = 0
  #publishedMark = 0
  #refreshing: Promise<void> = Promise.resolve()

  constructor(options: RevocationListOptions) {
    this.#options = options
    const count = Math.max(1, options.issuer.crlShards)
    const shard = () => ({ entries: new RevokedEntries(), published: null, revision: 0 })
    this.#shards = Array.from({ length: count }, shard)
  }

  /** The full list; null until the first refresh. */
  get published(): PublishedCrl | null {
    return this.#published
  }

  get url(): string {
    return this.#options.issuer.crlUrl
  }

  /** 0 when the issuer has none. */
  get shards(): number {
    return this.#options.issuer.crlShards
  }

  /** Null until the first refresh. @throws RangeError when there is no such shard */
  shard(number: number): PublishedCrl | null {
    const shard = this.#shards[number]
    if (shard === undefined || number >= this.shards) throw new RangeError(`no shard ${number}`)
    return shard.published
  }

  /** The earliest nextUpdate of all lists, ms since 1970; null until the first refresh. */
  get nextUpdate(): number | null {
    const lists = [
      this.#published,
      ...(this.shards === 0 ? [] : this.#shards.map(({ published }) => published)),
    ]
    if (lists.some((list) => list === null)) return null
    return Math.min(...lists.map((list) => list?.nextUpdate ?? 0))
  }

  /**
   * Signs the lists to which something was added, and those that are half through their lives. Other work gets its
   * turn after every slice of revocations and every signature.
   */
  refresh(now: number): Promise<void> {
    // one after the other: two at a time would read the same revocations
    const refreshed = this.#refreshing.then(() => this.#refresh(now))
    this.#refreshing = refreshed.catch(() => {}) // the caller hears of it
    return refreshed
  }

  async #refresh(now: number): Promise<void> {
    await this.#readOn()
    const toSign = this.#shards.filter(isToSign(now))
    const full = this.#published
    const isFullDue = full === null || this.#publishedMark !== this.#mark || isDue(full, now)
    if (!isFullDue && (this.shards === 0 || toSign.length === 0)) return
    const number = this.#nextNumber(now)
    if (this.shards > 0) for (const shard of toSign) await this.#signShard(shard, { now, number })
    if (isFullDue) await this.#signFull(now, number)
  }

  async #signShard(shard: Shard, at: { now: number; number: number }): Promise<void> {
    this.#dropExpired(shard)
    const url = shardUrl(this.#options.issuer, this.#shards.indexOf(shard))
    const { revision } = shard.entries
    shard.published = await this.#sign([shard.entries], { ...at, url })
    shard.revision = revision
    await setImmediate()
  }

  /** Adds what was revoked since the last time. */
  async #readOn(): Promise<void> {
    const { registry, issuer } = this.#options
    if ((await registry.revocationMark(issuer.id)) <= this.#mark) return
    // From before the last lists on, so that an expired entry appears once more (RFC 5280 section 3.3); no shard is
    // older than its life.
    const last = this.#published?.thisUpdate ?? this.#storedThisUpdate() ?? 0
    const notExpiredAt = last - VALIDITY_MS
    for (;;) {
      const page = await registry.revokedAfter(issuer.id, { mark: this.#mark, notExpiredAt, limit: SLICE })
      for (const revocation of page) {
        const shard = this.#shards[shardOf(revocation.serial, this.#shards.length)]
        shard?.entries.add(revocation)
        this.#mark = revocation.mark
      }
      if (page.length < SLICE) return
      await setImmediate()
    }
  }

  async #signFull(now: number, number: number): Promise<void> {
    if (this.shards === 0) for (const shard of this.#shards) this.#dropExpired(shard)
    const { directory, issuer } = this.#options
    const entries = this.#shards.map((shard) => shard.entries)
    const mark = this.#mark
    const full = await this.#sign(entries, { now, number, url: issuer.crlUrl })
    writeFileDurably(join(directory, `${issuer.id}.crl`), full.der)
    this.#published = full
    this.#publishedMark = mark
  }

  /** An entry goes when both lists that it is on have shown it after its certificate expired. */
  #dropExpired({ entries, published }: Shard): void {
    const seen = [this.#published, ...(this.shards === 0 ? [] : [published])].map(
      (list) => list?.thisUpdate ?? 0,
    )
    entries.dropExpired(Math.min(...seen))
  }

  async #sign(
    lists: readonly RevokedEntries[],
    { now, number, url }: { now: number; number: number; url: string },
  ): Promise<PublishedCrl> {
    const thisUpdate = Math.floor(now / 1000) * 1000
    const nextUpdate = thisUpdate + VALIDITY_MS
    const entries = lists.reduce((sum, { count }) => sum + count, 0)
    const request = { number, thisUpdate, nextUpdate, entries: lists, url }
    return { der: await signCrl(this.#options.issuer, request), number, thisUpdate, nextUpdate, entries }
  }

  /**
   * Stored before it is used. At least the Unix time in seconds, so that it also rises when the file was lost. The
   * lists of one refresh share it: each is a series of its own (RFC 5280 section 5.2.3).
   */
  #nextNumber(now: number): number {
    const { directory, issuer } = this.#options
    const path = join(directory, `${issuer.id}.number`)
    const number = Math.max(readNumber(path) + 1, Math.floor(now / 1000))
    writeFileDurably(
      path,
      `${number}
`,
    )
    return number
  }

  /** Of the newest list that an earlier process has published, ms; null when there is none to be read. */
  #storedThisUpdate(): number | null {
    const { directory, issuer } = this.#options
    try {
      return readThisUpdate(readFileSync(join(directory, `${issuer.id}.crl`)))
    } catch {
      return null // then everything that ever was revoked is listed once
    }
  }
}

export function openRevocationList(options: RevocationListOptions): RevocationList {
  mkdirSync(options.directory, { recursive: true, mode: 0o700 })
  return new RevocationList(options)
}

function isDue({ thisUpdate }: PublishedCrl, now: number): boolean {
  return now >= thisUpdate + RENEW_AFTER_MS
}

function isToSign(now: number): (shard: Shard) => boolean {
  return ({ entries, published, revision }) =>
    published === null || revision !== entries.revision || isDue(published, now)
}

function readNumber(path: string): number {
  try {
    const number = Number.parseInt(readFileSync(path, 'utf8'), 10)
    return Number.isSafeInteger(number) ? number : 0
  } catch {
    return 0 // the first list of this issuer
  }
}
