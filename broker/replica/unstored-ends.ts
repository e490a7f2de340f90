import type { CertificateRecord, Change, DeviceRecord } from '#shared/feed'
import type { CredentialRow } from './replica-rows.ts'

/** What is stored of those whom a change may end. */
export interface Stored {
  credential(fingerprint: string): CredentialRow | null
  device(id: string): DeviceRecord | null
}

/**
 * Certificates that were revoked, and devices that were retired or forgotten, by changes that the disk refuses: they
 * are over all the same, from memory, until that is stored or this process ends.
 */
export class UnstoredEnds {
  readonly #stored: Stored
  readonly #certificates = new Map<string, CertificateRecord>()
  /** Null: forgotten. */
  readonly #devices = new Map<string, DeviceRecord | null>()

  constructor(stored: Stored) {
    this.#stored = stored
  }

  /** True when the change ends something that goes on in what is stored. */
  isEnd(change: Change): boolean {
    if (change.kind === 'certificate' && change.certificate.state === 'revoked') {
      const stored = this.#stored.credential(change.certificate.fingerprint)
      return stored !== null && stored.certificate.state !== 'revoked'
    }
    if (change.kind !== 'forgotten' && (change.kind !== 'device' || change.device.state !== 'retired'))
      return false
    const stored = this.#stored.device(change.kind === 'forgotten' ? change.device : change.device.id)
    return stored !== null && stored.state !== 'retired'
  }

  /** As {@link isEnd}; what is ended is over from now on. */
  take(change: Change): boolean {
    if (!this.isEnd(change)) return false
    if (change.kind === 'certificate')
      this.#certificates.set(change.certificate.fingerprint, change.certificate)
    if (change.kind === 'device') this.#devices.set(change.device.id, change.device)
    if (change.kind === 'forgotten') this.#devices.set(change.device, null)
    return true
  }

  /** It is on disk, or was overtaken by what is. */
  stored(change: Change): void {
    if (change.kind === 'certificate') this.#certificates.delete(change.certificate.fingerprint)
    if (change.kind === 'device') this.#devices.delete(change.device.id)
    if (change.kind === 'forgotten') this.#devices.delete(change.device)
  }

  device(stored: DeviceRecord | null): DeviceRecord | null {
    const ended = stored === null ? null : this.#devices.get(stored.id)
    return ended === undefined ? stored : ended
  }

  credential(stored: CredentialRow | null): CredentialRow | null {
    if (stored === null || (this.#certificates.size === 0 && this.#devices.size === 0)) return stored
    const device = this.device(stored.device)
    const certificate = this.#certificates.get(stored.certificate.fingerprint) ?? stored.certificate
    return device === null ? null : { certificate, device }
  }
}
