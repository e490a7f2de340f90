import type { Socket } from 'node:net'
import type { TLSSocket } from 'node:tls'
import type { Evidence, RefusalErrorCode } from '#shared/errors'
import type { Peer } from '#shared/identity/peer'
import { type Refusal, refusedReport } from '../refusals.ts'
import { addressGroup } from './address-group.ts'
import { Budgets, type Place } from './budgets.ts'
import type { GateDeps } from './gate.ts'
import { Pacer } from './pacing.ts'

export type DoorstepDeps = Pick<GateDeps, 'limits' | 'now' | 'report' | 'sessions'>

interface Standing {
  readonly place: Place
  readonly address: string
}

/** What is before the TLS handshake: a place for each connection, or none, and its turn. */
export class Doorstep {
  readonly #deps: DoorstepDeps
  readonly #budgets: Budgets
  readonly #pacer: Pacer
  readonly #standing = new Map<Socket, Standing>()

  constructor(deps: DoorstepDeps) {
    const { limits, now, sessions } = deps
    this.#deps = deps
    this.#budgets = new Budgets(limits)
    this.#pacer = new Pacer({
      limits,
      clock: () => performance.now(),
      later(work, ms) {
        const timer = setTimeout(work, ms)
        return () => clearTimeout(timer)
      },
      bannedMs: (group) => this.#budgets.bannedMs(group, now()),
      isClosing: () => sessions.isClosing(),
    })
  }

  /** Takes a socket that has just been accepted and is not being read; `enter` begins its handshake. */
  arrived(socket: Socket, enter: () => void): void {
    const address = addressOf(socket)
    socket.on('error', () => socket.destroy()) // 'close' follows
    const place = this.#budgets.take(address)
    if (typeof place === 'string') {
      this.#turnAway(socket, { address, limit: place })
      return
    }
    const arrival = {
      group: place.group,
      enter,
      drop: (limit: string) => this.#turnAway(socket, { address, limit }),
    }
    this.#standing.set(socket, { place, address })
    socket.on('close', () => {
      this.#standing.delete(socket)
      this.#budgets.free(place)
      this.#pacer.leave(arrival)
    })
    this.#pacer.arrive(arrival)
  }

  /** Why this certificate has to come later; null when it may try now. */
  mayAttempt({ fingerprint, kind }: Pick<Peer, 'fingerprint' | 'kind'>, address: string): Refusal | null {
    const { limits, now } = this.#deps
    const times = kind === 'service' ? limits.serviceTimes : 1
    if (this.#budgets.mayAttempt(fingerprint, { now: now(), times })) return null
    return { code: 'rate', evidence: { address, retryAfterS: this.#budgets.retryAfterS } }
  }

  /** Where the client comes from. */
  addressOf(tls: TLSSocket): string {
    const wire = wireOf(tls)
    return (wire && this.#standing.get(wire)?.address) ?? addressOf(tls)
  }

  /** The client of the socket has been let in. Returns the TCP socket that it is on. */
  admitted(tls: TLSSocket): Socket | undefined {
    const wire = wireOf(tls)
    const standing = wire && this.#standing.get(wire)
    if (standing !== undefined) this.#budgets.admitted(standing.place)
    return standing && wire
  }

  /** A handshake came to nothing. False when that need not be reported: it was, less than a minute ago. */
  refused(
    tls: TLSSocket,
    why?: { readonly code: RefusalErrorCode; readonly fingerprint: string | null },
  ): boolean {
    const now = this.#deps.now()
    const isHammering = why?.code === 'rate'
    this.#budgets.refused(this.addressOf(tls), { now, isHammering })
    return !isHammering || this.#budgets.mayTell(why.fingerprint ?? '', now)
  }

  /** The handshake itself failed; what for, if it is known, is reported once a minute for each address. */
  failed(tls: TLSSocket, fault: Evidence | null): void {
    const now = this.#deps.now()
    const address = this.addressOf(tls)
    this.#budgets.refused(address, { now, isHammering: false })
    if (fault === null || !this.#budgets.mayTell(`${addressGroup(address)} ${fault.fault}`, now)) return
    const refusal = { code: 'tls', evidence: { address, ...fault } } as const
    this.#deps.report(refusedReport(refusal, { device: null, fingerprint: null, address }, now))
  }

  /** A handshake came to nothing, of a socket that may have closed since, and is not told from the others of its address. */
  wasted(address: string): void {
    this.#budgets.refused(address, { now: this.#deps.now(), isHammering: false })
  }

  /** Sockets that have a place. */
  open(): number {
    return this.#standing.size
  }

  /** Destroys every socket that has a place. */
  close(): void {
    this.#pacer.stop()
    for (const socket of this.#standing.keys()) socket.destroy()
  }

  /** Without a word to the client, which has not asked anything yet; reported once a minute for each address. */
  #turnAway(socket: Socket, { address, limit }: { address: string; limit: string }): void {
    socket.destroy()
    const now = this.#deps.now()
    const group = addressGroup(address)
    if (!this.#budgets.mayTell(group, now)) return
    const retryAfterS = Math.max(1, Math.ceil(this.#budgets.bannedMs(group, now) / 1_000))
    const refusal = { code: 'rate', evidence: { address, retryAfterS, limit } } as const
    this.#deps.report(refusedReport(refusal, { device: null, fingerprint: null, address }, now))
  }
}

function addressOf({ remoteAddress = '' }: Socket): string {
  return remoteAddress.replace(/^::ffff:/, '')
}

/**
 * The TCP socket below TLS. Node has no public name for it; to ask both sockets for address and ports instead takes four
 * system calls.
 */
function wireOf(tls: TLSSocket): Socket | undefined {
  return (tls as { readonly _parent?: Socket })._parent
}
