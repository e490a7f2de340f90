import { isIP } from 'node:net'
import {
  ATTRIBUTE_NAME,
  type DevicePolicyView,
  type FleetPolicyView,
  type PolicyAnswer,
  type PolicyPreview,
  type PolicyQuestion,
} from '#shared/api'
import { MusterError } from '#shared/errors'
import type { DeviceRecord, Policy } from '#shared/feed'
import { SERVICES_FLEET } from '#shared/identity/device'
import { type Allowance, allowanceOf, defaultAllowance } from '#shared/policy/caps'
import { pathText, policyFaults } from '#shared/policy/check'
import { type CompiledPolicy, compilePolicies, type Verdict } from '#shared/policy/compile'
import { reservedFilter } from '#shared/policy/reserved'
import type { Rule } from '#shared/policy/rules'
import type { Deps } from './deps.ts'
import { cutsOf, newTally } from './policy-cuts.ts'
import { changesIn, limitsOf, tooDeep } from './policy-limits.ts'
import type { Actor } from './registry/registry.ts'

/** Devices that a preview looks at, at most; and in one turn of the event loop. */
const EXAMINED_MAX = 2_000
const SLICE = 50
const SHOWN_FAULTS = 5

/** Of brokers whose operators say nothing else. */
const DEFAULTS: Readonly<Record<DeviceRecord['kind'], Allowance>> = {
  device: defaultAllowance('device'),
  service: defaultAllowance('service'),
}

/** @throws MusterError invalid_request with the first faults and their places */
export function checkPolicy(policy: Policy): void {
  const faults = policyFaults(policy)
  if (faults.length === 0) return
  const shown = faults.slice(0, SHOWN_FAULTS).map(({ path, message }) => `${pathText(path)}: ${message}`)
  throw new MusterError('invalid_request', `Cannot use the policy: ${shown.join('; ')}`)
}

/** @throws MusterError not_found */
export async function showFleetPolicy({ registry }: Deps, fleet: string): Promise<FleetPolicyView> {
  const found = (await registry.listFleets()).find(({ id }) => id === fleet)
  if (found === undefined) throw new MusterError('not_found', `Cannot find the fleet "${fleet}"`)
  return viewOfFleet({ ...found, fleet })
}

/** Counts for every device of the fleet within a second. @throws MusterError invalid_request, not_found */
export async function setFleetPolicy(
  { registry, now }: Deps,
  request: { fleet: string; policy: Policy; by: Actor },
): Promise<FleetPolicyView> {
  const { fleet, policy, by } = request
  checkPolicy(policy)
  const { policyEpoch } = await registry.setPolicy(fleet, policy, { now: now(), by })
  return viewOfFleet({ fleet, policy, policyEpoch })
}

function viewOfFleet({ fleet, policy, policyEpoch }: Omit<FleetPolicyView, 'limits'>): FleetPolicyView {
  const defaults = DEFAULTS[fleet === SERVICES_FLEET ? 'service' : 'device']
  return { fleet, policy, policyEpoch, limits: limitsOf(allowanceOf({ policy, defaults })) }
}

/** @throws MusterError not_found */
export async function showDevicePolicy(deps: Deps, id: string): Promise<DevicePolicyView> {
  const { device } = await deps.registry.policySubject(id)
  return viewOf(device, await policyOf(deps, device))
}

/** With null its fleet's counts alone. @throws MusterError invalid_request, not_found */
export async function setDevicePolicy(
  deps: Deps,
  { device: id, policy, by }: { device: string; policy: Policy | null; by: Actor },
): Promise<DevicePolicyView> {
  if (policy !== null) checkPolicy(policy)
  const { device } = await deps.registry.setDevicePolicy(id, policy, { now: deps.now(), by })
  return viewOf(device, await policyOf(deps, device))
}

