import { ClaimRequest, ManufacturedRequest, ManufacturerRequest } from '#shared/api'
import { createClaim } from '../claims.ts'
import { addManufacturer, cancelManufacturer, listManufactured } from '../manufacturers.ts'
import { type Route, route } from './routes.ts'

/** Certificates that devices enroll with, for operators. */
export const MANUFACTURER_ROUTES: readonly Route[] = [
  route({
    method: 'POST',
    path: '/v1/claims',
    role: 'operator',
    body: ClaimRequest,
    handle: async ({ deps, body, by }) => createClaim(deps, { ...body, by }),
  }),
  route({
    method: 'POST',
    path: '/v1/manufacturers',
    role: 'operator',
    body: ManufacturerRequest,
    handle: async ({ deps, body, by }) => addManufacturer(deps, { ...body, by }),
  }),
  route({
    method: 'GET',
    path: '/v1/manufacturers',
    role: 'operator',
    handle: async ({ deps }) => deps.registry.listManufacturers(deps.now()),
  }),
  route({
    method: 'POST',
    path: '/v1/manufacturers/:id/devices',
    role: 'operator',
    body: ManufacturedRequest,
    handle: async ({ deps, body, param, by }) =>
      listManufactured(deps, { ...body, manufacturer: param('id'), by }),
  }),
  route({
    method: 'POST',
    path: '/v1/manufacturers/:id/cancel',
    role: 'operator',
    handle: async ({ deps, param, by }) => cancelManufacturer(deps, { id: param('id'), by }),
  }),
]
