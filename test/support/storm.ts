/** Fleets that are held in one plan, and come back all at once: `muster broker` and its devices in processes. */
import { type ChildProcess, execFileSync, fork } from 'node:child_process'
import { once } from 'node:events'
import { join } from 'node:path'
import { fileURLToPath } from 'node:url'
import type { Test } from 'tap'
import type { Receipt } from '#shared/api'
import { enrollService } from './broker-kills.ts'
import { type RunningEnrollment, startEnrollment } from './enrollment.ts'
import type { Lag } from './lag-probe.ts'
import { MUSTER } from './plane.ts'
import { connectAs, invitedBroker } from './running-broker.ts'
import type { StormClosings, StormCount, StormOrder, StormSent } from './storm-process.ts'

const FLEET = fileURLToPath(new URL('./storm-process.ts', import.meta.url))
const LAG_PROBE = fileURLToPath(new URL('./lag-probe.ts', import.meta.url))
/** Longest wait for anything, ms; only a hang meets it. */
const HANG_MS = 1_500_000
/** Devices that go on publishing while the others are held. */
const GOOD = 20
const ASK_EVERY_MS = 100
/** The broker has a core to itself, everybody else the other one. */
const BROKER_CORE = 0
const LOAD_CORE = 1

export interface Storm {
  readonly receipt: Receipt
  /** From the request until the sockets had closed, as their devices saw it, ms, ascending. */
  readonly seenMs: readonly number[]
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
}

/** Holds `devices` live sessions in one plan, releases them, restarts the broker. */
export async function holdAndRestart(
  t: Test,
  { devices, processes, isPinned = false }: StormOptions,
): Promise<Storm> {
  const service = await startEnrollment(t)
  const args = [...(await invitedBroker(service, 'broker-1')), '--limit', 'connectionsPerAddress=20000']
  const first = await startBroker(t, args)
  const each = Math.ceil(devices / processes)
  const fleet = (batch: string, of: { prefix: string; count: number }) =>
    startFleet(t, service, { batch, broker: first.url, ...of })
  await service.admin.createBatch({ id: 'storm' })
  await service.admin.createBatch({ id: 'good' })
  const storms = await Promise.all(
    Array.from({ length: processes }, (_, n) => fleet('storm', { prefix: `storm${n}`, count: each })),
  )
  const good = await fleet('good', { prefix: 'good', count: GOOD })
  const reader = await connectAs(service, { port: first.port }, await enrollService(service, 'backend'))
  const arrived = new Map<string, Set<string>>()
  reader.on('message', (topic, payload) => {
    const seen = arrived.get(topic) ?? new Set()
    arrived.set(topic, seen.add(String(payload)))
  })
  await reader.subscribeAsync('devices/+/telemetry', { qos: 1 })
  const count = async () => {
    const counts = await Promise.all(storms.map((storm) => ask<StormCount>(storm, 'count')))
    const sum = (of: (one: StormCount) => number) => counts.reduce((total, one) => total + of(one), 0)
    return { connected: sum(({ connected }) => connected), refusals: sum(({ refusals }) => refusals) }
  }
  const all = each * processes
  const began = Date.now()
  const said = (what: string) => t.comment(`${((Date.now() - began) / 1_000).toFixed(1)} s: ${what}`)
  await until(async () => (await count()).connected === all)
  await until(async () => ((await service.admin.status()).brokers[0]?.sessions ?? 0) === all + GOOD + 1)
  good.send('publish')
  await until(async () => arrived.size === GOOD)
  if (isPinned) {
    pin(first.process.pid, BROKER_CORE)
    for (const { pid } of [...storms, good, process]) pin(pid, LOAD_CORE)
  }

  await ask<Lag>(first.process, 'lag')
  const { id, counts } = await service.admin.proposePlan({
    action: 'hold',
    scope: { kind: 'batch', id: 'storm' },
  })
  const requestedAt = Date.now()
  await service.admin.applyPlan(id, counts.devices)
  const receipt = await service.admin.receipt(id, 30_000)
  await until(async () => (await count()).connected === 0)
  await until(async () => (await count()).refusals > 0)
  said('every session is closed, and refused when it comes back')
  const { sent } = await ask<StormSent>(good, 'drain')
  const missing = () =>
    Object.entries(sent).reduce(
      (total, [device, made]) => total + made - (arrived.get(`devices/${device}/telemetry`)?.size ?? 0),
      0,
    )
  // What was acknowledged is on its way to a live subscriber: only what stays away for ever is lost.
  const deadline = Date.now() + 30_000
  while (missing() > 0 && Date.now() < deadline) await pause()
  const lost = missing()
  const holdLag = await ask<Lag>(first.process, 'lag')
  const { refusals } = await count()
  const closings = await Promise.all(storms.map((storm) => ask<StormClosings>(storm, 'closings')))
  const seenMs = closings.flatMap(({ at }) => at.map((ms) => ms - requestedAt)).sort((a, b) => a - b)

  const releasedAt = Date.now()
  await service.admin.undoPlan(id)
  await until(async () => (await count()).connected === all)
  const releaseMs = Date.now() - releasedAt
  said('back after the release')
  await reader.endAsync(true)

  await first.stop()
  const restartedAt = Date.now()
  const second = await startBroker(t, [...args, '--port', String(first.port)])
  if (isPinned) pin(second.process.pid, BROKER_CORE)
  await until(async () => (await count()).connected === all)
  const reconnectMs = Date.now() - restartedAt
  const reconnectLag = await ask<Lag>(second.process, 'lag')
  const published = Object.values(sent).reduce((total, made) => total + made, 0)
  const reconnectCpuMs = reconnectLag.cpuMs
  return {
    ...{ receipt, seenMs, holdLag, lost, published, refusals },
    ...{ releaseMs, reconnectMs, reconnectLag, reconnectCpuMs },
  }
}

