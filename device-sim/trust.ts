import { existsSync, readFileSync } from 'node:fs'
import { join } from 'node:path'
import type { CaReply } from '#shared/api'
import { writeDurably } from './durable.ts'

const FILE = 'trust.json'

interface Stored {
  readonly version: number
  readonly roots: readonly string[]
}

/** The roots that a device believes: the one that it was made with, until it has fetched a trust bundle. */
export class Trust {
  readonly #path: string
  #stored: Stored

  private constructor(path: string, stored: Stored) {
    this.#path = path
    this.#stored = stored
  }

  /** @param pinned the root that the device was made with, PEM */
  static open(directory: string, pinned: string): Trust {
    const path = join(directory, FILE)
    const stored = existsSync(path) ? JSON.parse(readFileSync(path, 'utf8')) : { version: 1, roots: [pinned] }
    return new Trust(path, stored) // written by `store` only
  }

  /** PEM. */
  get roots(): string {
    return this.#stored.roots.join('')
  }

  get version(): number {
    return this.#stored.version
  }

  /** Durable before it is used: a bundle that was fetched counts as adopted. */
  async store({ version, roots }: Pick<CaReply, 'version' | 'roots'>): Promise<void> {
    const stored = { version, roots }
    await writeDurably(this.#path, `${JSON.stringify(stored)}\n`)
    this.#stored = stored
  }
}
