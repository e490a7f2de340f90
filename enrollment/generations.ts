import { X509Certificate } from 'node:crypto'
import type { CaView, Generation } from '#shared/api/rollover'
import { sha256Hex } from '#shared/pki/keys'
import type { Authority } from './ca/authority.ts'
import type { IssuerRequest } from './ca/awaited-issuers.ts'
import type { Issuer } from './ca/issue.ts'
import { checkClock } from './ca/load-ca.ts'
import type { GenerationKeys } from './ca/open-generation.ts'
import type { IssuerKind } from './ca/profile.ts'
import {
  baseCas,
  currentFirst,
  first,
  followers,
  type Known,
  keyHash,
  knownCa,
  linksOf,
  standing,
  viewOf,
} from './generation-view.ts'
import type { NewRollover, RolloverRecord } from './registry/registry.ts'

/** What a device needs to check the plane, and what the plane itself needs to check devices. */
export interface TrustBundle {
  /** Rises by one whenever a CA comes or goes; 1 before the first rollover. */
  readonly version: number
  /** Trust anchors, PEM; the one that the plane's certificates end in is the first. */
  readonly roots: readonly string[]
  /** NewWithOld and OldWithNew of roots in overlap (RFC 7030 section 4.1.3), PEM. */
  readonly links: readonly string[]
  /** Device CAs, PEM; the one that signs is the first. */
  readonly devices: readonly string[]
  /** Infrastructure CAs, likewise. */
  readonly infrastructures: readonly string[]
}

interface View {
  readonly current: Generation
  readonly device: Issuer
  readonly infrastructure: Issuer
  readonly deviceIssuers: readonly Issuer[]
  readonly infrastructureIssuers: readonly Issuer[]
  readonly bundle: TrustBundle
  readonly infrastructureChain: readonly string[]
  readonly cas: readonly CaView[]
}

/** What has to be done when the CAs have changed: listeners, certificates of the plane, CRLs. */
export type TrustListener = () => Promise<void>

/** Chains by the issuer's id, as long as the view that they are of: every reply to an enrollment carries one. */
const CHAINS = new WeakMap<View, Map<string, string[]>>()

/**
 * The CAs of all generations: those of the first start, and those that rollovers brought. `device` and
 * `infrastructure` are the ones that sign now; a use case reads them once and then goes by what the registry recorded.
 */
export class Generations implements Authority {
  readonly trustDomain: string
  readonly created: boolean
  readonly #base: Authority
  readonly #keys: GenerationKeys
  readonly #opened = new Map<string, Issuer>()
  readonly #listeners: TrustListener[] = []
  #view: View
  #turn: Promise<void> = Promise.resolve()

  constructor(
    base: Authority,
    of: { keys: GenerationKeys; rollovers: readonly RolloverRecord[]; now: number },
  ) {
    this.trustDomain = base.trustDomain
    this.created = base.created
    this.#base = base
    this.#keys = of.keys
    this.#view = this.#look(of.rollovers, of.now)
  }

  get rootId(): string {
    return this.#view.current.root
  }

  get rootPem(): string {
    return this.#view.bundle.roots[0] ?? this.#base.rootPem
  }

  get device(): Issuer {
    return this.#view.device
  }

  get infrastructure(): Issuer {
    return this.#view.infrastructure
  }

  /** Which CAs sign. */
  get current(): Generation {
    return this.#view.current
  }

  /** Every device CA that has not ended, trusted or not: each answers for what it has signed. The current one is the first. */
  get deviceIssuers(): readonly Issuer[] {
    return this.#view.deviceIssuers
  }

  /** Infrastructure CAs that are trusted; the one that signs is the first. */
  get infrastructureIssuers(): readonly Issuer[] {
    return this.#view.infrastructureIssuers
  }

  get bundle(): TrustBundle {
    return this.#view.bundle
  }

  /** What a server sends after its certificate: who trusts an old root only finds the way from the new one. */
  get infrastructureChain(): readonly string[] {
    return this.#view.infrastructureChain
  }

  /** Every CA certificate that a URL may name, for downloads. */
  get cas(): readonly CaView[] {
    return this.#view.cas
  }

  /** The CA that a reservation names. @throws RangeError when it has ended or never was */
  deviceIssuer(id: string): Issuer {
    const issuer = this.deviceIssuers.find((one) => one.id === id)
    if (issuer === undefined) throw new RangeError(`no device CA ${id}`)
    return issuer
  }

