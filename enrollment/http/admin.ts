import { Type } from 'typebox'
import {
  ApiTokenRequest,
  BatchRequest,
  DeviceDecision,
  DeviceRequest,
  PlanApply,
  PlanRequest,
  ServiceRequest,
  TokenRequest,
} from '#shared/api'
import { Expiry } from '#shared/api/fields'
import { checkAudit } from '../audit-head.ts'
import { decodeCsr } from '../ca/check-csr.ts'
import { explain } from '../explain.ts'
import { certificateReply } from '../issuance.ts'
import { applyPlan, awaitReceipt, proposePlan, undoPlan } from '../plans.ts'
import { createService } from '../services.ts'
import { status } from '../status.ts'
import { cancelToken, checkedId, createApiToken, createToken, reissueDevice } from '../tokens.ts'
import { BOOTSTRAP_ROUTES } from './bootstrap.ts'
import { EVENT_ROUTES } from './events.ts'
import { FLEET_ROUTES } from './fleets.ts'
import { KEY_ROUTES } from './keys.ts'
import { MANUFACTURER_ROUTES } from './manufacturers.ts'
import { POLICY_ROUTES } from './policies.ts'
import { ROTATION_ROUTES } from './rotations.ts'
import { type Route, route } from './routes.ts'
import { SECOND_FACTOR_ROUTES } from './second-factors.ts'

const text = Type.Optional(Type.String({ maxLength: 128 }))
const TokenQuery = Type.Object({ batch: text })
const DeviceQuery = Type.Object({
  fleet: text,
  batch: text,
  state: text,
  after: text,
  limit: Type.Optional(Type.Integer({ minimum: 1, maximum: 1000 })),
})
const AuditQuery = Type.Object({
  after: Type.Optional(Type.Integer({ minimum: 0 })),
  limit: Type.Optional(Type.Integer({ minimum: 1, maximum: 1000 })),
})
const ReceiptQuery = Type.Object({ waitMs: Type.Optional(Type.Integer({ minimum: 0, maximum: 60_000 })) })
const ReissueRequest = Type.Object({ expiresAt: Type.Optional(Expiry) }, { additionalProperties: false })

const PAGE = 100
const RECEIPT_WAIT_MS = 10_000

const batches = [
  route({
    method: 'POST',
    path: '/v1/batches',
    role: 'operator',
    body: BatchRequest,
    handle: async ({ deps, body, by }) => deps.registry.createBatch(body, { now: deps.now(), by }),
  }),
  route({
    method: 'GET',
    path: '/v1/batches',
    role: 'operator',
    handle: async ({ deps }) => deps.registry.listBatches(),
  }),
]

const tokens = [
  route({
    method: 'POST',
    path: '/v1/tokens',
    role: 'operator',
    body: TokenRequest,
    handle: async ({ deps, body, by }) => createToken(deps, { ...body, by }),
  }),
  route({
    method: 'GET',
    path: '/v1/tokens',
    role: 'operator',
    query: TokenQuery,
    handle: async ({ deps, query }) => deps.registry.listTokens({ ...query, now: deps.now() }),
  }),
  route({
    method: 'POST',
    path: '/v1/tokens/:id/cancel',
    role: 'operator',
    handle: async ({ deps, param, by }) => cancelToken(deps, { id: param('id'), by }),
  }),
  route({
    method: 'POST',
    path: '/v1/api-tokens',
    role: 'operator',
    body: ApiTokenRequest,
    handle: async ({ deps, body, by }) => createApiToken(deps, { ...body, by }),
  }),
  route({
    method: 'GET',
    path: '/v1/api-tokens',
    role: 'operator',
    handle: async ({ deps }) => deps.registry.listApiTokens(),
  }),
  route({
    method: 'DELETE',
    path: '/v1/api-tokens/:name',
    role: 'operator',
    handle: async ({ deps, param, by }) =>
      deps.registry.cancelApiToken(param('name'), { now: deps.now(), by }),
  }),
]

