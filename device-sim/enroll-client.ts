import type { CaReply, CertificateReply, PendingReply } from '#shared/api'
import { isMusterError, MusterError } from '#shared/errors'
import { type JsonClientOptions, openJsonClient } from '#shared/json-client'
import { fullJitter, type Random } from './backoff.ts'
import type { Clock } from './clock.ts'
import type { IssuedPair } from './credential.ts'

export interface EnrollClientOptions {
  /** Base URL of the enrollment listener. */
  readonly url: string
  readonly clock: Clock
  readonly random: Random
  readonly signal: AbortSignal
  /** How long one request is repeated while the service cannot answer, ms. */
  readonly patienceMs: number
}

/**
 * Asks for certificates, and asks again with full jitter while the service is unreachable, busy or failing.
 * The same token and key (or presented certificate and key) is the same request to the service: a lost reply
 * costs nothing. All throw the MusterError of a refusal, and the last one when patience ends. `ca`: the roots that the
 * device believes, PEM.
 */
export interface EnrollClient {
  enroll(request: { ca: string; token: string; csr: string }): Promise<CertificateReply>
  renew(request: { ca: string; pair: IssuedPair; csr: string }): Promise<CertificateReply>
  /** The trust bundle; asked for with the certificate, so that the plane sees who has it. */
  bundle(request: { ca: string; pair: IssuedPair }): Promise<CaReply>
}

const RETRY = { baseMs: 200, capMs: 10_000 }

export function openEnrollClient(options: EnrollClientOptions): EnrollClient {
  const { url } = options
  return {
    enroll: ({ ca, ...body }) => persist(options, () => ask({ url, ca }, { path: '/v1/enroll', body })),
    renew: ({ ca, pair: { certificate, key }, csr }) =>
      persist(options, () => ask({ url, ca, certificate, key }, { path: '/v1/renew', body: { csr } })),
    bundle: ({ ca, pair: { certificate, key } }) =>
      persist(options, () => fetchBundle({ url, ca, certificate, key })),
  }
}

/** One connection a request, as a device would: it asks once in weeks. */
async function ask(
  access: JsonClientOptions,
  request: { path: string; body: unknown },
): Promise<CertificateReply> {
  const client = openJsonClient(access)
  try {
    const reply = await client.send<CertificateReply | PendingReply>('POST', request.path, request.body)
    if ('state' in reply) throw waiting(reply)
    return reply
  } finally {
    await client.close()
  }
}

async function fetchBundle(access: JsonClientOptions): Promise<CaReply> {
  const client = openJsonClient(access)
  try {
    return await client.send<CaReply>('GET', '/v1/ca')
  } finally {
    await client.close()
  }
}

/** Asked again like a service that is busy: an operator may take his time. */
function waiting({ device, retryAfterS }: PendingReply): MusterError {
  return new MusterError('pending', `Cannot have a certificate for "${device}" yet: it waits for approval`, {
    evidence: { state: 'pending', retryAfterS },
  })
}

async function persist<Reply>(options: EnrollClientOptions, send: () => Promise<Reply>): Promise<Reply> {
  const until = options.clock.now() + options.patienceMs
  for (let attempt = 0; ; attempt++) {
    try {
      return await send()
    } catch (error) {
      const mayPass = isMusterError(error, 'unreachable', 'unavailable', 'rate', 'internal', 'pending')
      if (!mayPass || options.signal.aborted) throw error
      const waitMs = retryAfterMs(error.evidence.retryAfterS) + fullJitter(attempt, { ...RETRY, ...options })
      if (options.clock.now() + waitMs > until) throw error
      await options.clock.wait(waitMs, options.signal)
    }
  }
}

/** Jitter comes on top: everybody was told the same second. */
function retryAfterMs(seconds: unknown): number {
  return typeof seconds === 'number' && seconds > 0 ? seconds * 1000 : 0
}
