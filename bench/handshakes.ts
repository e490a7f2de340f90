import { readFileSync } from 'node:fs'
import { setTimeout } from 'node:timers/promises'
import { MusterError } from '#shared/errors'
import { type Arrival, arrivalOf, arrive, verifyServer } from './arrivals.ts'
import { startBroker } from './broker.ts'
import {
  type Bench,
  type BenchContext,
  compare,
  cpuMsEach,
  type Fact,
  type Measured,
  median,
  perCpuSecond,
  type Side,
} from './harness.ts'
import { type MqttServer, materialOf, musterSide, startBareNode, startMosquitto, startNats } from './peers.ts'
import { startPlane } from './plane.ts'
import { need, type Server } from './processes.ts'
import { enroll } from './scale-plane.ts'
import type { Ticket } from './tls13-hello.ts'

const DEVICES = 400
/** In one run: two to three seconds of a server's processor. */
const CONNECTS = 2_000
const AT_ONCE = 32
/** V8 goes on compiling what a connection runs for some 8 000 of them; what is to be measured has run for a while. */
const REHEARSALS = 4
/** From the last connection until what it left behind, such as reports, is done, ms. */
const SETTLE_MS = 500
/** Lifted, because the same few hundred devices come again and again; every other limit is as it is. */
export const LIFTED = ['--limit', 'connectsPerMinute=0']

export const connect: Bench = {
  name: 'connect',
  says: 'connections with a full TLS 1.3 handshake per server-CPU-second, beside mosquitto, nats-server and bare Node',
  run: (context) =>
    handshakes(context, { isResumed: false, goals: { mosquitto: 1.05, 'bare Node TLS': 0.85 } }),
}

export const resume: Bench = {
  name: 'resume',
  says: 'connections that resume a TLS session per server-CPU-second, beside the same peers',
  run: (context) => handshakes(context, { isResumed: true, goals: { mosquitto: 1 } }),
}

interface Kind {
  readonly isResumed: boolean
  /** Least ratio to a peer. */
  readonly goals: Readonly<Record<string, number>>
}

async function handshakes(context: BenchContext, { isResumed, goals }: Kind) {
  for (const program of ['mosquitto', 'nats-server'] as const) need(program)
  const plane = await startPlane(context)
  const broker = await startBroker(context, { plane, settings: LIFTED })
  const devices = Math.min(DEVICES, Math.ceil(CONNECTS * context.effort))
  const { token } = await plane.admin.createToken({ batch: 'bench', uses: devices })
  const ids = Array.from({ length: devices }, (_, index) => `bench-${index}`)
  const pairs = await enroll(plane, { token, ids })
  const material = materialOf(context, { plane, broker })
  const peers = [
    await startMosquitto(context, material),
    await startNats(context, material),
    await startBareNode(context, material),
  ]
  const ca = readFileSync(plane.layout.rootCertificate, 'utf8')
  const arrivals = pairs.map(arrivalOf)
  const notes: Notes = { load: {}, beside: [], plane: plane.server }
  const sides: Side[] = []
  for (const server of [musterSide(broker), ...peers]) {
    if (pairs[0] !== undefined) await verifyServer({ port: server.port, ca }, pairs[0])
    sides.push(sideOf(context, { server, arrivals, isResumed, notes }))
  }
  const [ours, ...others] = sides
  if (ours === undefined) throw new RangeError('no side of ours')
  const how = { context, unit: 'connections/CPU-s', better: 'higher', figure: perCpuSecond } as const
  const comparison = await compare({ ours, peers: others }, { ...how, rehearsals: REHEARSALS })
  const facts: Record<string, Fact> = {
    'enrollment, for each connection of ours': { value: median(notes.beside), unit: 'CPU-ms' },
  }
  return { ...comparison, facts, load: notes.load, goals }
}

interface Notes {
  readonly load: Record<string, number>
  /** What the enrollment service did meanwhile, with the reports of the broker, CPU-ms for each connection of ours. */
  readonly beside: number[]
  readonly plane: Server
}

interface Connecting {
  readonly server: MqttServer
  readonly arrivals: readonly Arrival[]
  readonly isResumed: boolean
  readonly notes: Notes
}

function sideOf(context: BenchContext, connecting: Connecting): Side {
  const { server, arrivals, isResumed, notes } = connecting
  const { name, command, version, port } = server
  const tickets = isResumed ? new Map<string, Ticket>() : null
  const count = Math.ceil(CONNECTS * context.effort)
  const load = { port, arrivals, atOnce: AT_ONCE, tickets }
  return {
    name,
    command,
    version,
    async measure(run) {
      if (tickets !== null && run === 0) {
        await arrive({ ...load, count: arrivals.length }, (socket) => socket.destroy())
        await setTimeout(SETTLE_MS)
      }
      const [ours, beside] = [process.cpuUsage(), notes.plane.cpuS()]
      const measured = await spent(server.server, count, () =>
        arrive({ ...load, count }, (socket, how) => {
          socket.destroy()
          if (how.isResumed !== isResumed) throw notAs(name, isResumed)
        }),
      )
      const { user, system } = process.cpuUsage(ours)
      notes.load[name] = Number(((user + system) / 1e6 / measured.cpuS).toPrecision(3))
      if (name === 'muster') {
        notes.beside.push(cpuMsEach({ count, cpuS: Math.max(0.001, notes.plane.cpuS() - beside) }))
      }
      return measured
    },
  }
}

async function spent(server: Server, count: number, work: () => Promise<void>): Promise<Measured> {
  const before = server.cpuS()
  await work()
  await setTimeout(SETTLE_MS)
  return { count, cpuS: server.cpuS() - before }
}

function notAs(name: string, isResumed: boolean): MusterError {
  const what = isResumed ? 'made a new session where one was offered' : 'resumed a session'
  return new MusterError('check_failed', `Cannot compare: ${name} ${what}`)
}
