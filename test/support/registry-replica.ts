import type {
  CertificateRecord,
  Change,
  DeviceRecord,
  FleetRecord,
  HoldRecord,
  IssuerRecord,
  PurgeRecord,
} from '#shared/feed'
import type { TrustRecord } from '#shared/trust-bundle'
import type { Registry } from '../../enrollment/registry/registry.ts'

/** What a broker knows after some changes; the simplest reading of the feed, for comparison. */
export class ModelReplica {
  readonly issuers = new Map<string, IssuerRecord>()
  readonly fleets = new Map<string, FleetRecord>()
  readonly devices = new Map<string, DeviceRecord>()
  readonly certificates = new Map<string, CertificateRecord>()
  readonly members = new Map<string, Set<string>>()
  readonly holds = new Map<string, HoldRecord>()
  /** In the order in which they came; of snapshots only. */
  readonly purges: PurgeRecord[] = []
  trust: TrustRecord | null = null

  apply(change: Change): void {
    switch (change.kind) {
      case 'issuer':
        this.issuers.set(change.issuer.id, change.issuer)
        return
      case 'fleet':
        this.fleets.set(change.fleet.id, change.fleet)
        return
      case 'device':
        this.devices.set(change.device.id, change.device)
        return
      case 'certificate':
        this.certificates.set(change.certificate.fingerprint, change.certificate)
        return
      case 'members':
        this.#addMembers(change.hold, change.devices)
        return
      case 'hold':
        this.#setHold(change.hold)
        return
      case 'trust':
        this.trust = change.trust
        return
      case 'purge':
        this.purges.push(change.purge)
        return
      case 'forgotten':
        this.#forget(change.device)
        return
      default:
        change satisfies never
    }
  }

  #addMembers(hold: string, devices: readonly string[]): void {
    const members = this.members.get(hold) ?? new Set()
    this.members.set(hold, members)
    for (const device of devices) members.add(device)
  }

  #setHold(hold: HoldRecord): void {
    if (hold.state === 'active') {
      this.holds.set(hold.id, hold)
      return
    }
    this.holds.delete(hold.id)
    this.members.delete(hold.id)
  }

  #forget(device: string): void {
    this.devices.delete(device)
    for (const [fingerprint, certificate] of this.certificates) {
      if (certificate.device === device) this.certificates.delete(fingerprint)
    }
  }

  /** As plain data in a fixed order; without certificates that have expired, as a snapshot is. */
  contents(now: number) {
    const sorted = <T>(map: ReadonlyMap<string, T>) => [...map].toSorted(([a], [b]) => (a < b ? -1 : 1))
    return {
      issuers: sorted(this.issuers),
      fleets: sorted(this.fleets),
      devices: sorted(this.devices),
      certificates: sorted(this.certificates).filter(([, { notAfter }]) => now < notAfter + 1000),
      members: sorted(this.members).map(([hold, devices]) => [hold, [...devices].toSorted()] as const),
      holds: sorted(this.holds),
      trust: this.trust,
    }
  }
}

/** Every change since the beginning. */
export async function replayed(registry: Registry): Promise<ModelReplica> {
  const replica = new ModelReplica()
  for (let position = 0; ; ) {
    const changes = await registry.changesAfter(position, 100)
    for (const { change } of changes) replica.apply(change)
    const last = changes.at(-1)
    if (last === undefined) return replica
    position = last.position
  }
}

export async function snapshotOf(registry: Registry, now: number): Promise<ModelReplica> {
  const replica = new ModelReplica()
  const { changes } = await registry.snapshot(now)
  for await (const chunk of changes) for (const change of chunk) replica.apply(change)
  return replica
}
