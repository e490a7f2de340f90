import type { DeviceRecord, FleetRecord } from '#shared/feed'
import { type Allowance, allowanceOf, defaultAllowance } from '#shared/policy/caps'
import type { Limits } from '../limits.ts'

/** What the replica knows of whoever has a session, connected or not. */
export interface PolicyReader {
  /** Another object after each change. Null when it is not known. */
  device(id: string): DeviceRecord | null
  fleet(id: string): FleetRecord | null
}

type Kind = DeviceRecord['kind']

/** What devices and services may have where no policy says so. */
export type Defaults = Readonly<Record<Kind, Allowance>>

export function defaultsOf(limits: Limits): Defaults {
  const own = { caps: limits, serviceTimes: limits.serviceTimes }
  return { device: defaultAllowance('device', own), service: defaultAllowance('service', own) }
}

interface Known {
  readonly fleet: FleetRecord
  readonly allowance: Allowance
}

interface Whom {
  readonly identity: string
  readonly kind?: Kind
}

/** What identities may have that are perhaps not connected, by the policies of now; worked out once for each change. */
export class Allowances {
  readonly #defaults: Defaults
  readonly #known = new WeakMap<DeviceRecord, Known>()
  #reader: PolicyReader | null = null

  constructor(defaults: Defaults) {
    this.#defaults = defaults
  }

  /** From now on the policies there count. */
  follow(reader: PolicyReader): void {
    this.#reader = reader
  }

  /** `kind` is what it is taken for when it is not known, or what is known cannot be read. */
  of(whom: Whom): Allowance {
    return this.surely(whom) ?? this.#defaults[whom.kind ?? 'device'] // whoever asks has to go on; the session of this client is judged elsewhere
  }

  /** The same for what cannot be taken back: null when what is known cannot be read. */
  surely({ identity, kind = 'device' }: Whom): Allowance | null {
    try {
      return this.#followed(identity) ?? this.#defaults[kind]
    } catch {
      return null
    }
  }

  #followed(identity: string): Allowance | null {
    const device = this.#reader?.device(identity) ?? null
    const fleet = device === null ? null : (this.#reader?.fleet(device.fleet) ?? null)
    if (device === null || fleet === null) return null
    const known = this.#known.get(device)
    if (known?.fleet === fleet) return known.allowance
    const policies = { policy: fleet.policy, own: device.policy, defaults: this.#defaults[device.kind] }
    const allowance = allowanceOf(policies)
    this.#known.set(device, { fleet, allowance })
    return allowance
  }
}