/** @throws MusterError invalid_request, not_found */
export async function tagDevice(
  deps: Deps,
  { device: id, attributes, by }: { device: string; attributes: Record<string, string>; by: Actor },
): Promise<DevicePolicyView> {
  for (const [name, value] of Object.entries(attributes)) {
    if (!ATTRIBUTE_NAME.test(name))
      throw new MusterError(
        'invalid_request',
        `Cannot use the attribute "${name}": it has not the form of a name`,
      )
    if (/\p{Cc}/u.test(value))
      throw new MusterError('invalid_request', `Cannot keep "${name}": it has a control character`)
  }
  const { device } = await deps.registry.tagDevice(id, attributes, { now: deps.now(), by })
  return viewOf(device, await policyOf(deps, device))
}

/** May the device do this, and by which rule? The same code answers as in a broker. @throws MusterError not_found, invalid_request (no address) */
export async function answerPolicy(deps: Deps, question: PolicyQuestion): Promise<PolicyAnswer> {
  const { device: id, action, topic, qos = 0, retain = false, payloadBytes = 0, address = null } = question
  if (address !== null && isIP(address) === 0)
    throw new MusterError('invalid_request', `Cannot check for the address "${address}": it is none`)
  const { device } = await deps.registry.policySubject(id)
  const policies = { policy: await policyOf(deps, device), own: device.policy }
  const compiled = compilePolicies(policies, { ...device, address })
  const message = { topic, qos, retain, payload: { length: payloadBytes } }
  const { isAllowed, ...verdict } =
    action === 'publish' ? compiled.whyPublish(message) : whySubscribe(compiled, device, question)
  return { device: id, allowed: isAllowed, ...verdict }
}

function whySubscribe(
  compiled: CompiledPolicy,
  { kind }: DeviceRecord,
  { topic, qos }: PolicyQuestion,
): Verdict {
  const verdict = compiled.whySubscribe(topic, qos)
  const reason = reservedFilter(topic, kind) ?? tooDeep(compiled.allowance, topic)
  return verdict.isAllowed && reason !== null ? { isAllowed: false, rule: null, reason } : verdict
}

/** What the policy would take from the fleet's devices. @throws MusterError invalid_request, not_found */
export async function previewFleetPolicy(
  deps: Deps,
  { fleet, policy }: { fleet: string; policy: Policy },
): Promise<PolicyPreview> {
  checkPolicy(policy)
  const { policy: before } = await showFleetPolicy(deps, fleet)
  const { total, sample } = await deps.registry.samplePolicySubjects(fleet, EXAMINED_MAX)
  const tally = newTally()
  for (const [at, { device, isOnline }] of sample.entries()) {
    const client = { ...device, isSourceGiven: true }
    const both = { own: device.policy, defaults: DEFAULTS[device.kind] }
    cutsOf(tally, {
      device: device.id,
      isOnline,
      before: compilePolicies({ ...both, policy: before }, client),
      after: compilePolicies({ ...both, policy }, client),
    })
    if (at % SLICE === SLICE - 1) await new Promise(setImmediate)
  }
  const { affected } = tally
  const [cuts, limits] = [[...tally.cuts.values()], changesIn(tally.limits)]
  return { fleet, devices: total, examined: sample.length, affected, cuts, limits }
}

async function policyOf(deps: Deps, { fleet }: DeviceRecord): Promise<Policy> {
  return (await showFleetPolicy(deps, fleet)).policy
}

function viewOf(device: DeviceRecord, policy: Policy): DevicePolicyView {
  const { id, kind, fleet, batch, attributes = {}, policy: own = null } = device
  const policies = { policy, own, defaults: DEFAULTS[kind] }
  const compiled = compilePolicies(policies, { ...device, isSourceGiven: true })
  const [rules, limits] = [rulesOf(compiled, policies), limitsOf(compiled.allowance)]
  return { device: id, kind, fleet, batch, attributes, own, rules, limits }
}

function rulesOf(
  compiled: CompiledPolicy,
  { policy, own }: { readonly policy: Policy; readonly own: Policy | null },
): DevicePolicyView['rules'] {
  const shown = ({ origin, levels }: Rule) => {
    const rule = (origin.scope === 'own' ? own : policy)?.[origin.list][origin.index] ?? origin.topic
    return { ...origin, filter: levels.join('/'), rule }
  }
  return [...compiled.rules('publish'), ...compiled.rules('subscribe')].map(shown)
}
