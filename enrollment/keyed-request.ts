import type { FleetProfile } from '#shared/api'
import { MusterError } from '#shared/errors'
import { type CheckedDeviceCsr, checkDeviceCsr, checkKeylessCsr } from './ca/check-csr.ts'
import { makeKey } from './ca/make-key.ts'
import { type Channel, checkLink } from './channel.ts'
import type { Deps } from './deps.ts'
import type { DeviceWish } from './registry/registry.ts'

/** Who makes the key of a certificate. */
export type KeyMaker = 'device' | 'plane'

/** A checked request, and the key that is to be certified for it. */
export interface KeyedRequest extends CheckedDeviceCsr {
  /** SHA-256 of the SubjectPublicKeyInfo in the request, hex. */
  readonly requestKey: string
  /** DER of the PrivateKeyInfo, when the plane has made the key: for the reply, and for nothing else. */
  readonly privateKey: Buffer | null
}

/**
 * Checks a request and, where the device asks for it, makes its key, of the type that its fleet likes best. Whether the
 * profile allows that is asked first, because a key costs more than a refusal; the registry asks again.
 * @throws MusterError csr_*, server_key
 */
export async function keyedRequest(
  deps: Pick<Deps, 'caKeys'>,
  request: { csr: Uint8Array; keyBy?: KeyMaker; profile(): Promise<FleetProfile> },
): Promise<KeyedRequest> {
  if (request.keyBy !== 'plane') {
    const csr = await checkDeviceCsr(request.csr, deps.caKeys)
    return { ...csr, requestKey: csr.spkiHash, privateKey: null }
  }
  const { serverKeys, keys } = await request.profile()
  if (!serverKeys) {
    const why = 'the profile of the fleet does not allow it'
    throw new MusterError('server_key', `Cannot make a key for the device: ${why}`, { evidence: { why } })
  }
  const csr = checkKeylessCsr(request.csr)
  return { ...csr, ...(await makeKey(keys)) }
}

/** What only the profile of the fleet can grant. @throws MusterError csr_link */
export function wishOf(csr: KeyedRequest, channel: Channel): DeviceWish {
  const { key, names, organization, organizationalUnit } = csr
  const unlinked = checkLink(csr.challengePassword, channel)
  const made = csr.privateKey === null ? {} : ({ serverKey: true } as const)
  return { key, names, organization, organizationalUnit, unlinked, ...made }
}

/** What the registry knows the keys by. */
export function keysOf(csr: KeyedRequest): { spkiHash: string; serverKey?: string } {
  if (csr.privateKey === null) return { spkiHash: csr.spkiHash }
  return { spkiHash: csr.requestKey, serverKey: csr.spkiHash }
}
