import { readFileSync } from 'node:fs'
import { startBroker } from './broker.ts'
import { carry } from './flow.ts'
import {
  type Bench,
  type BenchContext,
  type Comparison,
  compare,
  perCpuSecond,
  type Side,
} from './harness.ts'
import {
  enrollFleet,
  type Fleet,
  type Mode,
  type OpenFlows,
  openFlows,
  PATTERNS,
  type Pattern,
} from './patterns.ts'
import { type MqttServer, materialOf, musterSide, startMosquitto, startNats } from './peers.ts'
import { newDirectory, startPlane } from './plane.ts'
import { need } from './processes.ts'

const PAYLOAD_OCTETS = 64
const PAYLOAD = Buffer.alloc(PAYLOAD_OCTETS, 'x')

/** Rates are lifted: what is measured is how fast it can be, and a device may not publish that much by itself. */
export const UNTHROTTLED = ['publishPerSecond=0', 'connectsPerMinute=0'].flatMap((limit) => [
  '--limit',
  limit,
])
/** No side drops what has not been read yet; ours and nats-server take as much of themselves. */
const MOSQUITTO = ['max_inflight_messages 1000', 'max_queued_messages 100000']

interface Kind extends Mode {
  readonly name: string
  /** Messages in one write of a publisher. */
  readonly batch: number
  /** Messages delivered in one run; a second or two of a server's processor. */
  readonly deliveries: number
  /** Least ratio to mosquitto. */
  readonly goals: Readonly<Record<Pattern['name'], number>> | null
}

const KINDS: readonly Kind[] = [
  {
    name: 'QoS 0',
    qos: 0,
    isDurable: false,
    batch: 1,
    deliveries: 200_000,
    goals: { 'fan-in': 1.2, 'fan-out': 1.5, pairs: 1.2 },
  },
  {
    name: 'QoS 1',
    qos: 1,
    isDurable: false,
    batch: 1,
    deliveries: 100_000,
    goals: { 'fan-in': 1.1, 'fan-out': 0.85, pairs: 1.1 },
  },
  { name: 'QoS 1, durable sessions', qos: 1, isDurable: true, batch: 1, deliveries: 100_000, goals: null },
]

/** One pattern with one QoS, all sides. */
interface PatternResult extends Comparison {
  readonly counted: string
  /** Least ratio to mosquitto; null where there is none. */
  readonly goal: number | null
  /** Processor seconds of the load for one of the server, by side. */
  readonly load: Readonly<Record<string, number>>
  /** Messages that did not arrive, by side; of QoS 1 none is left out. */
  readonly lost: Readonly<Record<string, number>>
}

export const publish: Bench = {
  name: 'publish',
  says: 'messages delivered per server-CPU-second, beside mosquitto and nats-server',
  async run(context) {
    for (const program of ['mosquitto', 'nats-server'] as const) need(program)
    const plane = await startPlane(context)
    const fleet = await enrollFleet(plane)
    const ca = readFileSync(plane.layout.rootCertificate, 'utf8')
    const broker = await startBroker(context, { plane, settings: [...UNTHROTTLED, '--presence'] })
    const material = materialOf(context, { plane, broker })
    const clean = await startMosquitto(context, material, MOSQUITTO)
    const stored = ['persistence true', `persistence_location ${newDirectory(context)}/`]
    const durable = await startMosquitto(context, material, [...MOSQUITTO, ...stored])
    const nats = await startNats(context, material)
    const patterns: Record<string, PatternResult> = {}
    for (const kind of KINDS) {
      const servers = [musterSide(broker), kind.isDurable ? durable : clean, nats]
      for (const pattern of PATTERNS) {
        const name = `${pattern.name}, ${kind.name}`
        context.say(name)
        patterns[name] = await comparePattern(context, { servers, ca, fleet, pattern, kind })
      }
    }
    return { ...smallest(Object.values(patterns).slice(0, PATTERNS.length)), patterns }
  },
}

/** Of those of QoS 0 the one that says least for us. */
function smallest([first, ...others]: readonly PatternResult[]): Comparison {
  if (first === undefined) throw new RangeError('no pattern')
  const { unit, better, ours, peers, ratio, ratios } = others.reduce(
    (least, each) => ((each.ratio ?? 0) < (least.ratio ?? 0) ? each : least),
    first,
  )
  return { unit, better, ours, peers, ratio, ratios }
}

interface Compared {
  /** Ours first. */
  readonly servers: readonly MqttServer[]
  readonly ca: string
  readonly fleet: Fleet
  readonly pattern: Pattern
  readonly kind: Kind
}

async function comparePattern(context: BenchContext, compared: Compared): Promise<PatternResult> {
  const { servers, ca, fleet, pattern, kind } = compared
  const opened: OpenFlows[] = []
  const [load, lost]: [Record<string, number>, Record<string, number>] = [{}, {}]
  const sides: Side[] = []
  for (const server of servers) {
    const open = await openFlows({ port: server.port, ca }, { fleet, pattern, mode: kind })
    opened.push(open)
    sides.push(sideOf(context, { server, open, pattern, kind, notes: { load, lost } }))
  }
  const [ours, ...peers] = sides
  if (ours === undefined) throw new RangeError('no side of ours')
  const how = { context, unit: 'messages/CPU-s', better: 'higher', figure: perCpuSecond } as const
  const comparison = await compare({ ours, peers }, how)
  for (const each of opened) await each.close()
  const acknowledged = kind.qos === 0 ? '' : ', acknowledged by subscriber and server'
  const counted = `${pattern.says}; messages of ${PAYLOAD_OCTETS} octets that reached a subscriber${acknowledged}`
  return { ...comparison, counted, goal: kind.goals?.[pattern.name] ?? null, load, lost }
}

interface Notes {
  readonly load: Record<string, number>
  readonly lost: Record<string, number>
}

function sideOf(
  context: BenchContext,
  of: { server: MqttServer; open: OpenFlows; pattern: Pattern; kind: Kind; notes: Notes },
): Side {
  const { server, open, pattern, kind, notes } = of
  const { name, command, version } = server
  const perFlow = (kind.deliveries * context.effort) / pattern.flows / pattern.copies
  const { qos, batch } = kind
  const count = Math.ceil(perFlow / batch) * batch
  return {
    name,
    command,
    version,
    async measure() {
      const [serverBefore, loadBefore] = [server.server.cpuS(), process.cpuUsage()]
      const carried = await carry(open.flows, { count, qos, batch, payload: PAYLOAD })
      const { user, system } = process.cpuUsage(loadBefore)
      const cpuS = server.server.cpuS() - serverBefore
      notes.load[name] = Number(((user + system) / 1e6 / cpuS).toPrecision(3))
      notes.lost[name] = (notes.lost[name] ?? 0) + carried.lost
      return { count: carried.delivered, cpuS }
    },
  }
}
