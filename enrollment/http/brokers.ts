import { BrokerEnrollRequest, BrokerRenewRequest, InvitationRequest } from '#shared/api'
import { parseToken } from '#shared/token'
import { enrollBroker, inviteBroker, renewBroker } from '../brokers.ts'
import { isFaultOfCaller } from './api.ts'
import type { Caller } from './caller.ts'
import { type Route, route } from './routes.ts'

/** Brokers: invited and forgotten by operators; one enrolls by invitation and renews itself. */
export const BROKER_ROUTES: readonly Route[] = [
  route({
    method: 'GET',
    path: '/v1/brokers',
    role: 'operator',
    handle: async ({ deps }) => deps.brokerFaults.in(await deps.registry.listBrokers(deps.now())),
  }),
  route({
    method: 'POST',
    path: '/v1/brokers/invitations',
    role: 'operator',
    body: InvitationRequest,
    handle: async ({ deps, body, by }) => inviteBroker(deps, { ...body, by }),
  }),
  route({
    method: 'POST',
    path: '/v1/brokers/enroll',
    role: 'anyone',
    body: BrokerEnrollRequest,
    handle: async ({ deps, limits, address, body }) => {
      const invitation = parseToken(body.token) ?? (await limits.unknown(address))
      const key = `invitation ${address}`
      await limits.check(key, address)
      try {
        return await enrollBroker(deps, { tokenHash: invitation.hash, csr: body.csr, hosts: body.hosts })
      } catch (error) {
        if (isFaultOfCaller(error)) await limits.failed(key)
        throw error
      }
    },
  }),
  route({
    method: 'POST',
    path: '/v1/brokers/renew',
    role: 'broker',
    body: BrokerRenewRequest,
    handle: async ({ deps, caller, body }) => renewBroker(deps, { ...body, broker: brokerOf(caller).id }),
  }),
  route({
    method: 'DELETE',
    path: '/v1/brokers/:id',
    role: 'operator',
    handle: async ({ deps, param, by }) => {
      await deps.registry.forgetBroker(param('id'), { now: deps.now(), by })
      deps.reported.ring() // receipts no longer wait for it
      deps.changed.ring() // its stream ends
    },
  }),
]

/** The caller of a route whose role is `broker`. */
export function brokerOf(caller: Caller): { readonly id: string; readonly fingerprint: string } {
  if (caller.kind === 'broker' && caller.fingerprint !== null)
    return { ...caller, fingerprint: caller.fingerprint }
  throw new TypeError(`a route for brokers was run for ${caller.kind}`)
}
