import { X509Certificate } from 'node:crypto'
import type { Socket } from 'node:net'
import { TLSSocket } from 'node:tls'
import type { FastifyRequest } from 'fastify'
import { isMusterError, MusterError } from '#shared/errors'
import { checkPeer, type Peer } from '#shared/identity/peer'
import type { Deps } from '../deps.ts'
import type { Actor, Credential } from '../registry/registry.ts'
import type { Limits } from './limits.ts'

/** Who is calling. A certificate counts only when the registry has it; an API token acts for an operator. */
export type Caller =
  | { readonly kind: 'nobody' }
  | { readonly kind: 'device'; readonly credential: Credential }
  | {
      readonly kind: 'operator' | 'broker' | 'server'
      readonly id: string
      /** Of the certificate, by which a long reply asks again whether it is still good; null for a token. */
      readonly fingerprint: string | null
    }

/** Whom a route is for. */
export type Role = 'anyone' | 'device' | 'operator' | 'broker'

export interface CallerDeps {
  readonly deps: Deps
  readonly limits: Limits
}

/** @throws MusterError unauthenticated when nobody is known, forbidden when it is somebody else */
export function demand(caller: Caller, role: Role): void {
  if (role === 'anyone' || caller.kind === role) return
  if (caller.kind !== 'nobody') {
    throw new MusterError('forbidden', `Cannot do this as ${caller.kind}: the route is for ${role}s`)
  }
  throw new MusterError('unauthenticated', `Cannot do this without credentials: the route is for ${role}s`)
}

/** For routes that are open to everybody: who it is, when he shows credentials that are good. */
export async function whoMayCall(
  at: CallerDeps,
  request: FastifyRequest,
  identify: (at: CallerDeps, request: FastifyRequest) => Promise<Caller>,
): Promise<Caller> {
  try {
    return await identify(at, request)
  } catch (error) {
    if (!isMusterError(error)) throw error
    return { kind: 'nobody' }
  }
}

/** How the caller appears in the audit log. */
export function actorOf(caller: Caller): Actor {
  if (caller.kind === 'nobody') return 'plane'
  return caller.kind === 'device' ? `device:${caller.credential.device.id}` : `${caller.kind}:${caller.id}`
}

/**
 * The device or service whose certificate was presented.
 * @throws MusterError nocert, unknown_ca, profile, expired, notyet, unrecorded
 */
export async function identifyDevice({ deps }: CallerDeps, request: FastifyRequest): Promise<Caller> {
  return { kind: 'device', credential: await credentialAt(deps, { request, now: deps.now() }) }
}

/**
 * The same, and while its fleet grants a grace time also a device whose certificate has expired: for renewals only.
 * Whether it is the newest of a device in service is for the registry to say.
 * @throws MusterError as `identifyDevice`
 */
export async function identifyLate(at: CallerDeps, request: FastifyRequest): Promise<Caller> {
  try {
    return await identifyDevice(at, request)
  } catch (error) {
    if (!isMusterError(error, 'expired')) throw error
    const { deps } = at
    const lastSecond =
      presented(peerOf(request.raw.socket), deps.authority.bundle.devices)?.validToDate.getTime() ?? 0
    const credential = await credentialAt(deps, { request, now: lastSecond })
    const { graceMs } = await deps.registry.showProfile(credential.device.fleet)
    if (deps.now() >= lastSecond + 1000 + graceMs) throw error
    return { kind: 'device', credential }
  }
}

/** Whose certificate was presented, judged as of `now`. @throws MusterError as `identifyDevice` */
async function credentialAt(
  deps: Deps,
  { request, now }: { request: FastifyRequest; now: number },
): Promise<Credential> {
  const certificate = presented(peerOf(request.raw.socket), deps.authority.bundle.devices)
  if (!certificate) {
    throw new MusterError('nocert', 'Cannot tell who asks: no client certificate was presented', {
      evidence: { address: request.ip },
    })
  }
  const expect = {
    trustDomain: deps.authority.trustDomain,
    kinds: ['device', 'service'],
    now,
  } as const
  const peer = checkPeer(certificate, expect)
  const credential = await deps.registry.findCredential({ fingerprint: peer.fingerprint })
  if (!credential || credential.device.id !== peer.id) throw unrecorded(peer)
  return credential
}

