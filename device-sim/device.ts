import { EventEmitter } from 'node:events'
import { type ErrorCode, isMusterError, type MusterError } from '#shared/errors'
import type { DeviceId } from '#shared/identity/device'
import { generateKey, privateKeyPem, readPrivateKey } from '#shared/pki/keys'
import { createCsr } from '#shared/pki/x509'
import type { TrustRecord } from '#shared/trust-bundle'
import { fullJitter, type Random } from './backoff.ts'
import type { Clock } from './clock.ts'
import { type Credentials, chainOf, type IssuedPair } from './credential.ts'
import { inTime } from './device-time.ts'
import type { EnrollClient } from './enroll-client.ts'
import type { Link, OpenLink } from './mqtt-link.ts'
import { Outbox } from './outbox.ts'
import { Trust } from './trust.ts'

export interface DeviceDeps {
  /** `mqtts://host:port`. */
  readonly broker: string
  /** PEM of the pinned root. */
  readonly ca: string
  readonly clock: Clock
  readonly random: Random
  readonly enrollClient: EnrollClient
  readonly openLink: OpenLink
  /** Tells a step of a rotation; tests end the process in it. */
  readonly reached: (step: `rotate.${number}`) => void
}

/** A CONNECT that the broker answered with no. */
export interface Refused {
  readonly at: number
  readonly returnCode: number
  /** True when a TLS session of an accepted connection was offered. */
  readonly offeredSession: boolean
}

/** What happens to a device, as it happens. */
export interface DeviceEvents {
  /** A link closed that the device had neither ended nor replaced; the time of the close. */
  lost: [at: number]
  refused: [Refused]
}

const RECONNECT = { baseMs: 100, capMs: 30_000 }
/** Refusals that a device remembers. */
const REMEMBERED = 20

/**
 * One device: its pair, its link, and the messages that no broker has acknowledged yet. It returns by itself when
 * it loses its link, with full jitter, and never gives up; what it cannot send waits in the outbox.
 */
export class Device {
  readonly id: DeviceId
  readonly credentials: Credentials
  readonly outbox: Outbox
  readonly trust: Trust
  readonly events = new EventEmitter<DeviceEvents>()
  readonly refusals: Refused[] = []
  readonly #deps: DeviceDeps
  readonly #stopped = new AbortController()
  #link: Link | null = null
  /** A TLS session stands for the certificate it was made with, so it is offered with that pair only. */
  #session: { pair: number; ticket: Buffer } | null = null
  /** Connecting and switching over happen one at a time. */
  #turn: Promise<unknown> = Promise.resolve()
  #isSwitching = false

  constructor(id: DeviceId, options: { credentials: Credentials; deps: DeviceDeps }) {
    this.id = id
    this.credentials = options.credentials
    this.outbox = new Outbox(`devices/${id}/telemetry`, options.deps.clock.now)
    this.#deps = options.deps
    const certificate = () => this.credentials.current()?.certificate ?? ''
    const { ca: pinned, clock } = options.deps
    this.trust = Trust.open(this.credentials.directory, { pinned, clock, certificate })
  }

  get isConnected(): boolean {
    return this.#link !== null
  }

  /** True when the link resumed a TLS session. */
  get isResumed(): boolean {
    return this.#link?.resumed ?? false
  }

  /** Gets the first certificate, unless there is one. @throws MusterError as the enrollment service refuses */
  async enroll(token: string): Promise<void> {
    if (this.credentials.current()) return
    const { key, certificate } = await this.credentials.begin(newKey)
    if (certificate === null) {
      const csr = await this.#csr(key)
      const reply = await this.#deps.enrollClient.enroll({ trust: this.trust, token, csr })
      await this.credentials.store(chainOf(reply))
      await this.credentials.promote()
      return this.#followTrust(reply.trustVersion)
    }
    await this.credentials.promote()
  }

  /**
   * Connects, and again until it is accepted. From then on the device keeps itself connected.
   * @throws MusterError the last failure when the signal aborts first
   */
  connect(signal: AbortSignal): Promise<void> {
    const again: ErrorCode[] = ['unreachable', 'forbidden'] // a hold may be lifted
    return this.#persist(() => this.#inTurn(() => this.#connectOnce()), { signal, again })
  }

