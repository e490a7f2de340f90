import type { RefusalErrorCode } from '#shared/errors'
import type { Change, DeviceRecord, HoldRecord, Report } from '#shared/feed'
import type { Log } from '#shared/log'
import { spread } from '#shared/spread'
import { stillLive } from './judge/admission.ts'
import { lacksFactor } from './judge/factor-at-connect.ts'
import type { PositionedChange, Replica } from './replica/replica.ts'
import type { Connection, Selector, Sessions } from './sessions.ts'

export interface EnforcementDeps {
  readonly replica: Replica
  readonly sessions: Pick<
    Sessions,
    'select' | 'close' | 'cleaned' | 'count' | 'setPolicy' | 'setDevice' | 'policyFor'
  >
  report(report: Report): void
  /** Forgets the MQTT sessions, queues and wills of devices. */
  purge(devices: readonly string[]): Promise<void>
  /** There may be orders to forget what is stored, which the replica has. */
  ordered?(): void
  /** Looks through what is stored for devices that are away: a hold is in force. */
  review?(): Promise<void>
  /** A device has changed, and perhaps what it may do: its subscriptions and what waits for it do not follow by themselves. */
  reviewDevice?(device: string): Promise<void>
  /** The record of a certificate with an open session has changed, and perhaps the window for its successor. */
  renewalMoved?(connection: Connection): void
  /** Any device with a session may have something to hear: another bundle to trust, or a window that was moved. */
  newsForAll?(): void
  /** The set of trusted issuers may have changed. */
  trustChanged(): void
  now(): number
  readonly log: Log
}

type AppliedReport = Extract<Report, { type: 'applied' }>

/** Most survivors that a report names; there must be none. */
const NAMED_SURVIVORS = 500

/** Devices that are purged before it is looked again who is back. */
const PURGED = 20

type Judge = (connection: Connection) => RefusalErrorCode | null

/** What a stop did: who was told to go, and what became of the sockets. */
interface Stopped {
  readonly devices: ReadonlySet<string>
  readonly closeMs: readonly number[]
  readonly survivors: string[]
}

/**
 * What a change of the replica means for open sessions. Every method decides before it returns, in the tick of the
 * change: from then on nothing of a refused session is routed. Sockets close after it, paced by `sessions`.
 */
export class Enforcement {
  readonly #deps: EnforcementDeps
  readonly #running = new Set<Promise<void>>()
  #reviewing: Promise<unknown> = Promise.resolve()
  /** The review that has not begun yet. */
  #nextReview: Promise<void> | null = null

  constructor(deps: EnforcementDeps) {
    this.#deps = deps
  }

  /** Holds of an earlier run whose receipt line was not stored: they are in force, and no session is open yet. */
  resumed(): void {
    this.#deps.ordered?.()
    for (const hold of this.#deps.replica.unreportedHolds()) {
      this.#report(hold, { sessionsClosed: 0, closeMs: spread([]), survivors: [] })
    }
  }

  changed(messages: readonly PositionedChange[]): void {
    const stops = messages.map(({ change, at }) => this.#enforce(change, at))
    if (messages.some(({ change: { kind } }) => kind === 'hold' || kind === 'purge')) this.#deps.ordered?.()
    const gone = messages.flatMap(({ change }) => this.#goneBy(change))
    this.#track(Promise.all(stops).then(() => this.#purge(gone)))
  }

  #enforce(change: Change, since: number): Promise<unknown> | undefined {
    switch (change.kind) {
      case 'hold':
        return change.hold.state === 'active' ? this.#applyHold(change.hold, since) : undefined
      case 'certificate': {
        const selector = { kind: 'certificate', id: change.certificate.fingerprint } as const
        const stopped = this.#stop(selector, since, this.#judgeOrRefuse)
        const staying = this.#deps.sessions.select(selector).find(({ refused }) => refused === null)
        if (staying !== undefined) this.#deps.renewalMoved?.(staying)
        return stopped
      }
      case 'device':
        return this.#changeDevice(change.device, since)
      case 'forgotten':
        return this.#stop({ kind: 'device', id: change.device }, since, this.#judgeOrRefuse)
      case 'issuer':
        this.#deps.trustChanged()
        return this.#stop({ kind: 'issuer', id: change.issuer.id }, since, this.#judgeOrRefuse)
      case 'fleet':
        this.#deps.sessions.setPolicy(change.fleet)
        if (change.fleet.factor === undefined) return
        return this.#stop({ kind: 'fleet', id: change.fleet.id }, since, this.#judgeOrRefuse)
      case 'trust':
        this.#deps.newsForAll?.()
        return
      case 'members': // the hold that follows puts them in force
      case 'purge': // carried out below
        return
      default:
        change satisfies never
    }
  }

  async #changeDevice(device: DeviceRecord, since: number): Promise<void> {
    const stopped = this.#stop({ kind: 'device', id: device.id }, since, this.#judgeOrRefuse)
    const fleet = this.#deps.replica.fleet(device.fleet)
    if (fleet !== null) this.#deps.sessions.setDevice({ device, fleet })
    await stopped
    await this.#deps.reviewDevice?.(device.id)
  }

