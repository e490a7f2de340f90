import { MusterError } from '#shared/errors'
import { spiffeUri } from '#shared/identity/peer'
import type { Channel } from './channel.ts'
import type { Deps } from './deps.ts'
import { completed, type Issued, newSerial, signNow } from './issuance.ts'
import { type KeyedRequest, type KeyMaker, keyedRequest, wishOf } from './keyed-request.ts'
import type { Credential } from './registry/registry.ts'

export interface RenewalRequest {
  /** The certificate that was presented over TLS, as the registry has it: the identity, whatever the CSR says. */
  readonly presented: Credential
  /** PKCS#10, DER. */
  readonly csr: Uint8Array
  /** `equal`: subject and SAN must be there and be the current ones (RFC 7030 section 4.2.2); `optional`: or left out. */
  readonly names: 'equal' | 'optional'
  readonly channel: Channel
  /** The device, when it is not said. */
  readonly keyBy?: KeyMaker
}

/**
 * The next certificate of a device or service, for the same key or another; the numbers are those of
 * docs/issuance-cycle.md. The same presented certificate and key again get the same certificate.
 * With a key that the plane makes, each request gets a new one, as at the first enrollment.
 * @throws MusterError csr_*, server_key, unrecorded, held, revoked, superseded, retired, pending, expired, notyet, successors, clock_wrong
 */
export async function renew(deps: Deps, request: RenewalRequest): Promise<Issued> {
  // 1 check the request, and that it asks for the identity it was made with
  const { fleet } = request.presented.device
  const csr = await keyedRequest(deps, { ...request, profile: () => deps.registry.showProfile(fleet) })
  checkNames(deps, csr, request)
  const now = deps.now()
  deps.signingClock.check(now)
  deps.reached('renew.1')

  // 2 record the successor that will be signed; a key in memory signs in the same commit
  const signing = { recipe: 'renew', spki: csr.spki } as const
  const issuance = await deps.registry.beginRenewal(
    {
      now,
      presented: fingerprintOf(request.presented),
      spkiHash: csr.spkiHash,
      wish: wishOf(csr, request.channel),
      serial: newSerial(deps),
      issuer: deps.authority.device,
    },
    signNow(deps, signing),
  )

  // 3 sign and 4 record the certificate, where that is still to do; from here on brokers know it
  const certificate = await completed(deps, { issuance, signing, by: `device:${issuance.device}` })
  deps.reached('renew.4')

  // 5 answer
  return { issuance, certificate, privateKey: csr.privateKey }
}

/** @throws MusterError csr_subject */
function checkNames(deps: Deps, csr: KeyedRequest, request: RenewalRequest): void {
  const { id, kind } = request.presented.device
  const uri = spiffeUri(deps.authority.trustDomain, kind, id)
  const isOptional = request.names === 'optional'
  const hasName = csr.commonName === id || (isOptional && csr.commonName === null)
  const hasUri = csr.uris.length === 0 ? isOptional : csr.uris.every((wish) => wish === uri)
  if (hasName && hasUri) return
  const wish = hasName ? (csr.uris.find((one) => one !== uri) ?? 'no SAN') : (csr.commonName ?? 'no CN')
  throw new MusterError(
    'csr_subject',
    `Cannot renew the certificate of "${id}" for other names: subject and SAN must be those of the certificate that was presented`,
    { evidence: { wish, device: id } },
  )
}

function fingerprintOf(credential: Credential): string {
  const { fingerprint, serial } = credential.certificate
  if (fingerprint === null) throw new TypeError(`certificate ${serial} was presented but is not signed`)
  return fingerprint
}