  /** Makes the next message and sends it now, or when there is a link. False: too many wait already. */
  publish(): boolean {
    const message = this.outbox.add()
    if (message && this.#link) this.outbox.send(message, this.#link)
    return message !== null
  }

  /**
   * Rotation in two phases, so that at no moment the device depends on one pair that may not work: a new key
   * beside the old one, a certificate for it, a connection with it; only then the old pair goes.
   * A rotation that was cut is taken up where it stopped.
   * @throws MusterError as the enrollment service refuses; forbidden when the broker refuses the new pair, in which
   *   case the device has gone back to the old one; unreachable when the signal aborts first
   */
  async rotate(signal: AbortSignal): Promise<void> {
    const { reached, enrollClient } = this.#deps
    const pair = this.#pair()
    const candidate = await this.credentials.begin(newKey)
    reached('rotate.1') // 1. the new key is on disk, beside the old pair
    if (candidate.certificate === null) {
      const csr = await this.#csr(candidate.key)
      const reply = await enrollClient.renew({ trust: this.trust, pair, csr })
      reached('rotate.2') // 2. the registry has issued a certificate that the device has not stored
      await this.credentials.store(chainOf(reply))
      reached('rotate.3') // 3. two whole pairs; `current` names the old one
      await this.#followTrust(reply.trustVersion)
    }
    await this.#persist(() => this.#inTurn(() => this.#switchOver()), { signal, again: ['unreachable'] })
  }

  /** Takes up what the broker says of the trust bundle, then fetches the whole one: so the plane sees who has it. */
  async heardTrust(bundle: TrustRecord): Promise<void> {
    await this.trust.learn(bundle)
    await this.#followTrust(bundle.version)
  }

  /** Fetches the trust bundle when there is a newer one; the next renewal tells of it again when this one fails. */
  async #followTrust(version = 1): Promise<void> {
    if (version <= this.trust.version) return
    try {
      const { enrollClient } = this.#deps
      await this.trust.store(await enrollClient.bundle({ trust: this.trust, pair: this.#pair() }))
    } catch (error) {
      if (!isMusterError(error)) throw error
    }
  }

  /** Disconnects for good. */
  async stop(): Promise<void> {
    this.#stopped.abort()
    const link = this.#link
    this.#link = null
    await link?.end()
  }

  async #connectOnce(): Promise<void> {
    if (this.#link || this.#stopped.signal.aborted) return
    if (this.credentials.candidate()?.certificate) {
      try {
        return await this.#switchOver()
      } catch (error) {
        if (!isMusterError(error, 'forbidden')) throw error
      }
    }
    this.#adopt(await this.#open(this.#pair()))
  }

  /** Connects with the candidate and promotes it at CONNACK 0; a refused one is given up. */
  async #switchOver(): Promise<void> {
    const { reached } = this.#deps
    const candidate = this.credentials.candidate()
    if (!candidate?.certificate) return // a reconnect has switched over already
    const before = this.#link
    this.#isSwitching = true
    let link: Link | undefined
    try {
      link = await this.#open({ ...candidate, certificate: candidate.certificate })
      reached('rotate.4') // 4. the broker has seen the new certificate: the overlap of the old one has begun
      await this.credentials.promote()
      reached('rotate.5') // 5. `current` names the new pair
      await this.credentials.tidy()
      reached('rotate.6') // 6. the old pair is gone
      this.#adopt(link)
    } catch (error) {
      if (isMusterError(error, 'forbidden')) await this.credentials.discard()
      void link?.end() // accepted, and then the disk refused: both pairs are good, and the next attempt decides
      if (before && !this.#link) this.#comeBack(this.#deps.clock.now())
      throw error
    } finally {
      this.#isSwitching = false
    }
  }

  async #open(pair: IssuedPair): Promise<Link> {
    const { broker: url, openLink, enrollClient } = this.#deps
    const session = this.#session?.pair === pair.number ? this.#session.ticket : undefined
    const { certificate, key } = pair
    const access = { url, certificate, key, session, clientId: this.id, now: this.#deps.clock.now }
    try {
      return await inTime(
        () => openLink({ ...access, ca: this.trust.roots, time: this.trust.time }),
        () => enrollClient.time(this.trust),
      )
    } catch (error) {
      if (isMusterError(error, 'forbidden')) this.#note(error, session !== undefined)
      throw error
    }
  }

  #note(error: MusterError, offeredSession: boolean): void {
    const returnCode = Number(error.evidence.returnCode)
    const refused = { at: this.#deps.clock.now(), returnCode, offeredSession }
    this.refusals.push(refused)
    if (this.refusals.length > REMEMBERED) this.refusals.shift()
    this.events.emit('refused', refused)
  }

  /** The link becomes the device's; what the one before did not get acknowledged is sent again on it. */
  #adopt(link: Link): void {
    if (this.#stopped.signal.aborted) return void link.end()
    const before = this.#link
    const { number } = this.#pair()
    this.#link = link
    void link.closed.then((at) => this.#closed(link, { at, pair: number }))
    this.outbox.sendAll(link)
    void before?.end() // the broker is ending it as well: one client id, one connection [MQTT-3.1.4-2]
  }

  #closed(link: Link, closing: { at: number; pair: number }): void {
    const ticket = link.session()
    if (ticket && closing.pair === this.credentials.current()?.number) {
      this.#session = { pair: closing.pair, ticket }
    }
    if (this.#link !== link) return
    this.#link = null
    if (!this.#isSwitching) this.#comeBack(closing.at) // else the new link has taken over, or #switchOver comes back
  }

  #comeBack(lostAt: number): void {
    const { signal } = this.#stopped
    if (signal.aborted) return
    this.events.emit('lost', lostAt)
    const { clock, random } = this.#deps
    void clock
      .wait(fullJitter(0, { ...RECONNECT, random }), signal)
      .then(() => this.connect(signal))
      .catch(() => {
        // connect() ends with an error only when the device is stopped.
      })
  }

  /** Repeats an attempt that fails with one of `again`, until a signal says stop. */
  async #persist(
    attempt: () => Promise<void>,
    options: { signal: AbortSignal; again: ErrorCode[] },
  ): Promise<void> {
    const { clock, random } = this.#deps
    const signal = AbortSignal.any([options.signal, this.#stopped.signal])
    for (let failed = 0; ; failed++) {
      try {
        return await attempt()
      } catch (error) {
        if (!isMusterError(error, ...options.again)) throw error
        await clock.wait(fullJitter(failed, { ...RECONNECT, random }), signal)
        if (signal.aborted) throw error
      }
    }
  }

  #inTurn(work: () => Promise<void>): Promise<void> {
    const turn = this.#turn.then(work)
    this.#turn = turn.catch(() => {
      // Whoever waits for the turn hears of it; the next one starts all the same.
    })
    return turn
  }

  #pair(): IssuedPair {
    const pair = this.credentials.current()
    if (!pair) throw new TypeError(`device "${this.id}" has no certificate`)
    return pair
  }

  async #csr(key: string): Promise<string> {
    return (await createCsr({ key: readPrivateKey(key), commonName: this.id })).pem
  }
}

function newKey(): string {
  return privateKeyPem(generateKey())
}
