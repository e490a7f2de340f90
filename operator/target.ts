import type { PlanRequest } from '#shared/api'
import { MusterError } from '#shared/errors'

export interface TargetOptions {
  readonly batch?: string
  readonly fleet?: string
  readonly issuer?: string
}

/**
 * What a hold or a revocation is aimed at: exactly one of devices, a batch, a fleet, an issuer.
 * @throws MusterError invalid_request
 */
export function targetOf(
  devices: readonly string[],
  options: TargetOptions,
): Pick<PlanRequest, 'scope' | 'devices'> {
  const scopes = (['batch', 'fleet', 'issuer'] as const).flatMap((kind) => {
    const id = options[kind]
    return id === undefined ? [] : [{ kind, id }]
  })
  if (scopes.length + (devices.length > 0 ? 1 : 0) !== 1) {
    throw new MusterError(
      'invalid_request',
      'Cannot tell what is meant: name devices, or one of --batch, --fleet, --issuer',
    )
  }
  const [scope] = scopes
  if (scope) return { scope }
  const [first = '', ...others] = new Set(devices)
  return others.length === 0 ? { scope: { kind: 'device', id: first } } : { devices: [first, ...others] }
}
