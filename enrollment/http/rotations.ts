import { RotationRequest } from '#shared/api'
import { beginRotation, rotationProgress } from '../rotations.ts'
import { type Route, route } from './routes.ts'

/** Campaigns of rotation, for operators. */
export const ROTATION_ROUTES: readonly Route[] = [
  route({
    method: 'POST',
    path: '/v1/rotations',
    role: 'operator',
    body: RotationRequest,
    handle: async ({ deps, body, by }) => beginRotation(deps, { ...body, by }),
  }),
  route({
    method: 'GET',
    path: '/v1/rotations',
    role: 'operator',
    handle: async ({ deps }) => deps.registry.listRotations(),
  }),
  route({
    method: 'GET',
    path: '/v1/rotations/:id',
    role: 'operator',
    handle: async ({ deps, param }) => rotationProgress(deps, param('id')),
  }),
]
