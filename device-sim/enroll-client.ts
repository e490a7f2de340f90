import type { CaReply, CertificateReply, PendingReply } from '#shared/api'
import { isMusterError, MusterError } from '#shared/errors'
import type { JsonClient } from '#shared/json-client'
import { fullJitter, type Random } from './backoff.ts'
import type { Clock } from './clock.ts'
import type { IssuedPair } from './credential.ts'
import { inTime } from './device-time.ts'
import { type Asking, askOnce, askTime, type Believed } from './enroll-connection.ts'

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
 * costs nothing. Every answer tells the time, and a device whose time does not fit the service's certificate asks for it
 * first. All throw the MusterError of a refusal, and the last one when patience ends.
 */
export interface EnrollClient {
  enroll(request: { trust: Believed; token: string; csr: string }): Promise<CertificateReply>
  renew(request: { trust: Believed; pair: IssuedPair; csr: string }): Promise<CertificateReply>
  /** The trust bundle; asked for with the certificate, so that the plane sees who has it. */
  bundle(request: { trust: Believed; pair: IssuedPair }): Promise<CaReply>
  /** Asks once what time it is. @throws MusterError unreachable */
  time(trust: Believed): Promise<void>
}

const RETRY = { baseMs: 200, capMs: 10_000 }

export function openEnrollClient(options: EnrollClientOptions): EnrollClient {
  const { url } = options
  const time = (trust: Believed) => askTime({ url, trust })
  const send = <Reply>(from: Omit<Asking, 'url'>, work: (client: JsonClient) => Promise<Reply>) =>
    persist(options, () =>
      inTime(
        () => askOnce({ ...from, url }, work),
        () => time(from.trust),
      ),
    )
  return {
    enroll: ({ trust, ...body }) => send({ trust }, (client) => ask(client, { path: '/v1/enroll', body })),
    renew: ({ trust, pair, csr }) =>
      send({ trust, pair }, (client) => ask(client, { path: '/v1/renew', body: { csr } })),
    bundle: ({ trust, pair }) => send({ trust, pair }, (client) => client.send<CaReply>('GET', '/v1/ca')),
    time,
  }
}

async function ask(client: JsonClient, request: { path: string; body: unknown }): Promise<CertificateReply> {
  const reply = await client.send<CertificateReply | PendingReply>('POST', request.path, request.body)
  if ('state' in reply) throw waiting(reply)
  return reply
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