/**
 * The operator or broker that calls: by API token when one is given, else by certificate.
 * @throws MusterError token_unknown, rate, unknown_ca, profile, expired, notyet, unrecorded, revoked
 */
export async function identifyAdmin(at: CallerDeps, request: FastifyRequest): Promise<Caller> {
  const bearer = /^Bearer +(\S+)$/i.exec(request.headers.authorization ?? '')?.[1]
  return bearer === undefined ? byCertificate(at.deps, request) : byToken(at, { bearer, address: request.ip })
}

async function byToken(
  { deps, limits }: CallerDeps,
  from: { bearer: string; address: string },
): Promise<Caller> {
  const id = await limits.resolve({
    text: from.bearer,
    address: from.address,
    find: (hash) => deps.registry.findApiToken(hash, deps.now()),
  })
  return { kind: 'operator', id, fingerprint: null }
}

async function byCertificate(deps: Deps, request: FastifyRequest): Promise<Caller> {
  const certificate = presented(peerOf(request.raw.socket), deps.authority.bundle.infrastructures)
  if (!certificate) return { kind: 'nobody' }
  const expect = {
    trustDomain: deps.authority.trustDomain,
    kinds: ['operator', 'broker', 'server'],
    now: deps.now(),
  } as const
  const peer = checkPeer(certificate, expect)
  const row = await deps.registry.findInfrastructure(peer.fingerprint)
  if (!row || row.kind !== peer.kind || row.owner !== peer.id) throw unrecorded(peer)
  if (row.revokedAt !== null) {
    throw new MusterError(
      'revoked',
      `Cannot accept the certificate of ${peer.kind} "${peer.id}": it has been revoked`,
      {
        evidence: { serial: row.serial, revokedAt: row.revokedAt },
      },
    )
  }
  return { kind: row.kind, id: row.owner, fingerprint: row.fingerprint }
}

/** A client certificate, and what TLS thinks of it. */
export interface PeerCertificate {
  readonly certificate: X509Certificate
  /** Whether the chain reaches a CA of the listener. */
  readonly isVerified: boolean
  /** Why not. */
  readonly reason: string
}

/** The certificate that the client has presented, whoever issued it; null without one. */
export function peerOf(socket: Socket): PeerCertificate | null {
  if (!(socket instanceof TLSSocket)) return null
  const certificate = socket.getPeerX509Certificate()
  if (!certificate) return null
  const reason = String(socket.authorizationError ?? 'another issuer')
  return { certificate, isVerified: socket.authorized, reason }
}

/**
 * The client certificate of the connection, when there is one, of one of these issuers. `authorized` says that the chain
 * reaches the root; Node's servers cannot anchor trust at an intermediate (`setSecureContext` drops
 * `allowPartialTrustChain`), and what a resumed session says is old, so issuer and dates are checked per request.
 * @throws MusterError unknown_ca, expired, notyet
 */
export function presented(peer: PeerCertificate | null, issuers: readonly string[]): X509Certificate | null {
  if (peer === null) return null
  const { certificate, isVerified, reason } = peer
  const isOurs = issuers.some((pem) => {
    const issuer = new X509Certificate(pem)
    return certificate.checkIssued(issuer) && certificate.verify(issuer.publicKey)
  })
  const isOutOfDate = reason === 'CERT_HAS_EXPIRED' || reason === 'CERT_NOT_YET_VALID'
  if (isOurs && (isVerified || isOutOfDate)) return certificate // checkPeer names the date
  throw new MusterError(
    'unknown_ca',
    'Cannot accept the certificate: it is not of the CA that this listener trusts',
    {
      evidence: { issuer: certificate.issuer.replaceAll('\n', ', ').slice(0, 200), reason },
    },
  )
}

function unrecorded(peer: Peer): MusterError {
  return new MusterError(
    'unrecorded',
    `Cannot accept the certificate of "${peer.id}": the registry has no record of it`,
    {
      evidence: { fingerprint: peer.fingerprint, serial: peer.serial, waitedMs: 0 },
    },
  )
}
