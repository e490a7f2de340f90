import { isIP } from 'node:net'
import type {
  BrokerCertificateReply,
  BrokerEnrollRequest,
  BrokerRenewRequest,
  Invitation,
  InvitationRequest,
} from '#shared/api'
import { MusterError } from '#shared/errors'
import { derToPem } from '#shared/pki/pem'
import { newToken } from '#shared/token'
import { checkCsr, decodeCsr } from './ca/check-csr.ts'
import type { Deps } from './deps.ts'
import { issueOwn } from './own-certificates.ts'
import type { Actor } from './registry/registry.ts'
import { expiry } from './tokens.ts'

/** Life of an invitation when nobody says otherwise, ms. */
const INVITATION_LIFE_MS = 24 * 3_600_000
/** Labels of letters, digits and inner hyphens, at most 253 characters (RFC 1123 section 2.1). */
const DNS_NAME =
  /^(?=.{1,253}$)[A-Za-z0-9]([A-Za-z0-9-]{0,61}[A-Za-z0-9])?(\.[A-Za-z0-9]([A-Za-z0-9-]{0,61}[A-Za-z0-9])?)*$/

/** Everything that a broker on another machine needs, once. */
export async function inviteBroker(
  deps: Deps,
  request: InvitationRequest & { by: Actor },
): Promise<Invitation> {
  const now = deps.now()
  const secret = newToken(deps.random)
  const expiresAt = expiry(request.expiresAt, { now, otherwise: now + INVITATION_LIFE_MS })
  const id = request.id ?? `broker-${deps.random(3).toString('hex')}`
  await deps.registry.invite({ id, hash: secret.hash, expiresAt, now, by: request.by })
  return { url: deps.adminUrl, token: secret.text, root: deps.authority.bundle.roots.join(''), expiresAt }
}

/**
 * The first certificate of a broker; the same invitation and key again get another certificate for the same broker.
 * @throws MusterError csr_*, invalid_request (a host), token_unknown, token_spent, token_expired, clock_wrong
 */
export async function enrollBroker(
  deps: Deps,
  request: Omit<BrokerEnrollRequest, 'token'> & { tokenHash: string },
): Promise<BrokerCertificateReply> {
  const csr = await checkCsr(decodeCsr(request.csr), deps.caKeys)
  const hosts = request.hosts.map(checkedHost)
  deps.signingClock.check(deps.now())
  const broker = await deps.registry.acceptInvitation({
    hash: request.tokenHash,
    spkiHash: csr.spkiHash,
    now: deps.now(),
  })
  return certify(deps, { broker, spki: csr.spki, hosts })
}

/** @throws MusterError csr_*, invalid_request (a host), clock_wrong */
export async function renewBroker(
  deps: Deps,
  request: BrokerRenewRequest & { broker: string },
): Promise<BrokerCertificateReply> {
  const csr = await checkCsr(decodeCsr(request.csr), deps.caKeys)
  const hosts = request.hosts.map(checkedHost)
  return certify(deps, { broker: request.broker, spki: csr.spki, hosts })
}

async function certify(
  deps: Deps,
  request: { broker: string; spki: Buffer; hosts: readonly string[] },
): Promise<BrokerCertificateReply> {
  const { der, notAfter } = await issueOwn(deps, {
    kind: 'broker',
    owner: request.broker,
    spki: request.spki,
    hosts: request.hosts,
    by: `broker:${request.broker}`,
  })
  return {
    broker: request.broker,
    notAfter,
    certificate: derToPem(der, 'CERTIFICATE'),
    chain: [...deps.authority.infrastructureChain, deps.authority.rootPem],
    roots: [...deps.authority.bundle.roots],
    trustDomain: deps.authority.trustDomain,
  }
}

/** @throws MusterError invalid_request */
function checkedHost(host: string): string {
  if (isIP(host) !== 0 || DNS_NAME.test(host)) return host
  throw new MusterError(
    'invalid_request',
    `Cannot use the host "${host}": it is neither a DNS name nor an IP address`,
  )
}
