import type { CertificateRecord, DeviceRecord, HoldRecord } from '#shared/feed'

type Kind = HoldRecord['scope']['kind']

/**
 * The active holds by what they cover, in memory: there are few of them and every CONNECT asks.
 * Members of a hold on a plan are not here but in the database (they can be 100 000).
 */
export class HoldIndex {
  readonly #holds = new Map<string, HoldRecord>()
  readonly #byScope: Record<Kind, Map<string, Set<string>>> = {
    device: new Map(),
    batch: new Map(),
    fleet: new Map(),
    issuer: new Map(),
    plan: new Map(),
  }

  /** Takes the hold in, or out when it has ended. */
  put(hold: HoldRecord): void {
    this.#remove(hold.id)
    if (hold.state !== 'active') return
    const scopes = this.#byScope[hold.scope.kind]
    const holds = scopes.get(hold.scope.id) ?? new Set()
    scopes.set(hold.scope.id, holds.add(hold.id))
    this.#holds.set(hold.id, hold)
  }

  all(): HoldRecord[] {
    return [...this.#holds.values()]
  }

  get(id: string): HoldRecord | null {
    return this.#holds.get(id) ?? null
  }

  hasPlans(): boolean {
    return this.#byScope.plan.size > 0
  }

  /** A hold on the device itself, its batch, its fleet or the issuer of the certificate; null when there is none. */
  covering(device: DeviceRecord, certificate: CertificateRecord): HoldRecord | null {
    return (
      this.#first('device', device.id) ??
      (device.batch === null ? null : this.#first('batch', device.batch)) ??
      this.#first('fleet', device.fleet) ??
      this.#first('issuer', certificate.issuer)
    )
  }

  #remove(id: string): void {
    const hold = this.#holds.get(id)
    if (hold === undefined) return
    const scopes = this.#byScope[hold.scope.kind]
    const holds = scopes.get(hold.scope.id)
    holds?.delete(id)
    if (holds?.size === 0) scopes.delete(hold.scope.id)
    this.#holds.delete(id)
  }

  #first(kind: Kind, id: string): HoldRecord | null {
    const holds = this.#byScope[kind].get(id)
    if (holds === undefined) return null
    for (const hold of holds) return this.get(hold)
    return null
  }
}
