/** Simulated devices in a process of their own, as many as it is told: `StormOrder` is its first argument. */
import { readFileSync } from 'node:fs'
import { seededRandom } from '../../device-sim/backoff.ts'
import { systemClock } from '../../device-sim/clock.ts'
import { openEnrollClient } from '../../device-sim/enroll-client.ts'
import { inParallel, openFleet } from '../../device-sim/fleet.ts'
import { type OpenLink, openLink } from '../../device-sim/mqtt-link.ts'

export interface StormOrder {
  readonly directory: string
  readonly prefix: string
  readonly count: number
  readonly token: string
  readonly broker: string
  readonly enrollment: string
  readonly caFile: string
}

export type StormAsk = 'count' | 'publish' | 'drain' | 'closings'

export interface StormCount {
  readonly type: 'count'
  readonly connected: number
  readonly refusals: number
}

/** When sockets closed that the devices had not closed themselves, ms since 1970, as the devices saw it. */
export interface StormClosings {
  readonly type: 'closings'
  readonly at: readonly number[]
}

/** How many messages of each device were acknowledged: all that it made. */
export interface StormSent {
  readonly type: 'sent'
  readonly sent: Readonly<Record<string, number>>
}

/** Devices that enroll, or connect for the first time, at a time. */
const AT_A_TIME = 16
const PUBLISH_EVERY_MS = 50
/**
 * Handshakes under way at a time: each device is a machine of its own in truth, and answers at once. Thousands at a time
 * in one process would all be late, and cut off for it.
 */
const HANDSHAKES = 32

const order: StormOrder = JSON.parse(process.argv[2] ?? '')
const stopping = new AbortController()
const { signal } = stopping
const random = seededRandom(order.prefix)
const enrollClient = openEnrollClient({
  ...{ url: order.enrollment, clock: systemClock, random, signal },
  patienceMs: 60_000,
})
const fleet = openFleet({
  ...order,
  seed: order.prefix,
  deps: {
    ...{ broker: order.broker, ca: readFileSync(order.caFile, 'utf8'), clock: systemClock, enrollClient },
    openLink: atMost(HANDSHAKES, openLink),
    reached: () => {},
  },
})
let refusals = 0
const closings: number[] = []
for (const device of fleet.devices) {
  device.events.on('refused', () => refusals++)
  device.events.on('lost', (at) => closings.push(at))
}
await inParallel(fleet.devices, { limit: AT_A_TIME, work: (device) => device.enroll(order.token) })
await inParallel(fleet.devices, { limit: AT_A_TIME, work: (device) => device.connect(signal) })

let publishing: NodeJS.Timeout | undefined
process.on('message', (ask: StormAsk) => {
  if (ask === 'publish') {
    publishing = setInterval(() => {
      for (const device of fleet.devices) device.publish()
    }, PUBLISH_EVERY_MS)
  } else if (ask === 'count') {
    const connected = fleet.devices.filter(({ isConnected }) => isConnected).length
    process.send?.({ type: 'count', connected, refusals } satisfies StormCount)
  } else if (ask === 'closings') {
    process.send?.({ type: 'closings', at: closings } satisfies StormClosings)
  } else void drain()
})
process.once('disconnect', () => process.exit())
process.send?.({ type: 'ready' })

/** The same, but whoever comes when so many are under way waits for its turn. */
function atMost(limit: number, open: OpenLink): OpenLink {
  const waiting: (() => void)[] = []
  let underWay = 0
  return async (options) => {
    while (underWay >= limit) await new Promise<void>((resolve) => waiting.push(resolve))
    underWay++
    try {
      return await open(options)
    } finally {
      underWay--
      waiting.shift()?.()
    }
  }
}

async function drain(): Promise<void> {
  clearInterval(publishing)
  await Promise.all(fleet.devices.map(({ outbox }) => outbox.drained()))
  const sent = Object.fromEntries(fleet.devices.map(({ id, outbox }) => [id, outbox.last]))
  process.send?.({ type: 'sent', sent } satisfies StormSent)
}
