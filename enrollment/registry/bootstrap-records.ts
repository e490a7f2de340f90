import type { BatchReport, ImportReply } from '#shared/api/bootstrap'
import type { DeviceId } from '#shared/identity/device'
import type { Act } from './records.ts'

/** A row of a manifest. */
export interface ManifestRow {
  readonly id: DeviceId
  /** SHA-256 of the only key with which it may enroll, hex; null for any. */
  readonly spki: string | null
  readonly attributes: Readonly<Record<string, string>>
}

export interface Manifest extends Act {
  readonly batch: string
  readonly rows: readonly ManifestRow[]
  /** True judges the rows by the same rules and writes nothing. */
  readonly isRehearsal: boolean
}

/** The intents about devices before they come. */
export interface BootstrapIntents {
  /**
   * Expects every device of a slice of a manifest, or none when a row is refused; the reply judges each. A row that was
   * imported before, word for word, is `known` and changes nothing.
   * @throws MusterError not_found (the batch)
   */
  importDevices(manifest: Manifest): Promise<ImportReply>
  /** What became of a batch; `now` decides which tokens have expired. @throws MusterError not_found */
  batchReport(batch: string, now: number): Promise<BatchReport>
}
