import { PolicyQuestion, TagRequest } from '#shared/api'
import { Policy } from '#shared/policy/schema'
import {
  answerPolicy,
  previewFleetPolicy,
  setDevicePolicy,
  setFleetPolicy,
  showDevicePolicy,
  showFleetPolicy,
  tagDevice,
} from '../policies.ts'
import { type Route, route } from './routes.ts'

/** What devices and services may publish and read, for operators. */
export const POLICY_ROUTES: readonly Route[] = [
  route({
    method: 'GET',
    path: '/v1/fleets/:id/policy',
    role: 'operator',
    handle: async ({ deps, param }) => showFleetPolicy(deps, param('id')),
  }),
  route({
    method: 'PUT',
    path: '/v1/fleets/:id/policy',
    role: 'operator',
    body: Policy,
    handle: async ({ deps, param, body, by }) =>
      setFleetPolicy(deps, { fleet: param('id'), policy: body, by }),
  }),
  route({
    method: 'POST',
    path: '/v1/fleets/:id/policy/preview',
    role: 'operator',
    body: Policy,
    handle: async ({ deps, param, body }) => previewFleetPolicy(deps, { fleet: param('id'), policy: body }),
  }),
  route({
    method: 'GET',
    path: '/v1/devices/:id/policy',
    role: 'operator',
    handle: async ({ deps, param }) => showDevicePolicy(deps, param('id')),
  }),
  route({
    method: 'PUT',
    path: '/v1/devices/:id/policy',
    role: 'operator',
    body: Policy,
    handle: async ({ deps, param, body, by }) =>
      setDevicePolicy(deps, { device: param('id'), policy: body, by }),
  }),
  route({
    method: 'DELETE',
    path: '/v1/devices/:id/policy',
    role: 'operator',
    handle: async ({ deps, param, by }) => {
      await setDevicePolicy(deps, { device: param('id'), policy: null, by })
    },
  }),
  route({
    method: 'POST',
    path: '/v1/devices/:id/attributes',
    role: 'operator',
    body: TagRequest,
    handle: async ({ deps, param, body, by }) => tagDevice(deps, { device: param('id'), ...body, by }),
  }),
  route({
    method: 'POST',
    path: '/v1/policies/check',
    role: 'operator',
    body: PolicyQuestion,
    handle: async ({ deps, body }) => answerPolicy(deps, body),
  }),
]
