import { ImportRequest } from '#shared/api'
import { importDevices } from '../manifest.ts'
import { type Route, route } from './routes.ts'

/** Devices before they come, for operators. */
export const BOOTSTRAP_ROUTES: readonly Route[] = [
  route({
    method: 'POST',
    path: '/v1/devices/import',
    role: 'operator',
    body: ImportRequest,
    handle: async ({ deps, body, by }) => importDevices(deps, { ...body, by }),
  }),
  route({
    method: 'GET',
    path: '/v1/batches/:id/report',
    role: 'operator',
    handle: async ({ deps, param }) => deps.registry.batchReport(param('id'), deps.now()),
  }),
]
