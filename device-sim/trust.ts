import { existsSync, readFileSync } from 'node:fs'
import { join } from 'node:path'
import type { CaReply } from '#shared/api'
import type { TrustRecord } from '#shared/trust-bundle'
import { writeDurably } from './durable.ts'
import { vouchedFor } from './vouched.ts'

const FILE = 'trust.json'

interface Stored {
  readonly version: number
  readonly roots: readonly string[]
}

/** The roots that a device believes: the one that it was made with, until it has fetched a trust bundle. */
export class Trust {
  readonly #path: string
  #stored: Stored
  #turn: Promise<void> = Promise.resolve()

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
  store({ version, roots }: Pick<CaReply, 'version' | 'roots'>): Promise<void> {
    return this.#change((stored) => (version > stored.version ? { version, roots } : stored))
  }

  /**
   * Adds the new roots that one of ours vouches for; who told us of them does not matter then. Nothing is taken away,
   * and the version stays: the whole bundle is what the enrollment service says.
   */
  learn(bundle: TrustRecord): Promise<void> {
    return this.#change((stored) => {
      const added = vouchedFor(bundle, stored.roots)
      return added.length === 0 ? stored : { ...stored, roots: [...stored.roots, ...added] }
    })
  }

  /** One change after the other, each on what the one before has left. */
  #change(next: (stored: Stored) => Stored): Promise<void> {
    const turn = this.#turn.then(async () => {
      const stored = next(this.#stored)
      if (stored === this.#stored) return
      await writeDurably(this.#path, `${JSON.stringify(stored)}\n`)
      this.#stored = stored
    })
    this.#turn = turn.catch(() => {}) // whoever waits for the turn hears of it
    return turn
  }
}
