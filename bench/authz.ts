import { readFileSync } from 'node:fs'
import { startBroker } from './broker.ts'
import type { Bench, BenchContext } from './harness.ts'
import { comparePattern, type PatternResult } from './message-sides.ts'
import { enrollFleet, type Mode, PATTERNS } from './patterns.ts'
import { type MqttServer, musterSide } from './peers.ts'
import { type Plane, startPlane } from './plane.ts'
import { programBeside } from './processes.ts'
import { UNTHROTTLED } from './publish.ts'

/** Delivered in one run: two seconds of the broker's processor, for what is looked for is a hundredth of it. */
const DELIVERIES = { 'fan-in': 1_200_000, 'fan-out': 6_000_000, pairs: 1_600_000 }
const MODE: Mode = { qos: 0, isDurable: false }
/** Most that authorization may take of the way of a message, %. */
const MOST = 3

export const authz: Bench = {
  name: 'authz',
  says: 'what authorization costs a message, beside the same broker when it grants everything',
  async run(context) {
    const plane = await startPlane(context)
    const fleet = await enrollFleet(plane)
    const ca = readFileSync(plane.layout.rootCertificate, 'utf8')
    const servers = [await startOne(context, plane, []), await startOne(context, plane, GRANTING)]
    const patterns: Record<string, PatternResult> = {}
    for (const pattern of PATTERNS) {
      context.say(pattern.name)
      const compared = { servers, ca, fleet, pattern, mode: MODE, deliveries: DELIVERIES[pattern.name] }
      patterns[pattern.name] = await comparePattern(context, compared)
    }
    const shares = Object.entries(patterns).map(([name, { ratio }]) => {
      const value = Number((100 * (1 - (ratio ?? 0))).toFixed(1))
      return [`authorization's part, ${name}`, { value, unit: '%', most: MOST }] as const
    })
    const { pairs } = patterns
    if (pairs === undefined) throw new RangeError('no pairs')
    const { unit, better, ours, peers, ratio, ratios } = pairs
    return { unit, better, ours, peers, ratio, ratios, patterns, facts: Object.fromEntries(shares) }
  },
}

const GRANTING = ['--import', programBeside(import.meta.url, 'granting')]

async function startOne(
  context: BenchContext,
  plane: Plane,
  options: readonly string[],
): Promise<MqttServer> {
  const broker = await startBroker(context, { plane, options, settings: [...UNTHROTTLED, '--presence'] })
  const side = musterSide(broker)
  if (options.length === 0) return side
  const command = side.command.replace('muster', 'node --import bench/granting.ts bin/muster.mjs')
  return { ...side, name: 'muster that grants everything', command }
}
