import { carry, type Load } from './flow.ts'
import { type BenchContext, type Comparison, compare, perCpuSecond, type Side } from './harness.ts'
import { type Fleet, type Mode, type OpenFlows, openFlows, type Pattern } from './patterns.ts'
import type { MqttServer } from './peers.ts'

const PAYLOAD_OCTETS = 64
const PAYLOAD = Buffer.alloc(PAYLOAD_OCTETS, 'x')
/** Messages in one write of a publisher, so that the load costs less than what it measures. */
const BATCH = 4

/** One pattern with one QoS, all sides. */
export interface PatternResult extends Comparison {
  readonly counted: string
  /** Processor seconds of the load for one of the server, by side. */
  readonly load: Readonly<Record<string, number>>
  /** Messages that did not arrive, by side; with QoS 1 that ends the bench. */
  readonly lost: Readonly<Record<string, number>>
}

export interface Compared {
  /** Ours first. */
  readonly servers: readonly MqttServer[]
  /** PEM; what the server certificates of all of them lead to. */
  readonly ca: string
  readonly fleet: Fleet
  readonly pattern: Pattern
  readonly mode: Mode
  /** Messages delivered in one run. */
  readonly deliveries: number
}

/** Connects everybody to every side, and lets the sides take turns. */
export async function comparePattern(context: BenchContext, compared: Compared): Promise<PatternResult> {
  const { servers, ca, fleet, pattern, mode } = compared
  const opened: OpenFlows[] = []
  const notes: Notes = { load: {}, lost: {} }
  const sides: Side[] = []
  for (const server of servers) {
    const open = await openFlows({ port: server.port, ca }, { fleet, pattern, mode })
    opened.push(open)
    sides.push(sideOf(context, { ...compared, server, open, notes }))
  }
  const [ours, ...peers] = sides
  if (ours === undefined) throw new RangeError('no side of ours')
  const how = { context, unit: 'messages/CPU-s', better: 'higher', figure: perCpuSecond } as const
  const comparison = await compare({ ours, peers }, how)
  for (const each of opened) await each.close()
  const acknowledged =
    mode.qos === 0 ? '' : ', acknowledged by the subscriber to the server and by it to the publisher'
  const counted = `${pattern.says}; messages of ${PAYLOAD_OCTETS} octets, ${BATCH} in a write, that reached a subscriber${acknowledged}`
  return { ...comparison, counted, ...notes }
}

interface Notes {
  readonly load: Record<string, number>
  readonly lost: Record<string, number>
}

interface SideOf extends Compared {
  readonly server: MqttServer
  readonly open: OpenFlows
  readonly notes: Notes
}

function sideOf(context: BenchContext, of: SideOf): Side {
  const { server, open, pattern, mode, deliveries, notes } = of
  const { name, command, version } = server
  const perFlow = (deliveries * context.effort) / pattern.flows / pattern.copies
  const load: Load = {
    count: Math.ceil(perFlow / BATCH) * BATCH,
    qos: mode.qos,
    payload: PAYLOAD,
    batch: BATCH,
  }
  return {
    name,
    command,
    version,
    async measure() {
      const [serverBefore, loadBefore] = [server.server.cpuS(), process.cpuUsage()]
      const { delivered, lost } = await carry(open.flows, load)
      const { user, system } = process.cpuUsage(loadBefore)
      const cpuS = server.server.cpuS() - serverBefore
      notes.load[name] = Number(((user + system) / 1e6 / cpuS).toPrecision(3))
      notes.lost[name] = (notes.lost[name] ?? 0) + lost
      return { count: delivered, cpuS }
    },
  }
}
