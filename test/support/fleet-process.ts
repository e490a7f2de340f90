/**
 * Simulated devices in a process of their own, which renew and take up bundles as brokers tell them. Its first argument
 * is a {@link FleetOrder}; whoever started it sends a {@link Look} and gets a {@link Seen} when it holds.
 */
import { X509Certificate } from 'node:crypto'
import { existsSync, readFileSync } from 'node:fs'
import { join } from 'node:path'
import { seededRandom } from '../../device-sim/backoff.ts'
import { systemClock, untilSeen } from '../../device-sim/clock.ts'
import type { Device } from '../../device-sim/device.ts'
import { openEnrollClient } from '../../device-sim/enroll-client.ts'
import { openFleet } from '../../device-sim/fleet.ts'
import { openLink } from '../../device-sim/mqtt-link.ts'
import { RenewalHints } from '../../device-sim/renewal-hints.ts'
import { hearingTrust } from '../../device-sim/trust-news.ts'

export interface FleetOrder {
  readonly directory: string
  readonly count: number
  readonly token: string
  readonly broker: string
  readonly enrollment: string
  readonly caFile: string
}

/** Asks for the state in which every device is connected, has a certificate with life left, and this bundle. */
export interface Look {
  readonly number: number
  readonly version: number
  /** Serials that every device has left behind. */
  readonly renewed?: readonly string[]
}

export interface Seen {
  readonly number: number
  readonly devices: readonly {
    readonly id: string
    readonly serial: string
    /** Subject of the CA that issued its certificate. */
    readonly issuer: string
    /** End of its certificate, ms since 1970. */
    readonly notAfter: number
    readonly refusals: number
  }[]
}

/** The end of the window of renewal as a share of a certificate's life: a device that has not renewed by then is late. */
const LATE = 0.9

const order: FleetOrder = JSON.parse(process.argv[2] ?? '')
const { clock } = { clock: systemClock }
const random = seededRandom('years')
const stopping = new AbortController()
const enrollClient = openEnrollClient({
  ...{ url: order.enrollment, clock, random, signal: stopping.signal },
  patienceMs: 60_000,
})
const deviceOf = (id: string) => fleet.devices.find((device) => device.id === id)
const hints = new RenewalHints({
  ...{ clock, random, time: { of: (id) => deviceOf(id)?.trust, ask: enrollClient.time } },
  rotate: async (id, signal) => deviceOf(id)?.rotate(signal),
})
const hearing = hearingTrust(openLink, async (id, bundle) => deviceOf(id)?.heardTrust(bundle))
const fleet = openFleet({
  directory: order.directory,
  prefix: 'pump',
  count: order.count,
  seed: 'years',
  deps: {
    ...{ broker: order.broker, ca: readFileSync(order.caFile, 'utf8'), clock, enrollClient },
    openLink: hints.hearing(hearing),
    reached: () => {},
  },
})

for (const device of fleet.devices) {
  await device.enroll(order.token)
  await device.connect(stopping.signal)
}
process.on('message', (asked: Look | 'why') => {
  if (asked === 'why') process.send?.({ why: fleet.devices.map(stateOf) })
  else void answer(asked)
})
process.once('disconnect', () => process.exit())
process.send?.({ type: 'ready' })

/**
 * Never, when it does not hold: whoever asked has a deadline by a clock that is not faked. A device that is renewing is
 * waited for: the clock is moved next, and would cut it off.
 */
async function answer({ number, version, renewed = [] }: Look): Promise<void> {
  for (const device of fleet.devices) {
    device.publish()
    await device.outbox.drained() // acknowledged, so the connection is one
  }
  const isWell = (device: Device) =>
    device.isConnected &&
    device.credentials.candidate() === null &&
    !isLate(device) &&
    !renewed.includes(certificateOf(device).serialNumber) &&
    versionOf(device) >= version
  const limit = { ms: Number.POSITIVE_INFINITY, everyMs: 50, clock }
  await untilSeen(async () => (fleet.devices.every(isWell) ? true : null), limit)
  process.send?.({ number, devices: fleet.devices.map(seen) } satisfies Seen)
}

function certificateOf({ credentials }: Device): X509Certificate {
  return new X509Certificate(credentials.current()?.certificate ?? '')
}

function isLate(device: Device): boolean {
  const { validFromDate, validToDate } = certificateOf(device)
  const [from, to] = [validFromDate.getTime(), validToDate.getTime()]
  return device.trust.time.now() > from + (to - from) * LATE
}

/** For whoever has waited in vain. */
function stateOf(device: Device): string {
  const { validFromDate, validToDate } = certificateOf(device)
  const life = [validFromDate, validToDate].map((date) => date.toISOString()).join(' to ')
  const next = device.credentials.candidate()
  return [
    `${device.id} at ${new Date(device.trust.time.now()).toISOString()}: ${device.isConnected ? '' : 'not '}connected`,
    `certificate from ${life}${next === null ? '' : ', which is being renewed'}`,
    `bundle ${versionOf(device)}`,
    `${device.refusals.length} refusals`,
    `${device.outbox.unacknowledged.length} messages not acknowledged`,
  ].join(', ')
}

function versionOf({ credentials }: Device): number {
  const path = join(credentials.directory, 'trust.json')
  return existsSync(path) ? JSON.parse(readFileSync(path, 'utf8')).version : 1
}

function seen(device: Device): Seen['devices'][number] {
  const { serialNumber: serial, issuer, validToDate } = certificateOf(device)
  const [notAfter, refusals] = [validToDate.getTime(), device.refusals.length]
  return { id: device.id, serial, issuer, notAfter, refusals }
}
