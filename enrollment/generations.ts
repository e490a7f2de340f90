import { X509Certificate } from 'node:crypto'
import type { CaView, Generation } from '#shared/api/rollover'
import type { Authority } from './ca/authority.ts'
import type { Issuer } from './ca/issue.ts'
import { checkClock } from './ca/load-ca.ts'
import type { GenerationKeys } from './ca/open-generation.ts'
import type { IssuerKind } from './ca/profile.ts'
import type { CaRole, NewRollover, RolloverRecord } from './registry/registry.ts'

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

interface Known {
  readonly id: string
  readonly role: CaRole
  readonly pem: string
  readonly notBefore: number
  readonly notAfter: number
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
    const idOf = (role: 'root' | IssuerKind) =>
      certificates.find((one) => one.role === role)?.id ?? from[role]
    const to = { root: idOf('root'), device: idOf('device'), infrastructure: idOf('infrastructure') }
    return { from, to, certificates }
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

function baseCas({ rootId, rootPem, device, infrastructure }: Authority): Known[] {
  return [
    knownCa({ id: rootId, role: 'root', pem: rootPem }),
    knownCa({ id: device.id, role: 'device', pem: device.pem }),
    knownCa({ id: infrastructure.id, role: 'infrastructure', pem: infrastructure.pem }),
  ]
}

function knownCa({ id, role, pem }: { id: string; role: CaRole; pem: string }): Known {
  const { validFromDate, validToDate } = new X509Certificate(pem)
  return { id, role, pem, notBefore: validFromDate.getTime(), notAfter: validToDate.getTime() }
}

/** Which generation signs, and which CAs are trusted, after all rollovers in order. */
function standing(
  { rootId, device, infrastructure }: Authority,
  rollovers: readonly RolloverRecord[],
): { current: Generation; trusted: ReadonlySet<string> } {
  const base: Generation = { root: rootId, device: device.id, infrastructure: infrastructure.id }
  let current = base
  let trusted = Object.values(base)
  for (const { state, from, to } of rollovers) {
    current = state === 'cut-over' || state === 'finished' ? to : from
    const isOpen = state !== 'finished' && state !== 'aborted'
    trusted = [from, to].filter((one) => isOpen || one === current).flatMap((one) => Object.values(one))
  }
  return { current, trusted: new Set(trusted) }
}

/**
 * The bundle shows the links of an open rollover. Servers go on sending those from each new root to the one before it
 * until that has ended: a device that slept through the overlap still finds its way.
 */
function linksOf(of: { known: readonly Known[]; rollovers: readonly RolloverRecord[]; now: number }) {
  const { rollovers, now } = of
  const newest = rollovers.at(-1)
  const open = newest?.kind === 'root' && newest.endedAt === null ? newest : undefined
  const shown =
    open?.certificates.filter(({ role }) => role === 'new-with-old' || role === 'old-with-new') ?? []
  const followed = rollovers.filter(({ state }) => state === 'cut-over' || state === 'finished').toReversed()
  const sent = followed
    .flatMap(({ certificates }) => certificates)
    .filter((certificate) => certificate.role === 'new-with-old' && now <= knownCa(certificate).notAfter)
  return { shown: shown.map(({ pem }) => pem), sent: sent.map(({ pem }) => pem) }
}

function viewOf(ca: Known, of: { current: Generation; trusted: ReadonlySet<string> }): CaView[] {
  const { id, role, pem, notBefore, notAfter } = ca
  if (role !== 'root' && role !== 'device' && role !== 'infrastructure') return []
  return [
    { id, role, pem, notBefore, notAfter, isCurrent: of.current[role] === id, isTrusted: of.trusted.has(id) },
  ]
}

function currentFirst(cas: readonly Known[], current: string): Known[] {
  return [...cas.filter(({ id }) => id === current), ...cas.filter(({ id }) => id !== current).toReversed()]
}

function first<T>(list: readonly T[]): T {
  const [one] = list
  if (one === undefined) throw new TypeError('a generation has an issuing CA')
  return one
}
