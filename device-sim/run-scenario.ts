import { mkdtempSync, readFileSync } from 'node:fs'
import { rm } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { layout, type Ready } from '#shared/layout'

import { seededRandom } from './backoff.ts'
import type { Clock } from './clock.ts'
import type { RunOptions } from './config.ts'
import type { Device, DeviceDeps } from './device.ts'
import { type EnrollClient, openEnrollClient } from './enroll-client.ts'
import { type Fault, plantFault } from './faults.ts'
import { type Fleet, openDevice, openFleet } from './fleet.ts'
import { Judge } from './judge.ts'
import { openLink } from './mqtt-link.ts'
import type { Progress } from './progress.ts'
import { readReady } from './ready.ts'
import { RenewalHints } from './renewal-hints.ts'
import { quantiles, type RunReport } from './report.ts'
import type { Stage } from './stage.ts'
import { hearingTrust } from './trust-news.ts'
import { judge as conclude } from './verdict.ts'

export interface RunDeps {
  readonly clock: Clock
  readonly progress: Progress
  readonly reached: DeviceDeps['reached']
  /** Seed and name of this run when the options give none. */
  readonly runId: string
  /** Ends requests that wait for an answer. */
  readonly signal: AbortSignal
  /** Called with what must be undone when the run ends, however it ends; undone in reverse. */
  readonly onEnd: (undo: () => Promise<void> | void) => void
}

/** How long a device asks an enrollment service that does not answer, ms. */
const PATIENCE_MS = 30_000

/**
 * Plays the scenario of the options on a running plane and judges it.
 * @throws MusterError unreachable when there is no plane, and what else keeps the run from beginning
 */
export async function runScenario(options: RunOptions, deps: RunDeps): Promise<RunReport> {
  const startedAt = deps.clock.now()
  const { scenario } = options
  const stage = await setStage(options, deps)
  const { judge, fleet, spare, progress, failures } = stage
  const revocation = await scenario.play(stage)
  await fleet.stop()
  await spare?.stop()
  const devices = await judge.findings(fleet.devices, revocation)
  const listedOnCrl = revocation ? await judge.listedOnCrl(revocation) : 0
  const { outcome, findings } = conclude({
    devices,
    expects: { rotation: scenario.expects.rotation, revoked: options.revoke },
    sessions: revocation?.sessions ?? null,
    receipt: revocation?.receipt ?? null,
    listedOnCrl,
    seconds: (deps.clock.now() - startedAt) / 1000,
  })
  const times = Object.entries({ ...progress.times(), delivery: judge.witness.delays })
  return {
    schemaVersion: 1,
    scenario: scenario.name,
    seed: options.seed ?? deps.runId,
    startedAt: new Date(startedAt).toISOString(),
    outcome,
    latencyMs: Object.fromEntries(times.map(([name, values]) => [name, quantiles(values)])),
    refusals: refusalsIn(fleet),
    listedOnCrl,
    receipt: revocation?.receipt ?? null,
    findings: outcome.ok ? [] : [...findings, ...failures.slice(0, 20)],
  }
}

async function setStage(options: RunOptions, deps: RunDeps): Promise<Stage> {
  const { clock, progress, runId, onEnd } = deps
  const { scenario } = options
  const ready = readReady(options.data)
  const root = readFileSync(ready.caFile, 'utf8')
  const seed = options.seed ?? runId
  const fault = plantFault(options.fault, openLink)
  const { directory, prefix } = placeOf(options, deps)
  const random = seededRandom(`${seed}/choice`)
  const given = deviceDeps({ ready, root, fault, seed }, deps)
  const news = openNews(deps, { seed, fleet: () => fleet, askTime: given.enrollClient.time })
  const fleetOptions = {
    directory,
    prefix,
    count: options.devices,
    seed,
    deps: withNews(given, scenario.followsHints ? news : null),
  }
  const fleet = openFleet(fleetOptions)
  onEnd(() => fleet.stop())
  const spare = fault.needsSpare ? openDevice(`${prefix}-spare`, fleetOptions) : null
  onEnd(() => spare?.stop())
  const judge = await Judge.open({ ready, root, clock, run: runId })
  onEnd(() => judge.close())
  return {
    ...options,
    fleetId: options.fleet,
    fleet,
    spare,
    judge,
    fault,
    progress,
    clock,
    random,
    failures: [],
  }
}

/** What every device of the fleet is given: addresses, the pinned root, a clock. */
function deviceDeps(
  plane: { ready: Ready; root: string; fault: Fault; seed: string },
  { clock, signal, reached }: RunDeps,
): Omit<DeviceDeps, 'random'> {
  const { ready, root: ca, fault } = plane
  const random = seededRandom(`${plane.seed}/enroll`)
  const enrollClient = openEnrollClient({
    url: ready.enrollment,
    clock,
    random,
    signal,
    patienceMs: PATIENCE_MS,
  })
  return { broker: ready.broker, ca, clock, enrollClient, openLink: fault.openLink, reached }
}

interface News {
  readonly hints: RenewalHints
  deviceOf(id: string): Device | undefined
}

function openNews(
  { clock, onEnd }: RunDeps,
  of: { seed: string; fleet(): Fleet; askTime: EnrollClient['time'] },
): News {
  const deviceOf = (id: string) => of.fleet().devices.find((device) => device.id === id)
  const hints = new RenewalHints({
    clock,
    random: seededRandom(`${of.seed}/renewal`),
    time: { of: (id) => deviceOf(id)?.trust, ask: of.askTime },
    rotate: async (id, signal) => deviceOf(id)?.rotate(signal),
  })
  onEnd(() => hints.stop())
  return { hints, deviceOf }
}

/** Devices that listen to what the broker tells them: when to renew, and what to trust. */
function withNews(deps: Omit<DeviceDeps, 'random'>, news: News | null): Omit<DeviceDeps, 'random'> {
  if (news === null) return deps
  const { hints, deviceOf } = news
  const openLink = hearingTrust(deps.openLink, async (id, bundle) => deviceOf(id)?.heardTrust(bundle))
  return { ...deps, openLink: hints.hearing(openLink) }
}

/** Kept devices have names that the next run finds again; others are new every time. */
function placeOf(options: RunOptions, { runId, onEnd }: RunDeps): { directory: string; prefix: string } {
  if (options.keep) return { directory: layout(options.data).demo, prefix: options.fleet }
  const directory = mkdtempSync(join(tmpdir(), 'muster-sim-'))
  onEnd(() => rm(directory, { recursive: true, force: true }))
  return { directory, prefix: `${options.fleet}-${runId}` }
}

function refusalsIn({ devices }: Fleet): Record<string, number> {
  const counts: Record<string, number> = {}
  for (const { returnCode, offeredSession } of devices.flatMap(({ refusals }) => refusals)) {
    const how = `CONNACK ${returnCode}${offeredSession ? ' to a TLS session' : ''}`
    counts[how] = (counts[how] ?? 0) + 1
  }
  return counts
}
