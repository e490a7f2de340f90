import type { Clock } from './clock.ts'
import type { Link, LinkOptions, OpenLink } from './mqtt-link.ts'
import type { Telemetry } from './outbox.ts'

/** Waits before the witness connects again after it has lost its link, ms. */
const RETURN_AFTER_MS = 200

/**
 * Subscribes to every device and notes which messages arrive. It knows nothing of what the devices say they sent.
 * The broker keeps its session, so that a lost link loses no message.
 */
export class Witness {
  readonly #seen = new Map<string, Set<number>>()
  readonly #delays: number[] = []
  readonly #clock: Clock
  readonly #open: (clean: boolean) => Promise<Link>
  readonly #openBeside: () => Promise<Link>
  #link: Link | null = null
  #isEnding = false
  #arrived: (() => void) | null = null

  private constructor(
    access: Omit<LinkOptions, 'clean' | 'onMessage' | 'now'>,
    deps: { clock: Clock; openLink: OpenLink },
  ) {
    const onMessage = (topic: string, payload: Buffer) => this.#note(topic, payload)
    this.#clock = deps.clock
    this.#open = (clean) => deps.openLink({ ...access, clean, onMessage, now: deps.clock.now })
    this.#openBeside = () =>
      deps.openLink({ ...access, clientId: `${access.clientId}-knock`, now: deps.clock.now })
  }

  /** @throws MusterError forbidden, unreachable */
  static async open(
    access: Omit<LinkOptions, 'clean' | 'onMessage' | 'now'>,
    deps: { clock: Clock; openLink: OpenLink },
  ): Promise<Witness> {
    const witness = new Witness(access, deps)
    await witness.#connect()
    return witness
  }

  /** From making a message to its arrival, ms, of every message so far. */
  get delays(): readonly number[] {
    return this.#delays
  }

  /** Of the sequences 1 to `last` of a device, those that have not arrived. */
  missing(device: string, last: number): number[] {
    const seen = this.#seen.get(device)
    return Array.from({ length: last }, (_, index) => index + 1).filter((sequence) => !seen?.has(sequence))
  }

  /** Resolves when `isComplete` says so, which is asked after every arrival, or when nothing has arrived for `quietMs`. */
  async waitFor(isComplete: () => boolean, quietMs: number): Promise<void> {
    while (!isComplete()) {
      const woken = new AbortController()
      this.#arrived = () => woken.abort()
      await this.#clock.wait(quietMs, woken.signal)
      if (!woken.signal.aborted) break
    }
    this.#arrived = null
  }

  /** Comes and goes with a client id of its own, which a broker reports. */
  async knock(): Promise<void> {
    await (await this.#openBeside()).end()
  }

  async end(): Promise<void> {
    this.#isEnding = true
    await this.#link?.end()
    const last = await this.#open(true) // a clean session ends the kept one [MQTT-3.1.2-6]
    await last.end()
  }

  async #connect(): Promise<void> {
    const link = await this.#open(false)
    this.#link = link
    void link.closed.then(() => this.#return())
    await link.subscribe('devices/#')
  }

  async #return(): Promise<void> {
    while (!this.#isEnding) {
      await this.#clock.wait(RETURN_AFTER_MS)
      try {
        return await this.#connect()
      } catch {
        // The next round tries again; messages that are missed meanwhile are counted as lost.
      }
    }
  }

  #note(topic: string, payload: Buffer): void {
    const device = topic.split('/')[1]
    const message = readTelemetry(payload)
    if (!device || !message) return
    const seen = this.#seen.get(device) ?? new Set()
    this.#seen.set(device, seen)
    if (!seen.has(message.sequence)) this.#delays.push(this.#clock.now() - message.at)
    seen.add(message.sequence)
    this.#arrived?.()
  }
}

/** Null for what no simulated device has sent: others may publish below `devices/` as well. */
function readTelemetry(payload: Buffer): Telemetry | null {
  try {
    const value: unknown = JSON.parse(payload.toString('utf8'))
    if (typeof value !== 'object' || value === null || !('sequence' in value) || !('at' in value)) return null
    const { sequence, at } = value
    return typeof sequence === 'number' && typeof at === 'number' ? { sequence, at } : null
  } catch {
    return null
  }
}
