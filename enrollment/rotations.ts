import type { RotationProgress, RotationRequest, RotationView } from '#shared/api'
import { MusterError } from '#shared/errors'
import type { DeviceId } from '#shared/identity/device'
import type { Deps } from './deps.ts'
import type { Actor, NewRotation } from './registry/registry.ts'

/** Windows moved in one commit: a slice blocks the event loop for a few milliseconds at most. */
const SLICE = 200
/** Certificates looked at in one read. */
const PAGE = 1_000
/** Stragglers that are named. */
const NAMED = 100

/** Begins a campaign; its windows are moved by `paceDue`. @throws MusterError invalid_request, not_found */
export async function beginRotation(
  deps: Deps,
  { by, overMs, ...request }: RotationRequest & { by: Actor },
): Promise<RotationView> {
  const id = `r-${deps.random(6).toString('hex')}`
  return deps.registry.beginRotation({ id, overMs, target: targetOf(request), by, now: deps.now() })
}

function targetOf({ scope, devices }: Pick<RotationRequest, 'scope' | 'devices'>): NewRotation['target'] {
  if ((scope === undefined) === (devices === undefined)) {
    throw new MusterError('invalid_request', 'Cannot tell what to rotate: give either a scope or devices')
  }
  if (scope) return { scope: scope.kind, id: scope.id }
  return { devices: (devices ?? []) as DeviceId[] } // checked by the schema of the request
}

/** Moves the windows of every campaign that has begun, slice by slice. */
export async function paceDue(deps: Deps, signal: AbortSignal): Promise<void> {
  for (const id of await deps.registry.pacingRotations()) {
    for (let isDone = false; !isDone && !signal.aborted; ) {
      isDone = await deps.registry.paceRotation(id, SLICE, { now: deps.now(), by: 'plane' })
    }
  }
}

/** Where a campaign stands, counted page by page. @throws MusterError not_found */
export async function rotationProgress(deps: Deps, id: string): Promise<RotationProgress> {
  const rotation = await deps.registry.showRotation(id)
  const counts = { moved: 0, rotated: 0, waiting: 0, late: 0, gone: 0 }
  const stragglers: string[] = []
  const now = deps.now()
  for (let after = 0, more = true; more; ) {
    const members = await deps.registry.rotationMembers(id, { after, limit: PAGE, now })
    for (const { device, state } of members) {
      counts.moved++
      counts[state]++
      if (state === 'late' && stragglers.length < NAMED) stragglers.push(device)
    }
    more = members.length === PAGE
    after = members.at(-1)?.row ?? after
  }
  return { ...rotation, ...counts, stragglers }
}
