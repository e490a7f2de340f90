import { X509Certificate } from 'node:crypto'
import { isMusterError, MusterError } from '#shared/errors'
import { splitPem } from '#shared/pki/pem'
import { type Clock, systemClock } from './clock.ts'
import type { Validity } from './server-chain.ts'

/** What tells a device the time. */
export interface TimeSource {
  readonly clock: Clock
  /** PEM of every certificate that the device has: it is later than the newest of them was made. */
  certificates(): string
}

/**
 * The time as a device believes it. Its own clock may be at 1970, years ahead, or somewhere else after each start; so it
 * is no more than the first guess. From the first answer of the enrollment service on, which came over a chain that leads to the
 * pinned root, the device counts from the Date of the newest answer.
 *
 * It is never before the device's newest certificate was made. That floor lies on disk with the certificates, and it bounds what
 * somebody with the key of an old server certificate could say.
 */
export class DeviceTime {
  readonly #source: TimeSource
  #heard: { readonly date: number; readonly at: number } | null = null

  constructor(source: TimeSource) {
    this.#source = source
  }

  /** True when it was heard since the device was started. */
  get isKnown(): boolean {
    return this.#heard !== null
  }

  /** Ms since 1970, UTC. */
  now(): number {
    const now = this.#source.clock.now()
    if (this.#heard === null) return Math.max(now, this.floor())
    return this.#heard.date + (now - this.#heard.at)
  }

  /** It is not before this, ms since 1970. */
  floor(): number {
    const begun = splitPem(this.#source.certificates()).map((pem) =>
      new X509Certificate(pem).validFromDate.getTime(),
    )
    return Math.max(0, ...begun)
  }

  /** @throws MusterError unreachable, about dates, when a chain is not good now */
  judge(host: string, { from, to }: Validity): void {
    const now = this.now()
    if (now >= from && now < to + 1000) return
    const [says, begins, ends] = [now, from, to].map((at) => new Date(at).toISOString())
    throw new MusterError(
      'unreachable',
      `Cannot trust "${host}": its certificate is good from ${begins} to ${ends}, and for this device it is ${says}; fix: let the device reach the enrollment service, which tells the time, or set its clock`,
      { evidence: { now, serverFrom: from, serverTo: to } },
    )
  }

  /**
   * Takes the time from the Date of an answer (RFC 9110 section 6.6.1) that came over a proven chain.
   * @param date ms since 1970
   * @throws MusterError unreachable when it cannot be: before the floor, or when the chain itself was not good then
   */
  hear(date: number, of: { host: string; validity: Validity }): void {
    const { from, to } = of.validity
    const floor = this.floor()
    if (date >= Math.max(floor, from) && date < to + 1000) {
      this.#heard = { date, at: this.#source.clock.now() }
      return
    }
    const text = Number.isNaN(date) ? 'no date' : new Date(date).toISOString()
    const why =
      date < floor
        ? `this device has a certificate of ${new Date(floor).toISOString()}`
        : 'its own certificate is not good then'
    throw new MusterError(
      'unreachable',
      `Cannot take the time from "${of.host}": it says ${text}, and ${why}; fix: set the clock of the enrollment service`,
    )
  }
}

/** For whoever has a clock that is right: nothing else is believed. */
export function machineTime(now: () => number): Pick<DeviceTime, 'judge'> {
  return new DeviceTime({ clock: { ...systemClock, now }, certificates: () => '' })
}

/** Does it; when only the dates of a server's chain do not hold, learns the time first and does it once more. */
export async function inTime<Value>(work: () => Promise<Value>, learn: () => Promise<void>): Promise<Value> {
  try {
    return await work()
  } catch (error) {
    if (!isMusterError(error, 'unreachable') || error.evidence.serverFrom === undefined) throw error
    await learn()
    return await work()
  }
}
