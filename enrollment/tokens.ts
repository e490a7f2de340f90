import type { ApiTokenReply, ApiTokenRequest, TokenReply, TokenRequest, TokenView } from '#shared/api'
import { MusterError } from '#shared/errors'
import { type DeviceId, isDeviceId } from '#shared/identity/device'
import { newToken } from '#shared/token'
import type { Deps } from './deps.ts'
import type { Actor } from './registry/registry.ts'

/** Life of a reissue token when nobody says otherwise, ms: it opens one identity, and somebody is waiting for it. */
const REISSUE_LIFE_MS = 7 * 86_400_000

/** The reply is the only place where the secret is. @throws MusterError invalid_request, conflict */
export async function createToken(deps: Deps, request: TokenRequest & { by: Actor }): Promise<TokenReply> {
  const now = deps.now()
  const secret = newToken(deps.random)
  const view = await deps.registry.createToken({
    id: secret.id,
    hash: secret.hash,
    batch: request.batch,
    uses: request.uses,
    expiresAt: expiry(request.expiresAt, { now, otherwise: null }),
    devices: request.devices ? [...new Set(request.devices)].map(checkedId) : null,
    naming: request.naming ?? null,
    approval: request.approval ?? false,
    now,
    by: request.by,
  })
  return { token: secret.text, ...view }
}

/** The same for a claim, and for a manufacturer. @throws MusterError not_found */
export async function cancelToken(deps: Deps, { id, by }: { id: string; by: Actor }): Promise<TokenView> {
  const view = await deps.registry.cancelToken(id, { now: deps.now(), by })
  await deps.manufacturers.refresh()
  return view
}

/** A one-use token with which this device enrolls once more, with a new key. @throws MusterError not_found, invalid_request */
export async function reissueDevice(
  deps: Deps,
  request: { device: string; expiresAt?: number; by: Actor },
): Promise<TokenReply> {
  const now = deps.now()
  const secret = newToken(deps.random)
  const view = await deps.registry.createReissue({
    id: secret.id,
    hash: secret.hash,
    device: checkedId(request.device),
    expiresAt: expiry(request.expiresAt, { now, otherwise: now + REISSUE_LIFE_MS }),
    now,
    by: request.by,
  })
  return { token: secret.text, ...view }
}

/** A token of the admin API. The reply is the only place where the secret is. @throws MusterError conflict, invalid_request */
export async function createApiToken(
  deps: Deps,
  request: ApiTokenRequest & { by: Actor },
): Promise<ApiTokenReply> {
  const now = deps.now()
  const secret = newToken(deps.random)
  const view = await deps.registry.createApiToken({
    name: request.name,
    hash: secret.hash,
    expiresAt: expiry(request.expiresAt, { now, otherwise: null }),
    now,
    by: request.by,
  })
  return { token: secret.text, ...view }
}

/** @throws MusterError invalid_request when it lies in the past */
export function expiry<Otherwise extends number | null>(
  expiresAt: number | undefined,
  clock: { now: number; otherwise: Otherwise },
): number | Otherwise {
  if (expiresAt === undefined) return clock.otherwise
  if (expiresAt > clock.now) return expiresAt
  throw new MusterError(
    'invalid_request',
    'Cannot make a token that has expired already: expiresAt is in the past',
  )
}

/** @throws MusterError invalid_request */
export function checkedId(id: string): DeviceId {
  if (isDeviceId(id)) return id
  throw new MusterError('invalid_request', `Cannot use the device id "${id}": the name is reserved`)
}
