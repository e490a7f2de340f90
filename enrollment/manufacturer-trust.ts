import type { X509Certificate } from 'node:crypto'
import { pemToDer } from '#shared/pki/pem'
import { type IdevidCa, isIssuedBy, readIdevid, readIdevidCa } from './ca/idevid.ts'
import type { Idevid, Registry } from './registry/registry.ts'

/** With what is registered already. */
export async function openManufacturerTrust(of: {
  registry: Pick<Registry, 'manufacturerCas'>
  now(): number
}): Promise<ManufacturerTrust> {
  const trust = new ManufacturerTrust(of)
  await trust.refresh()
  return trust
}

/** Called when the CAs have changed that TLS is to ask devices for. */
type TrustListener = () => void

/**
 * The manufacturers' CAs, as the enrollment listener needs them: those that TLS names to a device that looks for a
 * certificate to present, and all that were ever registered, to say whose certificate it is. The registry is asked at
 * every use; what is kept is what has been read of a CA, by its certificate.
 */
export class ManufacturerTrust {
  readonly #registry: Pick<Registry, 'manufacturerCas'>
  readonly #now: () => number
  readonly #read = new Map<string, IdevidCa>()
  readonly #listeners: TrustListener[] = []
  #pems: readonly string[] = []

  constructor(of: { registry: Pick<Registry, 'manufacturerCas'>; now(): number }) {
    this.#registry = of.registry
    this.#now = of.now
  }

  /** CAs of the manufacturers that are open, PEM, as of the last `refresh`. */
  get pems(): readonly string[] {
    return this.#pems
  }

  onChange(listener: TrustListener): void {
    this.#listeners.push(listener)
  }

  /** Reads which are open, and tells the listeners when that has changed. */
  async refresh(): Promise<void> {
    const cas = await this.#registry.manufacturerCas(this.#now())
    const pems = [...new Set(cas.filter(({ isOpen }) => isOpen).map(({ pem }) => pem))].sort()
    if (pems.join('') === this.#pems.join('')) return
    this.#pems = pems
    for (const listener of this.#listeners) listener()
  }

  /**
   * What the certificate says, when the CA of a manufacturer has issued it; null when none has. A CA may be registered
   * with several certificates for its key: one of them is enough.
   * @throws MusterError idevid, expired, notyet
   */
  async identify(certificate: X509Certificate): Promise<Idevid | null> {
    const now = this.#now()
    const failures: unknown[] = []
    for (const { id, pem } of await this.#registry.manufacturerCas(now)) {
      const ca = { ...this.#reading(pem), id }
      if (!isIssuedBy(ca, certificate)) continue
      try {
        return readIdevid(certificate, { ca, now })
      } catch (error) {
        failures.push(error)
      }
    }
    if (failures.length > 0) throw failures[0]
    return null
  }

  #reading(pem: string): IdevidCa {
    const read = this.#read.get(pem) ?? readIdevidCa(pemToDer(pem, 'CERTIFICATE'), '')
    this.#read.set(pem, read)
    return read
  }
}
