import type { Random } from './backoff.ts'
import type { Clock } from './clock.ts'
import type { Device } from './device.ts'
import type { Fault } from './faults.ts'
import type { Fleet } from './fleet.ts'
import type { Judge, Revocation } from './judge.ts'
import type { Progress } from './progress.ts'

/** What a scenario is played on. */
export interface Stage {
  readonly fleet: Fleet
  /** Name of the fleet in the registry. */
  readonly fleetId: string
  /** Enrolled beside the fleet when a planted fault needs it; never counted. */
  readonly spare: Device | null
  readonly judge: Judge
  readonly fault: Fault
  readonly progress: Progress
  readonly clock: Clock
  readonly random: Random
  /** Devices that are worked on at a time. */
  readonly concurrency: number
  /** How many devices are revoked. */
  readonly revoke: number
  /** Messages that each device sends at least. */
  readonly messages: number
  /** What went wrong with single devices; the run goes on, and the judge sees the rest. */
  readonly failures: string[]
}

export interface Scenario {
  readonly name: string
  /** One line for `muster sim list`. */
  readonly says: string
  /** Its devices rotate when the broker tells them to. */
  readonly followsHints?: boolean
  readonly expects: { readonly rotation: boolean; readonly revocation: boolean }
  /** Plays it; resolves with the revocation when there was one. The fleet is still connected. */
  play(stage: Stage): Promise<Revocation | null>
}
