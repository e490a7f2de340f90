import { isMusterError } from '#shared/errors'
import { hintTopic, type RenewalHint, readHint } from '#shared/renewal-hint'
import { fullJitter, type Random } from './backoff.ts'
import type { Clock } from './clock.ts'
import type { Believed } from './enroll-connection.ts'
import type { OpenLink } from './mqtt-link.ts'

/** Longest single wait, ms: timers of Node take no more than 2^31, and the clock may be set. */
const LONGEST_WAIT_MS = 3_600_000
/** A rotation that has failed is not asked for again by anybody: the broker says the same hint once a connection. */
const RETRY = { baseMs: 60_000, capMs: LONGEST_WAIT_MS }

export interface HintsOptions {
  readonly clock: Clock
  readonly random: Random
  /** What the device with this id believes, and how it asks for the time; without it the clock is right. */
  readonly time?: { of(device: string): Believed | undefined; ask(trust: Believed): Promise<void> }
  /** Rotates the device with this id. What fails is tried again while the certificate of the hint lives. */
  rotate(device: string, signal: AbortSignal): Promise<void>
}

/** Listens to what the broker says about renewal, and rotates each device at a moment of its window. */
export class RenewalHints {
  readonly #options: HintsOptions
  readonly #stopped = new AbortController()
  readonly #latest = new Map<string, { readonly text: string; readonly replaced: AbortController }>()

  constructor(options: HintsOptions) {
    this.#options = options
  }

  /** Links that hear the hints of their device. A subscription that is denied changes nothing else. */
  hearing(openLink: OpenLink): OpenLink {
    return async (options) => {
      const topic = hintTopic(options.clientId)
      const onMessage = (at: string, payload: Buffer) => {
        const hint = at === topic ? readHint(payload) : null
        if (hint === null) options.onMessage?.(at, payload)
        else void this.#heard(options.clientId, hint)
      }
      const link = await openLink({ ...options, onMessage })
      link.subscribe(topic).catch(() => {}) // the link has closed, or the policy denies it
      return link
    }
  }

  stop(): void {
    this.#stopped.abort()
  }

  /** The newest hint of a device counts; the same again does not begin anew. */
  async #heard(device: string, hint: RenewalHint): Promise<void> {
    const { clock, random } = this.#options
    const text = JSON.stringify(hint)
    const before = this.#latest.get(device)
    if (before?.text === text) return
    before?.replaced.abort()
    const replaced = new AbortController()
    this.#latest.set(device, { text, replaced })
    const signal = AbortSignal.any([replaced.signal, this.#stopped.signal])
    const { renewAfter, renewBefore } = hint
    const now = () => (this.#options.time?.of(device)?.time ?? clock).now()
    let at = renewAfter + random() * Math.max(0, renewBefore - renewAfter)
    for (let failed = 0; ; failed++) {
      await this.#until(at, { device, now, signal })
      if (signal.aborted) return
      if (await this.#rotates(device)) return
      at = now() + fullJitter(failed, { ...RETRY, random })
      if (at >= hint.notAfter) return
    }
  }

  /** A device whose clock was never set would renew at the wrong time, or never: it asks before it waits. */
  async #until(
    at: number,
    { device, now, signal }: { device: string; now(): number; signal: AbortSignal },
  ): Promise<void> {
    const { clock } = this.#options
    for (;;) {
      await this.#learnTime(device)
      const left = at - now()
      if (left <= 0 || signal.aborted) return
      await clock.wait(Math.min(left, LONGEST_WAIT_MS), signal)
    }
  }

  /** Once it is known it is counted from there; else it is asked for again after the next wait. */
  async #learnTime(device: string): Promise<void> {
    const { time } = this.#options
    const trust = time?.of(device)
    if (trust === undefined || trust.time.isKnown) return
    try {
      await time?.ask(trust)
    } catch (error) {
      if (!isMusterError(error)) throw error
    }
  }

  /** False: the device keeps the pair that it has. */
  async #rotates(device: string): Promise<boolean> {
    try {
      await this.#options.rotate(device, this.#stopped.signal)
      return true
    } catch {
      return false
    }
  }
}
