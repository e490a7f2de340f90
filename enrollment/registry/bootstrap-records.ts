import type { BatchReport, BootstrapAlarm, ImportReply } from '#shared/api/bootstrap'
import type { TokenView } from '#shared/api/fleets'
import type { ManufacturedReply, ManufacturerView } from '#shared/api/manufacturers'
import type { DeviceId } from '#shared/identity/device'
import type { Act, SignedCertificate } from './records.ts'

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

/** What a device can enroll with: each a row with uses, expiry and cancel. */
export type CredentialKind = TokenView['kind']

/** A claim certificate that is about to be signed: the secret of a token that a batch shares. */
export interface NewClaim {
  readonly issuer: string
  readonly serial: string
  /** SHA-256 of its SubjectPublicKeyInfo, hex: no device ever gets a certificate for it. */
  readonly spki: string
  readonly notAfter: number
}

export interface NewManufacturer extends Act {
  readonly id: string
  readonly hash: string
  readonly batch: string
  readonly expiresAt: number | null
  /** SHA-256 of name and key of the CA that its devices' certificates are issued by, hex. */
  readonly ca: string
  readonly pem: string
}

/** A manufacturer as the enrollment listener needs it. */
export interface ManufacturerCa {
  readonly id: string
  readonly ca: string
  readonly pem: string
  /** False when it is cancelled or has expired: its devices are still told so. */
  readonly isOpen: boolean
}

/** What is read in a manufacturer's certificate once its chain has been checked (IEEE 802.1AR). */
export interface Idevid {
  /** SHA-256 of name and key of the CA. */
  readonly ca: string
  readonly fingerprint: string
  /** Of the subject, as it stands there; null without one. */
  readonly serialNumber: string | null
  /** Hex, 32 digits or more. */
  readonly certificateSerial: string
}

/** A device that a manufacturer has made; one of the numbers may be null. */
export interface ManufacturedRow {
  readonly id: DeviceId
  readonly serialNumber: string | null
  readonly certificateSerial: string | null
}

export interface ManufacturedList extends Act {
  readonly manufacturer: string
  readonly rows: readonly ManufacturedRow[]
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
  /** The claim is good from here on. Idempotent. @throws MusterError not_found */
  finishClaim(id: string, signed: SignedCertificate, act: Act): Promise<TokenView>
  /** Cancels claims without a certificate: nobody is at work on them when the plane starts. Returns how many. */
  cancelUnfinishedClaims(act: Act): Promise<number>
  /** @throws MusterError not_found (the batch), conflict (the id is taken) */
  createManufacturer(manufacturer: NewManufacturer): Promise<ManufacturerView>
  /** `now` decides which have expired. */
  listManufacturers(now: number): Promise<ManufacturerView[]>
  /** Every one that was ever registered, the open ones first. */
  manufacturerCas(now: number): Promise<ManufacturerCa[]>
  /**
   * Lists a slice of devices, each with an id that is expected from now on, or none when a row is refused; each adds a
   * use. A row that is there already, word for word, is `known`.
   * @throws MusterError not_found (the manufacturer), conflict (it is cancelled)
   */
  listManufactured(list: ManufacturedList): Promise<ManufacturedReply>
  /**
   * The manufacturer whose list has the device: of several with this CA an open one, otherwise the newest of the CA, so
   * that the device is told why it is refused. Null when none has this CA.
   */
  findManufacturer(idevid: Idevid, now: number): Promise<{ hash: string; id: string } | null>
  /** Attempts on tokens, claims and manufacturers that were over, the newest first. */
  bootstrapAlarms(of: { since: number; limit: number }): Promise<BootstrapAlarm[]>
  /** What became of a batch; `now` decides which tokens have expired. @throws MusterError not_found */
  batchReport(batch: string, now: number): Promise<BatchReport>
}
