/** Fleets that are held in one plan, and come back all at once: `muster broker` and its devices in processes. */
import { execFileSync } from 'node:child_process'
import type { Test } from 'tap'
import type { Receipt } from '#shared/api'
import { startEnrollment } from './enrollment.ts'
import type { Lag } from './lag-probe.ts'
import { invitedBroker } from './running-broker.ts'
import { ask, ensureBatch, openBystanders, startBroker, startFleet, until } from './storm-parts.ts'
import type { StormClosings, StormCount } from './storm-process.ts'

/** The broker has a core to itself, everybody else the other one. */
const BROKER_CORE = 0
const LOAD_CORE = 1
/** As many returns are seen refused; an address has 600 a minute before it has to wait. */
const REFUSALS = 500

export interface Storm {
  readonly receipt: Receipt
  /** From the request until the sockets had closed, as their devices saw it, ms, ascending. */
  readonly seenMs: readonly number[]
  /** From the request until the broker had closed the last socket, ms: the receipt counts from the hold's commit. */
  readonly closedMs: number
  /** Of the broker, from the request until everything that follows from the hold was done. */
  readonly holdLag: Lag
  /** Messages of the good devices that were acknowledged and did not arrive. */
  readonly lost: number
  readonly published: number
  /** How many refusals the held devices heard. */
  readonly refusals: number
  /** From the release of the hold until every device was back, ms. */
  readonly releaseMs: number
  /** From the restart of the broker until every device was back, ms. */
  readonly reconnectMs: number
  readonly reconnectLag: Lag
  /** CPU time of the broker from its restart until then, ms. */
  readonly reconnectCpuMs: number
}

export interface StormOptions {
  readonly devices: number
  readonly processes: number
  /** Broker and load have a core each (`taskset`). */
  readonly isPinned?: boolean
  /** Kept from run to run: its devices, which must be as many again, are enrolled once. */
  readonly data?: string | undefined
}

/** Holds `devices` live sessions in one plan, releases them, restarts the broker. */
export async function holdAndRestart(
  t: Test,
  { devices, processes, isPinned = false, data }: StormOptions,
): Promise<Storm> {
  const service = await startEnrollment(t, data === undefined ? {} : { data })
  const run = Date.now().toString(36)
  for (const { id } of (await service.admin.status()).brokers) await service.admin.forgetBroker(id)
  const args = [...(await invitedBroker(service, `broker-${run}`)), '--limit', 'connectionsPerAddress=20000']
  const first = await startBroker(t, args)
  const each = Math.ceil(devices / processes)
  const fleet = (batch: string, of: { prefix: string; count: number }) =>
    startFleet(t, service, { batch, broker: first.url, ...of })
  await ensureBatch(service, 'storm')
  const storms = await Promise.all(
    Array.from({ length: processes }, (_, n) => fleet('storm', { prefix: `storm${n}`, count: each })),
  )
  const count = async () => {
    const counts = await Promise.all(storms.map((storm) => ask<StormCount>(storm, 'count')))
    const sum = (of: (one: StormCount) => number) => counts.reduce((total, one) => total + of(one), 0)
    return { connected: sum(({ connected }) => connected), refusals: sum(({ refusals }) => refusals) }
  }
  const all = each * processes
  const began = Date.now()
  const said = (what: string) => t.comment(`${((Date.now() - began) / 1_000).toFixed(1)} s: ${what}`)
  await until(async () => (await count()).connected === all)
  await until(async () => ((await service.admin.status()).brokers[0]?.sessions ?? 0) === all)
  const good = await openBystanders(t, service, first)
  if (isPinned) {
    pin(first.process.pid, BROKER_CORE)
    for (const { pid } of [...storms, good.process, process]) pin(pid, LOAD_CORE)
  }

  await ask<Lag>(first.process, 'lag')
  const { id, counts } = await service.admin.proposePlan({
    action: 'hold',
    scope: { kind: 'batch', id: 'storm' },
  })
  const requestedAt = Date.now()
  const plan = await service.admin.applyPlan(id, counts.devices)
  const receipt = await service.admin.receipt(id, 30_000)
  const closedMs = (plan.appliedAt ?? requestedAt) + receipt.closeMs.max - requestedAt
  await until(async () => (await count()).connected === 0)
  await until(async () => (await count()).refusals >= Math.min(all, REFUSALS))
  said('every session is closed, and refused when it comes back')
  const holdLag = await ask<Lag>(first.process, 'lag')
  const { refusals } = await count()
  const closings = await Promise.all(storms.map((storm) => ask<StormClosings>(storm, 'closings')))
  const seenMs = closings.flatMap(({ at }) => at.map((ms) => ms - requestedAt)).sort((a, b) => a - b)

  const releasedAt = Date.now()
  await service.admin.undoPlan(id)
  await until(async () => (await count()).connected === all)
  const releaseMs = Date.now() - releasedAt
  said('back after the release')
  const { published, lost } = await good.end()

  await first.stop()
  const restartedAt = Date.now()
  const second = await startBroker(t, [...args, '--port', String(first.port)])
  if (isPinned) pin(second.process.pid, BROKER_CORE)
  await ask<Lag>(second.process, 'lag') // of its start
  await until(async () => (await count()).connected === all)
  const reconnectMs = Date.now() - restartedAt
  const reconnectLag = await ask<Lag>(second.process, 'lag')
  const reconnectCpuMs = reconnectLag.cpuMs
  return {
    ...{ receipt, closedMs, seenMs, holdLag, lost, published, refusals },
    ...{ releaseMs, reconnectMs, reconnectLag, reconnectCpuMs },
  }
}

function pin(pid: number | undefined, core: number): void {
  execFileSync('taskset', ['--all-tasks', '--cpu-list', '--pid', String(core), String(pid)], {
    stdio: 'ignore',
  })
}