const devices = [
  route({
    method: 'GET',
    path: '/v1/devices',
    role: 'operator',
    query: DeviceQuery,
    handle: async ({ deps, query }) => deps.registry.listDevices({ limit: PAGE, ...query, now: deps.now() }),
  }),
  route({
    method: 'GET',
    path: '/v1/devices/:id',
    role: 'operator',
    handle: async ({ deps, param }) => deps.registry.showDevice(param('id'), deps.now()),
  }),
  route({
    method: 'POST',
    path: '/v1/devices',
    role: 'operator',
    body: DeviceRequest,
    handle: async ({ deps, body: { id, batch, spki = null }, by }) =>
      deps.registry.addDevice({ id: checkedId(id), batch, spki, now: deps.now(), by }),
  }),
  route({
    method: 'POST',
    path: '/v1/devices/:id/approve',
    role: 'operator',
    body: DeviceDecision,
    handle: async ({ deps, param, body, by }) =>
      deps.registry.approveDevice({ id: param('id'), ...body }, { now: deps.now(), by }),
  }),
  route({
    method: 'POST',
    path: '/v1/devices/:id/reject',
    role: 'operator',
    body: DeviceDecision,
    handle: async ({ deps, param, body, by }) =>
      deps.registry.rejectDevice({ id: param('id'), ...body }, { now: deps.now(), by }),
  }),
  route({
    method: 'POST',
    path: '/v1/devices/:id/retire',
    role: 'operator',
    handle: async ({ deps, param, by }) => deps.registry.retireDevice(param('id'), { now: deps.now(), by }),
  }),
  route({
    method: 'POST',
    path: '/v1/devices/:id/reissue',
    role: 'operator',
    body: ReissueRequest,
    handle: async ({ deps, param, body, by }) => reissueDevice(deps, { ...body, device: param('id'), by }),
  }),
  route({
    method: 'POST',
    path: '/v1/services',
    role: 'operator',
    body: ServiceRequest,
    handle: async ({ deps, body, by }) =>
      certificateReply(deps, await createService(deps, { id: body.id, csr: decodeCsr(body.csr), by })),
  }),
  route({
    method: 'GET',
    path: '/v1/explain/:subject',
    role: 'operator',
    handle: async ({ deps, param }) => explain(deps, param('subject')),
  }),
  route({
    method: 'POST',
    path: '/v1/demo/clear',
    role: 'operator',
    handle: async ({ deps, by }) => ({
      devices: await deps.registry.clearSynthetic({ now: deps.now(), by }),
    }),
  }),
]

const plans = [
  route({
    method: 'POST',
    path: '/v1/plans',
    role: 'operator',
    body: PlanRequest,
    handle: async ({ deps, body, by }) => proposePlan(deps, { ...body, by }),
  }),
  route({
    method: 'GET',
    path: '/v1/plans',
    role: 'operator',
    handle: async ({ deps }) => deps.registry.listPlans(deps.now()),
  }),
  route({
    method: 'GET',
    path: '/v1/plans/:id',
    role: 'operator',
    handle: async ({ deps, param }) => deps.registry.showPlan(param('id'), deps.now()),
  }),
  route({
    method: 'POST',
    path: '/v1/plans/:id/apply',
    role: 'operator',
    body: PlanApply,
    handle: async ({ deps, param, body, by }) =>
      applyPlan(deps, { id: param('id'), devices: body.devices, by }),
  }),
  route({
    method: 'POST',
    path: '/v1/plans/:id/undo',
    role: 'operator',
    handle: async ({ deps, param, by }) => undoPlan(deps, { id: param('id'), by }),
  }),
  route({
    method: 'GET',
    path: '/v1/plans/:id/receipt',
    role: 'operator',
    query: ReceiptQuery,
    handle: async ({ deps, param, query, signal }) =>
      awaitReceipt(deps, { id: param('id'), waitMs: query.waitMs ?? RECEIPT_WAIT_MS, signal: signal() }),
  }),
]

const plane = [
  route({ method: 'GET', path: '/v1/status', role: 'operator', handle: async ({ deps }) => status(deps) }),
  route({ method: 'GET', path: '/healthz', role: 'anyone', handle: async () => ({ status: 'ok' }) }),
  route({
    method: 'GET',
    path: '/v1/audit',
    role: 'operator',
    query: AuditQuery,
    handle: async ({ deps, query }) => deps.registry.listAudit(query.after ?? 0, query.limit ?? PAGE),
  }),
  route({
    method: 'GET',
    path: '/v1/audit/verify',
    role: 'operator',
    handle: async ({ deps }) => checkAudit(deps, deps.auditHead),
  }),
]

/** The admin API, for operators. */
export const ADMIN_ROUTES: readonly Route[] = [
  ...EVENT_ROUTES,
  ...FLEET_ROUTES,
  ...POLICY_ROUTES,
  ...SECOND_FACTOR_ROUTES,
  ...KEY_ROUTES,
  ...ROTATION_ROUTES,
  ...BOOTSTRAP_ROUTES,
  ...MANUFACTURER_ROUTES,
  ...batches,
  ...tokens,
  ...devices,
  ...plans,
  ...plane,
]
