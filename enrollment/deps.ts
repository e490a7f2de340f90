import type { Log } from '#shared/log'
import type { Bell } from './bell.ts'
import type { BrokerFaults } from './broker-faults.ts'
import type { Generations } from './generations.ts'
import type { ManufacturerTrust } from './manufacturer-trust.ts'
import type { OcspService } from './ocsp.ts'
import type { Registry } from './registry/registry.ts'
import type { RevocationLists } from './revocation-lists.ts'
import type { SigningClock } from './signing-clock.ts'

/** A numbered step of a recipe, see docs/issuance-cycle.md. */
export type Step =
  | `${'enroll' | 'renew' | 'service'}.${1 | 2 | 3 | 4}`
  | `claim.${1 | 2 | 3}`
  | `rollover-${'start' | 'cut-over' | 'abort' | 'finish'}.${1 | 2}`

/** What the use cases act with. Everything that is not a function of its arguments comes from here. */
export interface Deps {
  readonly registry: Registry
  /** The CAs, and how trust goes from one generation to the next. */
  readonly authority: Generations
  /** SHA-256 of the SubjectPublicKeyInfos of the CAs: no device may have one of these keys. */
  readonly caKeys: ReadonlySet<string>
  readonly signingClock: SigningClock
  readonly revocationLists: RevocationLists
  readonly ocsp: OcspService
  readonly manufacturers: ManufacturerTrust
  readonly brokerFaults: BrokerFaults
  readonly log: Log
  /** File with the newest audit entry, signed. */
  readonly auditHead: string
  /** Public URL of the admin listener, for invitations. */
  readonly adminUrl: string
  /** Milliseconds since 1970 UTC. */
  now(): number
  random(octets: number): Buffer
  /** Called after each numbered step; a crash test ends the process here. */
  reached(step: Step): void
  /** Rings when the registry committed changes. */
  readonly changed: Bell
  /** Rings when a broker reported or was forgotten, so that a receipt may have become complete. */
  readonly reported: Bell
}