function pin(pid: number | undefined, core: number): void {
  execFileSync('taskset', ['--all-tasks', '--cpu-list', '--pid', String(core), String(pid)], {
    stdio: 'ignore',
  })
}

async function startBroker(t: Test, args: readonly string[]) {
  const child = fork(MUSTER, ['broker', ...args, '--log-level', 'error'], {
    execArgv: ['--import', LAG_PROBE],
    stdio: ['ignore', 'ignore', 'inherit', 'ipc'],
  })
  const gone = once(child, 'exit')
  t.teardown(async () => {
    child.kill('SIGKILL')
    await gone
  })
  const { details } = await heard<{ type: string; details: { broker: string } }>(child, 'ready')
  const stop = async () => {
    child.kill('SIGTERM')
    await gone
  }
  return { process: child, url: details.broker, port: Number(new URL(details.broker).port), stop }
}

async function startFleet(
  t: Test,
  service: RunningEnrollment,
  of: { batch: string; prefix: string; count: number; broker: string },
): Promise<ChildProcess> {
  const { token } = await service.admin.createToken({ batch: of.batch, uses: of.count })
  const order: StormOrder = {
    ...{ directory: join(service.data, of.prefix), prefix: of.prefix, count: of.count, token },
    ...{ broker: of.broker, enrollment: service.whereabouts.enrollment, caFile: service.whereabouts.caFile },
  }
  const child = fork(FLEET, [JSON.stringify(order)])
  const gone = once(child, 'exit')
  t.teardown(async () => {
    child.kill('SIGKILL')
    await gone
  })
  await heard(child, 'ready')
  return child
}

/** The next message of this type; fails when the process ends before it. */
async function heard<Message extends { readonly type: string }>(
  child: ChildProcess,
  type: Message['type'],
): Promise<Message> {
  const { promise, resolve, reject } = Promise.withResolvers<Message>()
  const timer = setTimeout(() => reject(new Error(`no "${type}" in time`)), HANG_MS)
  const look = (message: { readonly type?: string }) => {
    if (message.type === type) resolve(message as Message) // by its type
  }
  const ended = (code: number | null) => reject(new Error(`ended with ${code} before "${type}"`))
  child.on('message', look)
  child.once('exit', ended)
  try {
    return await promise
  } finally {
    clearTimeout(timer)
    child.off('message', look)
    child.off('exit', ended)
  }
}

function ask<Message extends { readonly type: string }>(
  child: ChildProcess,
  question: 'lag' | 'count' | 'drain' | 'closings',
): Promise<Message> {
  const answer = heard<Message>(child, question === 'drain' ? 'sent' : question)
  child.send(question)
  return answer
}

const pause = () => new Promise((resolve) => setTimeout(resolve, ASK_EVERY_MS))

async function until(holds: () => Promise<boolean>): Promise<void> {
  const deadline = Date.now() + HANG_MS
  while (!(await holds())) {
    if (Date.now() > deadline) throw new Error(`never came true: ${holds}`)
    await pause()
  }
}
