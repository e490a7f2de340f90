import { isMusterError, MusterError } from '#shared/errors'
import { checkPeer } from '#shared/identity/peer'
import { sha256Hex } from '#shared/pki/keys'
import type { Deps } from '../deps.ts'
import type { Idevid } from '../registry/registry.ts'
import { type CallerDeps, type PeerCertificate, presented } from './caller.ts'

/** What a device enrolls with: a token, a claim certificate, or the certificate of a manufacturer. */
export interface BootstrapCredential {
  /** By which the registry finds it. */
  readonly hash: string
  /** Its public name. */
  readonly id: string
  readonly idevid?: Idevid
}

/**
 * The claim or the manufacturer whose certificate was presented. Whether it is over is for the registry to say, in the
 * transaction that takes its use. Failures count against the certificate at this address: each costs a signature.
 * @throws MusterError rate, unauthenticated, unknown_ca, profile, notyet, expired, idevid, unrecorded
 */
export async function identifyBootstrap(
  { deps, limits, address }: CallerDeps & { address: string },
  peer: PeerCertificate | null,
): Promise<BootstrapCredential> {
  if (peer === null) throw withoutToken('no certificate was presented')
  const key = `certificate ${sha256Hex(peer.certificate.raw)} ${address}`
  await limits.check(key, address)
  try {
    return await credentialOf(deps, peer)
  } catch (error) {
    if (isMusterError(error)) await limits.failed(key)
    throw error
  }
}

async function credentialOf(deps: Deps, peer: PeerCertificate): Promise<BootstrapCredential> {
  const idevid = await deps.manufacturers.identify(peer.certificate)
  const maker = idevid && (await deps.registry.findManufacturer(idevid, deps.now()))
  if (idevid && maker) return { ...maker, idevid }
  return claimOf(deps, peer)
}

/** A claim that has expired is good for a repeated request, as a token is: its dates are the registry's. */
async function claimOf(deps: Deps, peer: PeerCertificate): Promise<BootstrapCredential> {
  const certificate = presented(peer, deps.authority.bundle.devices)
  if (certificate === null) throw withoutToken('no certificate was presented')
  const { kind, id, fingerprint } = checkPeer(certificate, {
    trustDomain: deps.authority.trustDomain,
    kinds: ['claim', 'device', 'service'],
    now: Math.min(deps.now(), certificate.validToDate.getTime()),
  })
  if (kind !== 'claim') throw withoutToken(`the certificate is that of the ${kind} "${id}", which renews`)
  const view = await deps.registry.findToken(fingerprint, deps.now())
  if (view?.kind === 'claim' && view.id === id) return { hash: fingerprint, id }
  throw new MusterError('unrecorded', `Cannot accept the claim certificate "${id}": nobody recorded it`, {
    evidence: { fingerprint, serial: certificate.serialNumber.toLowerCase(), waitedMs: 0 },
  })
}

function withoutToken(why: string): MusterError {
  return new MusterError(
    'unauthenticated',
    `Cannot enroll without a token: send it as the password of HTTP Basic, or present the claim certificate of the batch or the certificate of the device's manufacturer (${why})`,
  )
}