  /** Whose MQTT session ends for good: a rotated device keeps it when its old certificate is revoked. */
  #goneBy(change: Change): readonly string[] {
    if (change.kind === 'forgotten') return [change.device]
    if (change.kind === 'device') return change.device.state === 'retired' ? [change.device.id] : []
    if (change.kind !== 'certificate' || change.certificate.state !== 'revoked') return []
    const { device } = change.certificate
    return this.#deps.replica.hasLiveCertificate(device) ? [] : [device]
  }

  /** A device whose certificate was replaced, or that was moved to another fleet, comes back for its session. */
  #isGoneFor(device: string, code: RefusalErrorCode): boolean {
    return code === 'held' || code === 'retired' || !this.#deps.replica.hasLiveCertificate(device)
  }

  /** After a snapshot: anything may have changed, so every session is judged, in one tick, and every hold reported. */
  replaced(): void {
    const { replica, sessions, now, trustChanged, newsForAll } = this.#deps
    trustChanged()
    newsForAll?.()
    for (const fleet of replica.fleets()) sessions.setPolicy(fleet)
    const held = new Map<string, string[]>(replica.activeHolds().map(({ id }) => [id, []]))
    const codes = new Map<string, RefusalErrorCode>()
    const stopped = this.#stop({ kind: 'all' }, now(), (connection) => {
      const code = this.#judge(connection)
      if (code === null) this.#judgeAnew(connection)
      else codes.set(connection.device, code)
      const hold = code === 'held' ? replica.record(connection.fingerprint)?.hold : null
      if (hold) held.get(hold.id)?.push(connection.device)
      return code
    })
    const holds = replica.unreportedHolds()
    this.#deps.ordered?.()
    this.#track(
      stopped.then(({ closeMs, survivors }) => {
        for (const hold of holds) {
          const own = held.get(hold.id) ?? []
          this.#report(hold, {
            sessionsClosed: own.length,
            closeMs: spread(own.length === 0 ? [] : closeMs),
            survivors: survivors.filter((device) => own.includes(device)),
          })
        }
        const gone = [...codes].filter(([device, code]) => this.#isGoneFor(device, code))
        return this.#purge(gone.map(([device]) => device)).then(() => this.#review())
      }),
    )
  }

  /** Attributes and the own policy of the device may be others than those that the session began with. */
  #judgeAnew(connection: Connection): void {
    const record = this.#deps.replica.record(connection.fingerprint)
    if (record !== null) connection.policy = this.#deps.sessions.policyFor(record, connection.address)
  }

  /** Stops whom these changes stop, without a word to the registry: they are not stored. */
  unstored(changes: readonly Change[]): void {
    for (const change of changes) {
      if (change.kind === 'issuer') this.#deps.trustChanged()
      const [selector, judge] = this.#whomStops(change)
      this.#track(this.#stop(selector, this.#deps.now(), judge))
    }
  }

  #whomStops(change: Change): [Selector, Judge] {
    if (change.kind === 'hold') {
      const { scope } = change.hold
      return scope.kind === 'plan' ? [{ kind: 'all' }, (c) => this.#judge(c)] : [scope, () => 'held']
    }
    if (change.kind === 'certificate')
      return [{ kind: 'certificate', id: change.certificate.fingerprint }, this.#judgeOrRefuse]
    if (change.kind === 'device') return [{ kind: 'device', id: change.device.id }, this.#judgeOrRefuse]
    if (change.kind === 'forgotten') return [{ kind: 'device', id: change.device }, this.#judgeOrRefuse]
    if (change.kind === 'issuer') return [{ kind: 'issuer', id: change.issuer.id }, this.#judgeOrRefuse]
    return [{ kind: 'all' }, this.#judgeOrRefuse]
  }

  /** Resolves when every closing and purging that has begun is over. */
  async settled(): Promise<void> {
    while (this.#running.size > 0) await Promise.all(this.#running)
  }

  async #applyHold(hold: HoldRecord, since: number): Promise<void> {
    const { selector, judge } = this.#aim(hold)
    const { devices, closeMs, survivors } = await this.#stop(selector, since, judge)
    this.#report(hold, { sessionsClosed: closeMs.length, closeMs: spread(closeMs), survivors })
    await this.#purge([...devices])
    await this.#review()
  }

  /** One after the other: each looks through everything, and whoever asks while one runs has his part in the next. */
  #review(): Promise<void> {
    this.#nextReview ??= this.#reviewing.then(async () => {
      this.#nextReview = null
      await this.#deps.review?.()
    })
    this.#reviewing = this.#nextReview.catch(() => {}) // whoever has asked hears it
    return this.#nextReview
  }

  /**
   * Who is in the scope of a hold is held, without a reading of each record: there can be 10 000 of them. Members of
   * a plan are looked up from the shorter side: its members, or the open sessions.
   */
  #aim({ id, scope }: HoldRecord): { selector: Selector; judge: Judge } {
    const { replica, sessions } = this.#deps
    const isOver = !replica.isActive(id) // ended by a change that came with it
    const held: Judge = () => (isOver ? null : 'held')
    if (scope.kind !== 'plan') return { selector: scope, judge: held }
    const members = replica.members(id, sessions.count())
    if (members !== null) return { selector: { kind: 'devices', ids: new Set(members) }, judge: held }
    return { selector: { kind: 'all' }, judge: (c) => (replica.isMember(id, c.device) ? held(c) : null) }
  }

  /** Refuses those of the selected sessions for which `judge` names a code, before it returns its promise. */
  async #stop(selector: Selector, since: number, judge: Judge): Promise<Stopped> {
    const devices = new Set<string>() // whose sessions end for good, which a missing factor does not mean
    const { closeMs, survivors } = await this.#deps.sessions.close(selector, {
      since,
      judge(connection) {
        const code = judge(connection)
        if (code !== null && code !== 'factor') devices.add(connection.device)
        return code
      },
    })
    if (survivors.length > 0) this.#deps.log.error({ survivors }, 'sessions did not close')
    return { devices, closeMs, survivors }
  }

  /** A replica that cannot be read refuses those whom the change is about; all others keep their sessions. */
  readonly #judgeOrRefuse: Judge = (connection) => {
    try {
      return this.#judge(connection)
    } catch (error) {
      this.#deps.log.error({ err: error }, 'cannot read the replica')
      return 'unrecorded'
    }
  }

  #judge(connection: Connection): RefusalErrorCode | null {
    const record = this.#deps.replica.record(connection.fingerprint)
    const code = stillLive(record, this.#deps.now())
    if (code !== null || record === null) return code ?? 'unrecorded'
    // The session is indexed under what it was admitted as; a device that has moved connects again as what it is.
    const isSame = record.device.fleet === connection.fleet && record.device.batch === connection.batch
    if (!isSame) return 'unrecorded'
    return lacksFactor(connection, record) ? 'factor' : null
  }

  #report(hold: HoldRecord, line: Pick<AppliedReport, 'sessionsClosed' | 'closeMs' | 'survivors'>): void {
    const survivors = line.survivors.slice(0, NAMED_SURVIVORS)
    const position = this.#deps.replica.cursor()?.position ?? 0
    this.#deps.report({ type: 'applied', at: this.#deps.now(), hold: hold.id, position, ...line, survivors })
  }

  /** What closing leaves behind has to be there already. Leaves out devices that are back: what they have now is theirs. */
  async #purge(devices: readonly string[]): Promise<void> {
    const { sessions, purge } = this.#deps
    if (devices.length === 0) return
    await sessions.cleaned()
    const isGone = (id: string) => sessions.select({ kind: 'device', id }).every((c) => c.refused !== null)
    for (let at = 0; at < devices.length; at += PURGED) {
      const gone = devices.slice(at, at + PURGED).filter(isGone)
      if (gone.length > 0) await purge(gone)
    }
  }

  #track(work: Promise<unknown>): void {
    const running: Promise<void> = work
      .then(() => {})
      .catch((error: unknown) => this.#deps.log.error({ err: error }, 'enforcement failed'))
      .finally(() => this.#running.delete(running))
    this.#running.add(running)
  }
}
