import type { Evidence } from '#shared/errors'
import { capReached } from '#shared/policy/caps'
import { refusedReport } from '../refusals.ts'
import type { Dropped } from '../store/queues.ts'
import type { Expired } from '../store/session-expiry.ts'
import type { MqttDeps } from './aedes-callbacks.ts'
import { identityOf } from './mqtt-client.ts'

/** The first message of several that found the queue of a client full: it is the client's to hear of. */
export function reportDropped(
  deps: MqttDeps,
  clientId: string,
  { dropped, ...evidence }: Parameters<Dropped>[1],
): void {
  if (dropped > 1) return
  const fingerprint = deps.store.sessions.get(clientId)?.fingerprint ?? null
  deps.log.warn({ client: clientId, ...evidence }, 'queue is full: messages are dropped')
  report(deps, { clientId, fingerprint, evidence })
}

/** A client that comes back finds no session: here is where to read why. */
export function reportExpired(deps: MqttDeps, { session, allowance, messages }: Expired): void {
  const { client, fingerprint } = session
  const evidence = { ...capReached(allowance, 'sessionExpirySeconds'), client, messages }
  deps.log.info(evidence, 'session has ended: its client stayed away')
  report(deps, { clientId: client, fingerprint, evidence })
}

interface Loss {
  readonly clientId: string
  readonly fingerprint: string | null
  readonly evidence: Evidence
}

function report(deps: MqttDeps, { clientId, fingerprint, evidence }: Loss): void {
  const refused = { device: identityOf(clientId), fingerprint, address: '' }
  deps.report(refusedReport({ code: 'quota', evidence }, refused, deps.now()))
}
