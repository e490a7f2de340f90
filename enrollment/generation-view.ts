/** What the rollovers that there were say of each CA: whether it signs, whether it is trusted, and what links two roots. */
import { X509Certificate } from 'node:crypto'
import type { CaView, Generation } from '#shared/api/rollover'
import { sha256Hex, spkiDer } from '#shared/pki/keys'
import type { Authority } from './ca/authority.ts'
import type { IssuerKind } from './ca/profile.ts'
import type { CaRole, RolloverCertificate, RolloverRecord } from './registry/registry.ts'

export interface Known {
  readonly id: string
  readonly role: CaRole
  readonly pem: string
  readonly notBefore: number
  readonly notAfter: number
}

/** The generation after `from`: what is made anew, and the root that stays. */
export function followers(from: Generation, made: readonly RolloverCertificate[]): Generation {
  const idOf = (role: 'root' | IssuerKind) => made.find((one) => one.role === role)?.id ?? from[role]
  return { root: idOf('root'), device: idOf('device'), infrastructure: idOf('infrastructure') }
}

export function keyHash(pem: string): string {
  return sha256Hex(spkiDer(new X509Certificate(pem).publicKey))
}

export function baseCas({ rootId, rootPem, device, infrastructure }: Authority): Known[] {
  return [
    knownCa({ id: rootId, role: 'root', pem: rootPem }),
    knownCa({ id: device.id, role: 'device', pem: device.pem }),
    knownCa({ id: infrastructure.id, role: 'infrastructure', pem: infrastructure.pem }),
  ]
}

export function knownCa({ id, role, pem }: { id: string; role: CaRole; pem: string }): Known {
  const { validFromDate, validToDate } = new X509Certificate(pem)
  return { id, role, pem, notBefore: validFromDate.getTime(), notAfter: validToDate.getTime() }
}

/** Which generation signs, and which CAs are trusted, after all rollovers in order. */
export function standing(
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
export function linksOf(of: { known: readonly Known[]; rollovers: readonly RolloverRecord[]; now: number }) {
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

export function viewOf(ca: Known, of: { current: Generation; trusted: ReadonlySet<string> }): CaView[] {
  const { id, role, pem, notBefore, notAfter } = ca
  if (role !== 'root' && role !== 'device' && role !== 'infrastructure') return []
  return [
    { id, role, pem, notBefore, notAfter, isCurrent: of.current[role] === id, isTrusted: of.trusted.has(id) },
  ]
}

export function currentFirst(cas: readonly Known[], current: string): Known[] {
  return [...cas.filter(({ id }) => id === current), ...cas.filter(({ id }) => id !== current).toReversed()]
}

export function first<T>(list: readonly T[]): T {
  const [one] = list
  if (one === undefined) throw new TypeError('a generation has an issuing CA')
  return one
}
