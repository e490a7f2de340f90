import { readFileSync } from 'node:fs'
import { setTimeout } from 'node:timers/promises'
import { startBroker } from './broker.ts'
import { connectAll } from './connect.ts'
import {
  type Bench,
  type BenchContext,
  compare,
  type Fact,
  median,
  perCpuSecond,
  type Side,
} from './harness.ts'
import { oursWith } from './issue.ts'
import { keepAlive } from './load.ts'
import { startPlane } from './plane.ts'
import { enroll, type ScalePlane, scalePlane } from './scale-plane.ts'

const MANY = 1_000_000
const FEW = 1_000
/** In one run. */
const ENROLLMENTS = 2_000
const CONNECTS = 500
const CONNECTIONS = 16
/** Holds on every device, and starts. */
const REPEATS = 5
/** From the end of the load until what it left behind, such as reports, is done, ms. */
const SETTLE_MS = 500

export const enrollscale: Bench = {
  name: 'enrollscale',
  says: 'enrollments and first connections with 1 000 000 recorded devices, beside the same with 1 000',
  async run(context) {
    const devices = Math.ceil(MANY * Math.min(1, context.effort))
    context.say(`a plane with ${FEW} devices, and one with ${devices}`)
    const few = await scalePlane(context, FEW)
    const many = await scalePlane(context, devices)
    const snapshot = await snapshotFacts(many)
    const how = { context, better: 'higher', figure: perCpuSecond } as const
    context.say('enrollments')
    const enrollments = await compare(
      { ours: enrolling(context, many), peers: [enrolling(context, few)] },
      { ...how, unit: 'enrollments/CPU-s' },
    )
    context.say('first connections, by the processors of broker and enrollment together')
    const connections = await compare(
      { ours: connecting(context, many), peers: [connecting(context, few)] },
      { ...how, unit: 'connections/CPU-s' },
    )
    context.say('holds on every device, questions of an operator, and starts')
    const holds = await holdFacts(many)
    const starts = await startFacts(context, many)
    return { ...enrollments, also: { connections }, facts: { ...snapshot, ...holds, ...starts } }
  },
}

function nameOf({ devices }: ScalePlane): string {
  return `muster, ${devices} devices`
}

function enrolling(context: BenchContext, at: ScalePlane): Side {
  const { plane, token } = at
  return { ...oursWith(keepAlive, { context, plane, token, count: ENROLLMENTS }), name: nameOf(at) }
}

let made = 0

function connecting(context: BenchContext, at: ScalePlane): Side {
  const { plane, broker, token } = at
  const ca = readFileSync(plane.layout.rootCertificate, 'utf8')
  const count = Math.ceil(CONNECTS * context.effort)
  const cpuS = () => plane.server.cpuS() + broker.server.cpuS()
  return {
    name: nameOf(at),
    command: `${plane.command}; ${broker.command}`,
    version: `Node ${process.versions.node}, OpenSSL ${process.versions.openssl}`,
    async measure() {
      made += count
      const ids = Array.from({ length: count }, (_, index) => `first-${made - index}`)
      const pairs = await enroll(plane, { token, ids })
      await setTimeout(SETTLE_MS)
      const before = cpuS()
      await connectAll({ port: broker.port, ca }, { pairs, connections: CONNECTIONS })
      await setTimeout(SETTLE_MS) // the broker gathers its reports for a while
      return { count, cpuS: cpuS() - before }
    },
  }
}

/** What both processes went through while the broker received everything for the first time. */
async function snapshotFacts({ plane, broker, lag }: ScalePlane): Promise<Record<string, Fact>> {
  const mib = (octets: number) => octets / 2 ** 20
  return {
    'first snapshot': fact(broker.readyMs / 1_000, 's', 30),
    'first snapshot, broker': fact(broker.server.cpuS(), 'CPU-s'),
    'first snapshot, enrollment': fact(plane.server.cpuS(), 'CPU-s'),
    'longest turn in it, broker': fact(await lag.broker.longest(broker.server), 'ms'),
    'longest turn in it, enrollment': fact(await lag.enrollment.longest(plane.server), 'ms'),
    'memory after it, broker': fact(mib(broker.server.residentOctets()), 'MiB'),
    'memory after it, enrollment': fact(mib(plane.server.residentOctets()), 'MiB'),
  }
}

/** Times are those of the admin API: the request, its commit, the reply. */
async function holdFacts({ plane, lag }: ScalePlane): Promise<Record<string, Fact>> {
  const { admin } = plane
  const applied: number[] = []
  const turns: number[] = []
  for (let repeat = 0; repeat <= REPEATS; repeat++) {
    const scope = { kind: 'fleet', id: 'default' } as const
    const plan = await admin.proposePlan({ action: 'hold', scope })
    await lag.enrollment.longest(plane.server)
    const begun = performance.now()
    await admin.applyPlan(plan.id, plan.counts.devices)
    if (repeat > 0) applied.push(performance.now() - begun)
    turns.push(await lag.enrollment.longest(plane.server))
    await admin.undoPlan(plan.id)
  }
  const facts: Record<string, Fact> = {
    'hold on every device': fact(median(applied), 'ms', 10),
    'longest turn in it': fact(median(turns.slice(1)), 'ms'),
  }
  const questions = {
    status: () => admin.status(),
    'device list': () => admin.listDevices({ limit: 100 }),
    'list of retired devices': () => admin.listDevices({ state: 'retired' }),
    'batch report': () => admin.batchReport('bench'),
    'plan for every device': () =>
      admin.proposePlan({ action: 'hold', scope: { kind: 'fleet', id: 'default' } }),
  }
  for (const [name, ask] of Object.entries(questions)) {
    await lag.enrollment.longest(plane.server)
    await ask()
    facts[`longest turn, ${name}`] = fact(await lag.enrollment.longest(plane.server), 'ms')
  }
  return facts
}

/** Both are stopped first, as an operator would. */
async function startFacts(
  context: BenchContext,
  { plane, broker }: ScalePlane,
): Promise<Record<string, Fact>> {
  await broker.server.stop()
  await plane.server.stop()
  const enrollment: number[] = []
  const brokers: number[] = []
  for (let repeat = 0; repeat <= REPEATS; repeat++) {
    const again = await startPlane(context, { data: plane.layout.root })
    const follower = await startBroker(context, { plane: again, directory: broker.directory })
    if (repeat > 0) enrollment.push(again.readyMs)
    if (repeat > 0) brokers.push(follower.readyMs)
    await follower.server.stop()
    await again.server.stop()
  }
  return {
    'start of enrollment': fact(median(enrollment) / 1_000, 's', 3),
    'start of the broker': fact(median(brokers) / 1_000, 's', 3),
  }
}

function fact(value: number, unit: string, most?: number): Fact {
  return { value: Number(value.toPrecision(4)), unit, ...(most === undefined ? {} : { most }) }
}
