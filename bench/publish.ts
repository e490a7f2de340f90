import { readFileSync } from 'node:fs'
import { startBroker } from './broker.ts'
import type { Bench, BenchContext, Comparison } from './harness.ts'
import { comparePattern, type PatternResult } from './message-sides.ts'
import { enrollFleet, type Mode, PATTERNS, type Pattern } from './patterns.ts'
import { type MqttServer, materialOf, musterSide, startMosquitto, startNats } from './peers.ts'
import { newDirectory, type Plane, startPlane } from './plane.ts'
import { need } from './processes.ts'

/** Rates are lifted: what is measured is how fast it can be, and a device may not publish that much by itself. */
export const UNTHROTTLED = ['publishPerSecond=0', 'connectsPerMinute=0'].flatMap((limit) => [
  '--limit',
  limit,
])
/** No side drops what has not been read yet; ours and nats-server take as much by themselves. */
const MOSQUITTO = ['max_inflight_messages 1000', 'max_queued_messages 100000']

interface Kind extends Mode {
  readonly name: string
  /** Messages delivered in one run; a second or two of a server's processor. */
  readonly deliveries: Readonly<Record<Pattern['name'], number>>
  /** Least ratio to mosquitto. */
  readonly goals: Readonly<Record<Pattern['name'], number>> | null
}

const KINDS: readonly Kind[] = [
  {
    name: 'QoS 0',
    qos: 0,
    isDurable: false,
    deliveries: { 'fan-in': 300_000, 'fan-out': 600_000, pairs: 300_000 },
    goals: { 'fan-in': 1.2, 'fan-out': 1.5, pairs: 1.2 },
  },
  {
    name: 'QoS 1',
    qos: 1,
    isDurable: false,
    deliveries: { 'fan-in': 100_000, 'fan-out': 200_000, pairs: 100_000 },
    goals: { 'fan-in': 1.1, 'fan-out': 0.85, pairs: 1.1 },
  },
  {
    name: 'QoS 1, durable sessions',
    qos: 1,
    isDurable: true,
    deliveries: { 'fan-in': 60_000, 'fan-out': 200_000, pairs: 60_000 },
    goals: null,
  },
]

/** The same with the least that ours should be over mosquitto; null where nothing is asked. */
interface Judged extends PatternResult {
  readonly goal: number | null
}

export const publish: Bench = {
  name: 'publish',
  says: 'messages delivered per server-CPU-second, beside mosquitto and nats-server',
  async run(context) {
    for (const program of ['mosquitto', 'nats-server'] as const) need(program)
    const plane = await startPlane(context)
    const fleet = await enrollFleet(plane)
    const ca = readFileSync(plane.layout.rootCertificate, 'utf8')
    const { clean, durable } = await startServers(context, plane)
    const patterns: Record<string, Judged> = {}
    for (const kind of KINDS) {
      for (const pattern of PATTERNS) {
        const name = `${pattern.name}, ${kind.name}`
        context.say(name)
        const servers = kind.isDurable ? durable : clean
        const deliveries = kind.deliveries[pattern.name]
        const compared = { servers, ca, fleet, pattern, mode: kind, deliveries }
        const result = await comparePattern(context, compared)
        patterns[name] = { ...result, goal: kind.goals?.[pattern.name] ?? null }
      }
    }
    return { ...smallest(Object.values(patterns).slice(0, PATTERNS.length)), patterns }
  },
}

/** For durable sessions a mosquitto that keeps them; the others keep what they keep in any case. */
async function startServers(
  context: BenchContext,
  plane: Plane,
): Promise<{ clean: MqttServer[]; durable: MqttServer[] }> {
  const broker = await startBroker(context, { plane, settings: [...UNTHROTTLED, '--presence'] })
  const material = materialOf(context, { plane, broker })
  const kept = ['persistence true', `persistence_location ${newDirectory(context)}/`]
  const [ours, nats] = [musterSide(broker), await startNats(context, material)]
  const mosquitto = await startMosquitto(context, material, MOSQUITTO)
  const keeping = await startMosquitto(context, material, [...MOSQUITTO, ...kept])
  return { clean: [ours, mosquitto, nats], durable: [ours, keeping, nats] }
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
