import type { CloneAlarm, QuarantineView } from '#shared/api'
import type { Act } from './registry.ts'

/** An alarm that something is to be done about. */
export interface OpenClone {
  readonly device: string
  readonly address: string
  readonly otherAddress: string
  readonly broker: string
  readonly isTold: boolean
  /** Its fleet has quarantine on, and no hold came of this alarm yet. */
  readonly mayHold: boolean
}

/** The part of the port about identities that two addresses take from each other. */
export interface CloneIntents {
  /** The newest first; of one device when it is named. */
  cloneAlarms(of: { since: number; limit: number; device?: string }): Promise<CloneAlarm[]>
  /** Those that are not told, and those since `since` that a hold is due for. */
  openClones(since: number): Promise<OpenClone[]>
  /** Audits the alarm; once, however often it is asked. */
  tellClone(device: string, act: Act): Promise<void>
  /** The alarm led to this plan. */
  cloneHeld(device: string, plan: string, act: Act): Promise<void>
  /** @throws MusterError not_found */
  showQuarantine(fleet: string): Promise<QuarantineView>
  /** @throws MusterError not_found */
  setQuarantine(fleet: string, clones: boolean, act: Act): Promise<QuarantineView>
}
