import { CutOverRequest, type IssuerRequests, RolloverRequest } from '#shared/api/rollover'
import {
  abortRollover,
  caTree,
  cutOver,
  finishRollover,
  requestIssuers,
  rolloverStatus,
  startRollover,
} from '../rollover.ts'
import { type Route, route } from './routes.ts'

/** The CAs, for operators. The rollover that is under way needs no name: there is at most one. */
export const CA_ROUTES: readonly Route[] = [
  route({ method: 'GET', path: '/v1/ca', role: 'operator', handle: async ({ deps }) => caTree(deps) }),
  route({
    method: 'GET',
    path: '/v1/ca/rollover',
    role: 'operator',
    handle: async ({ deps }) => rolloverStatus(deps),
  }),
  route({
    method: 'POST',
    path: '/v1/ca/rollover',
    role: 'operator',
    body: RolloverRequest,
    handle: async ({ deps, body, by }) => startRollover(deps, { ...body, by }),
  }),
  route({
    method: 'POST',
    path: '/v1/ca/rollover/request',
    role: 'operator',
    handle: async ({ deps }): Promise<IssuerRequests> => ({ requests: await requestIssuers(deps) }),
  }),
  route({
    method: 'POST',
    path: '/v1/ca/rollover/cut-over',
    role: 'operator',
    body: CutOverRequest,
    handle: async ({ deps, body, by }) => cutOver(deps, { ...body, by }),
  }),
  route({
    method: 'POST',
    path: '/v1/ca/rollover/abort',
    role: 'operator',
    handle: async ({ deps, by }) => abortRollover(deps, { by }),
  }),
  route({
    method: 'POST',
    path: '/v1/ca/rollover/finish',
    role: 'operator',
    handle: async ({ deps, by }) => finishRollover(deps, { by }),
  }),
]
