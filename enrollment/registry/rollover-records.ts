import type { Adoption, Generation, RolloverView } from '#shared/api/rollover'
import type { Act } from './records.ts'

/** `new-with-old`: the new root's key signed by the old root (RFC 4210 section 4.4), and the other way round. */
export type CaRole = 'root' | 'device' | 'infrastructure' | 'new-with-old' | 'old-with-new'

/** A certificate that a rollover brought. */
export interface RolloverCertificate {
  /** SHA-256 of its DER, hex. */
  readonly id: string
  readonly role: CaRole
  readonly pem: string
}

export interface RolloverRecord extends RolloverView {
  /** Version of the trust bundle after its newest step. */
  readonly version: number
  readonly certificates: readonly RolloverCertificate[]
}

export interface NewRollover extends Act {
  readonly id: string
  readonly kind: 'issuing' | 'root'
  readonly from: Generation
  readonly to: Generation
  readonly certificates: readonly RolloverCertificate[]
}

/** A slice of the count of adoption; `next` is where the following one begins, null after the last. */
export interface AdoptionPage extends Adoption {
  readonly next: number | null
}

/** The intents about the CAs and the trust in them. */
export interface RolloverIntents {
  /** Oldest first; at most the newest is open. */
  listRollovers(): Promise<RolloverRecord[]>
  /**
   * Publishes the new CAs: brokers trust them, and the bundle gets a new version.
   * @throws MusterError conflict (another one is open, or `from` is not what signs)
   */
  startRollover(rollover: NewRollover): Promise<RolloverRecord>
  /** From now on the new CAs sign, also when they were given up and have not gone yet; the caller has compared the adoption with a threshold. @throws MusterError conflict, not_found */
  cutOverRollover(
    id: string,
    adoption: Pick<Adoption, 'devices' | 'adopted'>,
    act: Act,
  ): Promise<RolloverRecord>
  /** Back to the old CAs; at once when the new ones never signed. @throws MusterError conflict, not_found */
  abortRollover(id: string, act: Act): Promise<RolloverRecord>
  /**
   * Ends the trust in the CAs that no longer sign: brokers close what is open under them.
   * @throws MusterError conflict (a certificate of them is still good), not_found
   */
  finishRollover(id: string, act: Act): Promise<RolloverRecord>
  /** A device has fetched this version of the trust bundle; merely seen, like a sighting. */
  recordAdoption(device: string, version: number, now: number): Promise<void>
  /** Counts adoption of a rollover over at most `limit` devices after a row. @throws MusterError not_found */
  adoptionAfter(id: string, page: { after: number; limit: number; now: number }): Promise<AdoptionPage>
  /** Certificates of an issuer that are good, or reserved, at `now`. */
  liveUnder(issuer: string, now: number): Promise<number>
  /** The newest notBefore of a certificate of a device or service, ms; 0 without any. Reads every certificate. */
  newestNotBefore(): Promise<number>
}
