import { setTimeout } from 'node:timers/promises'
import { MusterError } from '#shared/errors'
import { type Arrival, arrivalOf, arrive } from './arrivals.ts'
import { type BrokerUnderTest, startBroker } from './broker.ts'
import { LIFTED } from './handshakes.ts'
import { type Bench, type BenchContext, compare, type Side } from './harness.ts'
import { type Material, type MqttServer, materialOf, musterSide, startMosquitto, startNats } from './peers.ts'
import { type Plane, startPlane } from './plane.ts'
import { need } from './processes.ts'
import { enroll } from './scale-plane.ts'

const CONNECTIONS = 5_000
const AT_ONCE = 32
/** After a start and after the last connection: reports are sent, and what was freed is given back, ms. */
const SETTLE_MS = 3_000
const KIB = 1_024

export const memory: Bench = {
  name: 'memory',
  says: 'resident memory of each idle connection in a fresh process, beside mosquitto and nats-server',
  async run(context) {
    for (const program of ['mosquitto', 'nats-server'] as const) need(program)
    const count = Math.ceil(CONNECTIONS * context.effort)
    const plane = await startPlane(context)
    const first = await startBroker(context, { plane, settings: LIFTED })
    const { token } = await plane.admin.createToken({ batch: 'bench', uses: count })
    const ids = Array.from({ length: count }, (_, index) => `bench-${index}`)
    const arrivals = (await enroll(plane, { token, ids })).map(arrivalOf)
    const material = materialOf(context, { plane, broker: first })
    const sides = await sidesOf(context, { plane, first, material, arrivals })
    const how = { context, unit: 'KiB/connection', better: 'lower', figure: kibEach } as const
    const comparison = await compare(sides, how)
    return {
      ...comparison,
      goals: { 'KiB/connection': 72 },
      facts: { connections: { value: count, unit: '' } },
    }
  },
}

interface Grown {
  readonly count: number
  readonly octets: number
}

function kibEach({ count, octets }: Grown): number {
  return octets / count / KIB
}

interface Idle {
  readonly plane: Plane
  /** Has the directory in which the others start, and is stopped before. */
  readonly first: BrokerUnderTest
  readonly material: Material
  readonly arrivals: readonly Arrival[]
}

async function sidesOf(context: BenchContext, { plane, first, material, arrivals }: Idle) {
  const { directory } = first
  const starts = [
    async () => musterSide(await startBroker(context, { plane, directory, settings: LIFTED })),
    () => startMosquitto(context, material),
    () => startNats(context, material),
  ]
  await first.server.stop()
  const settleMs = SETTLE_MS * Math.min(1, context.effort * 4)
  const sides: Side<Grown>[] = []
  for (const start of starts) {
    const sample = await start()
    await sample.server.stop()
    const { name, command, version } = sample
    sides.push({ name, command, version, measure: async () => grow(await start(), { arrivals, settleMs }) })
  }
  const [ours, ...peers] = sides
  if (ours === undefined) throw new RangeError('no side of ours')
  return { ours, peers }
}

/** How much a process grows that has just started, when all are connected and say nothing. */
async function grow(
  { name, server, port }: MqttServer,
  { arrivals, settleMs }: { arrivals: readonly Arrival[]; settleMs: number },
): Promise<Grown> {
  await setTimeout(settleMs)
  const before = server.residentOctets()
  const open: { destroyed: boolean; destroy(): unknown }[] = []
  const count = arrivals.length
  try {
    await arrive(
      { port, arrivals, count, atOnce: AT_ONCE, tickets: null },
      (socket) => void open.push(socket),
    )
    await setTimeout(settleMs)
    const octets = server.residentOctets() - before
    const left = open.filter(({ destroyed }) => !destroyed).length
    if (left === count) return { count, octets }
    throw new MusterError('check_failed', `Cannot compare: of ${count} connections ${name} has kept ${left}`)
  } finally {
    for (const socket of open) socket.destroy()
    await server.stop()
  }
}
