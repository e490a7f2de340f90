import type { FastifyRequest } from 'fastify'
import { EnrollRequest, type PendingReply, type RenewalReply, RenewRequest } from '#shared/api'
import { isMusterError, MusterError } from '#shared/errors'
import { decodeCsr } from '../ca/check-csr.ts'
import type { Channel } from '../channel.ts'
import type { Deps } from '../deps.ts'
import { type EnrollmentRequest, enroll } from '../enroll.ts'
import { certificateReply, type Issued } from '../issuance.ts'
import { rememberRefusal } from '../refused.ts'
import type { Application, Credential } from '../registry/registry.ts'
import { type RenewalRequest, renew } from '../renew.ts'
import { caReply, noteAdoption } from '../trust.ts'
import { type BootstrapCredential, identifyBootstrap } from './bootstrap-caller.ts'
import type { Caller, CallerDeps, PeerCertificate } from './caller.ts'
import { STATUS } from './problem.ts'
import { Later, type Route, route } from './routes.ts'

interface EnrollingFrom extends CallerDeps {
  readonly address: string
  readonly channel: Channel
  peer(): PeerCertificate | null
}

/** The device API on the enrollment listener. */
export const API_ROUTES: readonly Route[] = [
  route({
    method: 'POST',
    path: '/v1/enroll',
    role: 'anyone',
    body: EnrollRequest,
    handle: async (call) => {
      const { token = null, csr } = call.body
      const enrolled = await enrollWith(call, { token, csr: () => decodeCsr(csr), label: null })
      return 'waitsFor' in enrolled ? pendingReply(enrolled) : certificateReply(call.deps, enrolled)
    },
  }),
  route({
    method: 'POST',
    path: '/v1/renew',
    role: 'device',
    renews: true,
    body: RenewRequest,
    handle: async (call) => {
      const request = { csr: () => decodeCsr(call.body.csr), names: 'optional' } as const
      return certificateReply(call.deps, await renewWith(call, request))
    },
  }),
  route({
    method: 'GET',
    path: '/v1/renewal',
    role: 'device',
    handle: async ({ caller }) => renewalReply(credentialOf(caller)),
  }),
  route({
    method: 'GET',
    path: '/v1/ca',
    role: 'anyone',
    greets: true,
    handle: async ({ deps, caller }) => {
      if (caller.kind === 'device') await noteAdoption(deps, caller.credential.device.id)
      return caReply(deps)
    },
  }),
  route({ method: 'GET', path: '/healthz', role: 'anyone', handle: async () => ({ status: 'ok' }) }),
]

/**
 * Enrolls with a token from the wire; without one, with the certificate that was presented: the claim of a batch, or
 * one of the device's manufacturer. Either is looked up before the request is parsed: a guess buys no cryptography.
 * Failures count against this token, or this device of a manufacturer, at this address; successes never do.
 * @throws MusterError token_*, rate, csr_*, and those of `identifyBootstrap` and `enroll`
 */
export async function enrollWith(
  { deps, limits, address, channel, peer }: EnrollingFrom,
  request: { token: string | null; csr(): Uint8Array } & Pick<EnrollmentRequest, 'label' | 'keyBy'>,
): Promise<Issued | Application> {
  const { token } = request
  const found =
    token === null
      ? await identifyBootstrap({ deps, limits, address }, peer())
      : await limits.resolve({ text: token, address, find: (hash) => findToken(deps, hash) })
  const key = [found.id, found.idevid?.fingerprint, address].join(' ')
  await limits.check(key, address)
  try {
    const { token: _, csr, ...asked } = request
    const { hash: tokenHash, idevid } = found
    const of = { ...asked, tokenHash, csr: csr(), channel }
    return await enroll(deps, idevid === undefined ? of : { ...of, idevid })
  } catch (error) {
    if (isFaultOfCaller(error)) await limits.failed(key)
    throw error
  }
}

/** The hash of a claim is that of its certificate: as a text nobody can have it. */
async function findToken(deps: Deps, hash: string): Promise<BootstrapCredential | null> {
  const view = await deps.registry.findToken(hash, deps.now())
  return view?.kind === 'token' ? { hash, id: view.id } : null
}

/**
 * Renews with the certificate of the connection. Failures count against the device: its certificate may be good, and
 * its requests still cost cryptography each.
 * @throws MusterError rate, csr_*, and those of `renew`
 */
export async function renewWith(
  {
    deps,
    limits,
    caller,
    address,
    channel,
  }: CallerDeps & { caller: Caller; address: string; channel: Channel },
  request: { csr(): Uint8Array } & Pick<RenewalRequest, 'names' | 'keyBy'>,
): Promise<Issued> {
  const presented = credentialOf(caller)
  const key = `renewal ${presented.device.id}`
  await limits.check(key, address)
  try {
    return await renew(deps, { ...request, presented, csr: request.csr(), channel })
  } catch (error) {
    if (isFaultOfCaller(error)) await limits.failed(key)
    throw error
  }
}

/** A disk that is full, or a clock that is wrong, is nobody's guess: whoever comes back as he was told must not be locked out. */
export function isFaultOfCaller(error: unknown): boolean {
  return isMusterError(error) && STATUS[error.code] < 500
}

function renewalReply({ certificate }: Credential): RenewalReply {
  const { device, serial, renewAfter, renewBefore, notAfter } = certificate
  return { device, serial, renewAfter, renewBefore, notAfter }
}

/** The credential of a caller whose role is `device`. */
function credentialOf(caller: Caller): Credential {
  if (caller.kind === 'device') return caller.credential
  throw new TypeError(`a route for devices was run for ${caller.kind}`)
}

/** Remembers a refusal at the enrollment listener, with the device as far as the caller proved to be one. */
export async function rememberFailure(
  { deps, limits }: CallerDeps,
  failure: { error: unknown; request: FastifyRequest; caller: Caller | null },
): Promise<void> {
  const { error, request, caller } = failure
  if (!(error instanceof MusterError) || error.code === 'rate') return
  const credential = caller?.kind === 'device' ? caller.credential : null
  const who = credential ? { device: credential.device.id } : { address: request.ip }
  if (!(await limits.mayRecord(who))) return
  await rememberRefusal(deps, {
    error,
    device: credential?.device.id ?? null,
    fingerprint: credential?.certificate.fingerprint ?? null,
    address: request.ip,
  })
}

/** So long a device that waits for approval should wait before it asks again, s. */
export const APPROVAL_RETRY_S = 30

function pendingReply({ device, spki, since }: Application): Later {
  const body: PendingReply = { state: 'pending', device, spki, since, retryAfterS: APPROVAL_RETRY_S }
  return new Later(body, APPROVAL_RETRY_S)
}
