import { FleetRequest, ProfileRequest, QuarantineRequest } from '#shared/api'
import { createFleet, setProfile } from '../profiles.ts'
import { type Route, route } from './routes.ts'

/** Fleets and their profiles, for operators. */
export const FLEET_ROUTES: readonly Route[] = [
  route({
    method: 'POST',
    path: '/v1/fleets',
    role: 'operator',
    body: FleetRequest,
    handle: async ({ deps, body, by }) => createFleet(deps, { ...body, by }),
  }),
  route({
    method: 'GET',
    path: '/v1/fleets',
    role: 'operator',
    handle: async ({ deps }) => deps.registry.listFleets(),
  }),
  route({
    method: 'GET',
    path: '/v1/fleets/:id/profile',
    role: 'operator',
    handle: async ({ deps, param }) => deps.registry.showProfile(param('id')),
  }),
  route({
    method: 'PUT',
    path: '/v1/fleets/:id/profile',
    role: 'operator',
    body: ProfileRequest,
    handle: async ({ deps, param, body, by }) => setProfile(deps, { fleet: param('id'), profile: body, by }),
  }),
  route({
    method: 'GET',
    path: '/v1/fleets/:id/quarantine',
    role: 'operator',
    handle: async ({ deps, param }) => deps.registry.showQuarantine(param('id')),
  }),
  route({
    method: 'PUT',
    path: '/v1/fleets/:id/quarantine',
    role: 'operator',
    body: QuarantineRequest,
    handle: async ({ deps, param, body, by }) =>
      deps.registry.setQuarantine(param('id'), body.clones, { now: deps.now(), by }),
  }),
]
