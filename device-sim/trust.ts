import { existsSync, readFileSync } from 'node:fs'
import { join } from 'node:path'
import type { CaReply } from '#shared/api'
import type { TrustRecord } from '#shared/trust-bundle'
import type { Clock } from './clock.ts'
import { DeviceTime } from './device-time.ts'
import { writeDurably } from './durable.ts'
import { vouchedFor } from './vouched.ts'

const FILE = 'trust.json'

interface Stored {
  readonly version: number
  readonly roots: readonly string[]
}

export interface TrustSource {
  /** The root that the device was made with, PEM. */
  readonly pinned: string
  readonly clock: Clock
  /** PEM of its own newest certificate; empty when it has none. */
  certificate(): string
}

/**
 * What a device believes: the root that it was made with, until it has fetched a trust bundle; and the time as those who
 * lead there have told it.
 */
export class Trust {
  readonly time: DeviceTime
  readonly #path: string
  #stored: Stored
  #turn: Promise<void> = Promise.resolve()

  private constructor(path: string, { stored, source }: { stored: Stored; source: TrustSource }) {
    this.#path = path
    this.#stored = stored
    const certificates = () => source.pinned + source.certificate()
    this.time = new DeviceTime({ clock: source.clock, certificates })
  }

  static open(directory: string, source: TrustSource): Trust {
    const path = join(directory, FILE)
    const made = { version: 1, roots: [source.pinned] }
    const stored: Stored = existsSync(path) ? JSON.parse(readFileSync(path, 'utf8')) : made // written by `store` only
    return new Trust(path, { stored, source })
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