  /** The CA that issued, and the root above it, PEM. @throws RangeError as `deviceIssuer` */
  deviceChain(id: string): string[] {
    const chains = CHAINS.get(this.#view) ?? new Map<string, string[]>()
    CHAINS.set(this.#view, chains)
    const chain = chains.get(id) ?? this.#deviceChain(id)
    chains.set(id, chain)
    return chain
  }

  #deviceChain(id: string): string[] {
    const { pem } = this.deviceIssuer(id)
    const issuer = new X509Certificate(pem)
    const root = this.cas.find((ca) => ca.role === 'root' && issuer.checkIssued(new X509Certificate(ca.pem)))
    return [pem, root?.pem ?? this.rootPem]
  }

  /** Called after every change; it is waited for. */
  onChange(listener: TrustListener): void {
    this.#listeners.push(listener)
  }

  /** Takes up what the registry has recorded, one reader after the other: the last one has read last. */
  follow(read: () => Promise<readonly RolloverRecord[]>, now: number): Promise<void> {
    const turn = this.#turn.then(async () => {
      this.#view = this.#look(await read(), now)
      for (const listener of this.#listeners) await listener()
    })
    this.#turn = turn.catch(() => {}) // whoever waits for the turn hears of it
    return turn
  }

  /** The CAs that are to follow those that sign. @throws MusterError conflict (the key of the root is not here) */
  async prepare(
    kind: 'issuing' | 'root',
    of: { now: number; lifetimeMs?: number },
  ): Promise<Pick<NewRollover, 'from' | 'to' | 'certificates'>> {
    const from = this.current
    const certificates = await this.#keys.next(kind, {
      root: { id: this.rootId, pem: this.rootPem },
      from,
      ...of,
    })
    return { from, to: followers(from, certificates), certificates }
  }

  /** Requests for the CAs that are to follow, to be signed by a root that is kept elsewhere. @throws as `requestNext` */
  requestNext(): Promise<IssuerRequest[]> {
    const used = new Set(this.cas.map(({ pem }) => keyHash(pem)))
    return this.#keys.request({ from: this.current, isUsed: (spki) => used.has(sha256Hex(spki)) })
  }

  /** What that root has made of them. @throws as `acceptNext` */
  async accept(
    pems: readonly string[],
    now: number,
  ): Promise<Pick<NewRollover, 'kind' | 'from' | 'to' | 'certificates'>> {
    const from = this.current
    const root = { id: this.rootId, pem: this.rootPem }
    const certificates = await this.#keys.accept({ root, pems, now })
    const to = followers(from, certificates)
    return { kind: to.root === from.root ? 'issuing' : 'root', from, to, certificates }
  }

  /** @throws MusterError clock_wrong */
  checkClock(now: number): void {
    for (const { kind, der } of [this.device, this.infrastructure]) checkClock({ kind, der, now })
  }

  #look(rollovers: readonly RolloverRecord[], now: number): View {
    const known = [
      ...baseCas(this.#base),
      ...rollovers.flatMap(({ certificates }) => certificates.map(knownCa)),
    ]
    const { current, trusted } = standing(this.#base, rollovers)
    const isOpen = ({ notAfter }: Known) => now <= notAfter
    const issuers = (kind: IssuerKind) =>
      currentFirst(
        known.filter((ca) => ca.role === kind && (isOpen(ca) || ca.id === current[kind])),
        current[kind],
      )
    const pems = (role: 'root' | IssuerKind) =>
      currentFirst(
        known.filter((ca) => ca.role === role && trusted.has(ca.id)),
        current[role],
      ).map(({ pem }) => pem)
    const device = issuers('device').map((ca) => this.#open('device', ca))
    const infrastructure = issuers('infrastructure').filter(({ id }) => trusted.has(id))
    const infrastructureIssuers = infrastructure.map((ca) => this.#open('infrastructure', ca))
    const links = linksOf({ known, rollovers, now })
    return {
      current,
      deviceIssuers: device,
      infrastructureIssuers,
      device: first(device),
      infrastructure: first(infrastructureIssuers),
      bundle: {
        version: rollovers.at(-1)?.version ?? 1,
        roots: pems('root'),
        links: links.shown,
        devices: pems('device'),
        infrastructures: pems('infrastructure'),
      },
      infrastructureChain: [first(infrastructureIssuers).pem, ...links.sent],
      cas: known.flatMap((ca) => viewOf(ca, { current, trusted })),
    }
  }

  #open(kind: IssuerKind, { id, pem }: Known): Issuer {
    const isBase = id === this.#base[kind].id
    const issuer = this.#opened.get(id) ?? (isBase ? this.#base[kind] : this.#keys.issuer(kind, { id, pem }))
    this.#opened.set(id, issuer)
    return issuer
  }
}
