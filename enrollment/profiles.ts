import type { FleetProfile, FleetRequest, FleetView, ProfileRequest } from '#shared/api'
import { MusterError } from '#shared/errors'
import { SERVICES_FLEET } from '#shared/identity/device'
import type { Deps } from './deps.ts'
import { checkPolicy } from './policies.ts'
import type { Actor } from './registry/registry.ts'

const VARIABLES: ReadonlySet<string> = new Set(['device.id', 'device.fleet', 'device.batch'])

/** @throws MusterError invalid_request (the profile), conflict */
export async function createFleet(deps: Deps, request: FleetRequest & { by: Actor }): Promise<FleetView> {
  const { by, ...fleet } = request
  if (fleet.profile) checkProfile(fleet.profile)
  if (fleet.policy) checkPolicy(fleet.policy)
  const { lifetimeMs } = fleet
  if (lifetimeMs && fleet.profile?.lifetimeMs && fleet.profile.lifetimeMs !== lifetimeMs) {
    throw invalid('lifetimeMs', 'the fleet and its profile name two lifetimes')
  }
  return deps.registry.createFleet(fleet, { now: deps.now(), by })
}

/** Counts from the next issuance on: certificates that devices have stay as they are. @throws MusterError invalid_request, not_found, conflict */
export async function setProfile(
  deps: Deps,
  request: { fleet: string; profile: ProfileRequest; by: Actor },
): Promise<FleetProfile> {
  if (request.fleet === SERVICES_FLEET) {
    throw new MusterError('conflict', 'Cannot set the profile of the services: it is fixed')
  }
  checkProfile(request.profile)
  return deps.registry.setProfile(request.fleet, request.profile, { now: deps.now(), by: request.by })
}

/** What the schema cannot say. Whether a template makes a name is known once there is a device. @throws MusterError invalid_request */
export function checkProfile({ keys, renewal, subject, san }: ProfileRequest): void {
  if (keys && new Set(keys).size !== keys.length) throw invalid('keys', 'a type is named twice')
  if (renewal && !(renewal.after + renewal.jitter < renewal.before && renewal.after > 0)) {
    throw invalid('renewal', 'the window must begin after 0, and begin with all its jitter before it ends')
  }
  const names = (san ?? []).map((name) => ('uri' in name ? name.uri : name.dns))
  for (const template of [...Object.values(subject ?? {}), ...names]) checkVariables(template)
  if (names.some((name) => /^spiffe:/i.test(name.trim()))) {
    throw invalid('san', 'a SPIFFE id is given by the plane alone')
  }
}

function checkVariables(template: string): void {
  const unknown = [...template.matchAll(/\$\{([^}]*)\}?/g)].find(
    ([whole, name = '']) => !VARIABLES.has(name) || !whole.endsWith('}'),
  )
  if (unknown !== undefined) {
    throw invalid(template.slice(0, 100), `"${unknown[0]}" is not one of ${[...VARIABLES].join(', ')}`)
  }
}

function invalid(what: string, why: string): MusterError {
  return new MusterError('invalid_request', `Cannot use the profile: ${what}: ${why}`)
}
