import { once } from 'node:events'
import { isMusterError } from '#shared/errors'
import { choose } from './backoff.ts'
import { untilSeen, within } from './clock.ts'
import type { Device } from './device.ts'
import { inParallel } from './fleet.ts'
import type { Revocation } from './judge.ts'
import type { Stage } from './stage.ts'
import type { Traffic } from './traffic.ts'

/** No device may take longer to connect or to switch over, ms. */
const DEVICE_DEADLINE_MS = 60_000
/** A closed socket and the refusal that follows it come long before this, ms. */
const REVOCATION_DEADLINE_MS = 10_000
/** For the last messages to be acknowledged, ms. */
const SETTLE_DEADLINE_MS = 15_000
/** What has been acknowledged and does not arrive is lost when nothing has arrived for so long, ms. */
const QUIET_MS = 4_000
const LOOK_EVERY_MS = 20

/** @throws MusterError unreachable when no device could reach the enrollment service */
export async function enrollAll(stage: Stage): Promise<void> {
  const { fleet, fleetId, judge, spare } = stage
  const isNew = fleet.devices.some(({ credentials }) => credentials.current() === null)
  if (!isNew && !spare) return
  const token = await judge.token(fleetId, fleet.devices.length + (spare ? 1 : 0))
  await eachDevice(stage, { name: 'enroll', work: (device) => device.enroll(token) })
  await spare?.enroll(token)
}

export async function connectAll(stage: Stage): Promise<void> {
  await eachDevice(stage, {
    name: 'connect',
    work: (device) => device.connect(AbortSignal.timeout(DEVICE_DEADLINE_MS)),
  })
}

export async function rotateAll(stage: Stage): Promise<void> {
  stage.judge.noteSerials(stage.fleet.devices)
  await eachDevice(stage, {
    name: 'rotate',
    work: (device) => device.rotate(AbortSignal.timeout(DEVICE_DEADLINE_MS)),
  })
  stage.fault.afterRotation(stage.fleet.devices)
}

/** Revokes some of the devices for good, and waits until each has lost its session and was refused once. */
export async function revokeSome(stage: Stage, traffic: Traffic): Promise<Revocation> {
  const { fleet, random, fault, judge, clock, spare } = stage
  const chosen = choose(fleet.devices, { count: stage.revoke, random })
  const [victim] = chosen
  if (victim) await fault.beforeRevocation(victim, spare)
  const limit = { ms: REVOCATION_DEADLINE_MS, late: null, clock }
  const refusals = chosen.map((device) => within(once(device.events, 'refused'), limit))
  const revocation = await judge.revoke(new Set(chosen), async (device) => {
    const lost: Promise<number> = once(device.events, 'lost').then(([at]) => at)
    if (device === victim) fault.atRevocation()
    return await within(lost, limit)
  })
  await Promise.all(refusals)
  traffic.stop(revocation.devices)
  return revocation
}

/** Lets every remaining device send its share, and waits until all of it is acknowledged and has arrived. */
export async function settle(
  stage: Stage,
  { traffic, without }: { traffic: Traffic; without: ReadonlySet<Device> },
): Promise<void> {
  const { fleet, clock, messages, judge } = stage
  const devices = fleet.devices.filter((device) => !without.has(device) && device.isConnected)
  const lacking = () => devices.some(({ outbox }) => outbox.last < messages)
  const patience = SETTLE_DEADLINE_MS + messages * devices.length * 10
  await untilSeen(async () => (lacking() ? null : true), { ms: patience, everyMs: LOOK_EVERY_MS, clock })
  traffic.end()
  const limit = { ms: SETTLE_DEADLINE_MS, late: null, clock }
  await within(Promise.all(devices.map(({ outbox }) => outbox.drained())), limit)
  const hasAll = () => devices.every(({ id, outbox }) => judge.witness.missing(id, outbox.last).length === 0)
  await judge.witness.waitFor(hasAll, QUIET_MS)
}

/** Does the work of a phase for every device; what fails is noted, and the rest goes on. */
async function eachDevice(
  stage: Stage,
  { name, work }: { name: string; work: (device: Device) => Promise<void> },
): Promise<void> {
  const { clock, fleet, failures, concurrency } = stage
  const phase = stage.progress.phase(name, fleet.devices.length)
  const errors: unknown[] = []
  await inParallel(fleet.devices, {
    limit: concurrency,
    work: async (device) => {
      const startedAt = clock.now()
      try {
        await work(device)
        phase.tick(clock.now() - startedAt)
      } catch (error) {
        errors.push(error)
        failures.push(`${device.id}: cannot ${name}: ${error instanceof Error ? error.message : error}`)
      }
    },
  })
  phase.end()
  const [first] = errors
  if (errors.length === fleet.devices.length && isMusterError(first, 'unreachable')) throw first
}
