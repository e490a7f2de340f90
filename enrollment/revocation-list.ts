import { mkdirSync, readFileSync } from 'node:fs'
import { join } from 'node:path'
import { writeFileDurably } from '#shared/files'
import { signCrl } from './ca/crl.ts'
import type { Issuer } from './ca/issue.ts'
import type { Registry } from './registry/registry.ts'

/** Time from thisUpdate to nextUpdate, ms. */
const VALIDITY_MS = 24 * 3_600_000
/** A CRL older than this is signed anew although nothing was revoked, ms. */
const RENEW_AFTER_MS = VALIDITY_MS / 2

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
  readonly registry: Pick<Registry, 'revokedBy' | 'revocationMark'>
  readonly issuer: Issuer
  /** Holds the number and the newest list, outside the database so that a restore cannot turn them back. */
  readonly directory: string
}

/** The full CRL of one issuer, served from memory. */
export class RevocationList {
  readonly #options: RevocationListOptions
  #published: PublishedCrl | null = null
  #mark = -1

  constructor(options: RevocationListOptions) {
    this.#options = options
  }

  /** Null until the first refresh. */
  get published(): PublishedCrl | null {
    return this.#published
  }

  get url(): string {
    return this.#options.issuer.crlUrl
  }

  /** Signs a new list when something was revoked since the last one, or when the last one is half through its life. */
  async refresh(now: number): Promise<void> {
    const { registry, issuer } = this.#options
    // The mark is read before the entries: a revocation in between is in this list and once more in the next.
    const mark = await registry.revocationMark(issuer.id)
    const last = this.#published
    if (last && mark === this.#mark && now < last.thisUpdate + RENEW_AFTER_MS) return
    // From the last list's time on, so that an expired entry appears once more (RFC 5280 section 3.3).
    const entries = await registry.revokedBy(issuer.id, last?.thisUpdate ?? now - VALIDITY_MS)
    const thisUpdate = Math.floor(now / 1000) * 1000
    const nextUpdate = thisUpdate + VALIDITY_MS
    const number = this.#nextNumber(now)
    const der = await signCrl(issuer, { number, thisUpdate, nextUpdate, entries })
    writeFileDurably(join(this.#options.directory, `${issuer.id}.crl`), der)
    this.#published = { der, number, thisUpdate, nextUpdate, entries: entries.length }
    this.#mark = mark
  }

  /** Stored before it is used. At least the Unix time in seconds, so that it also rises when the file was lost. */
  #nextNumber(now: number): number {
    const path = join(this.#options.directory, `${this.#options.issuer.id}.number`)
    const number = Math.max(readNumber(path) + 1, Math.floor(now / 1000))
    writeFileDurably(path, `${number}\n`)
    return number
  }
}

export function openRevocationList(options: RevocationListOptions): RevocationList {
  mkdirSync(options.directory, { recursive: true, mode: 0o700 })
  return new RevocationList(options)
}

function readNumber(path: string): number {
  try {
    const number = Number.parseInt(readFileSync(path, 'utf8'), 10)
    return Number.isSafeInteger(number) ? number : 0
  } catch {
    return 0 // the first list of this issuer
  }
}
