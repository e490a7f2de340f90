import { generateKey, privateKeyPem } from '#shared/pki/keys'
import type { Flow } from './flow.ts'
import { type LoadClient, type LoadTarget, openLoadClient } from './mqtt-load-client.ts'
import type { Qos } from './mqtt-octets.ts'
import type { Plane } from './plane.ts'
import { type DevicePair, newCsr } from './requests.ts'
import { enroll } from './scale-plane.ts'

const DEVICES = 100
const SERVICES = 50
const NEWS = 'fleets/default/broadcast/news'

/** Clients with a certificate each, and the policies that a new plane gives them. */
export interface Fleet {
  readonly devices: readonly DevicePair[]
  readonly services: readonly DevicePair[]
}

/** Devices that have enrolled, and services; the first of those may speak to the whole fleet, too. */
export async function enrollFleet(plane: Plane): Promise<Fleet> {
  const { token } = await plane.admin.createToken({ batch: 'bench', uses: DEVICES })
  const ids = Array.from({ length: DEVICES }, (_, index) => `device-${String(index).padStart(3, '0')}`)
  const devices = await enroll(plane, { token, ids })
  const services: DevicePair[] = []
  for (let index = 0; index < SERVICES; index++) {
    const [id, key] = [`service-${String(index).padStart(2, '0')}`, generateKey()]
    const { certificate } = await plane.admin.createService({ id, csr: newCsr(id, key) })
    services.push({ id, certificate, key: privateKeyPem(key) })
  }
  const { policy } = await plane.admin.showFleetPolicy('services')
  const publish = [...policy.publish, 'fleets/+/broadcast/#']
  await plane.admin.setDevicePolicy(services[0]?.id ?? '', { ...policy, publish })
  return { devices, services }
}

export interface Mode {
  readonly qos: Qos
  /** Subscribers whose session outlives the connection. */
  readonly isDurable: boolean
}

/** Who speaks to whom; `window` is of one flow. */
export interface Pattern {
  readonly name: 'fan-in' | 'fan-out' | 'pairs'
  readonly says: string
  /** Messages of one flow that are published and not delivered at most. */
  readonly window: number
  /** Deliveries of one message. */
  readonly copies: number
  readonly flows: number
  parties(fleet: Fleet): Parties[]
}

interface Parties {
  readonly publishers: readonly { readonly pair: DevicePair; readonly topic: string }[]
  readonly subscribers: readonly DevicePair[]
  readonly filter: string
}

export const PATTERNS: readonly Pattern[] = [
  {
    name: 'fan-in',
    says: `${DEVICES} devices publish on topics of their own, a service subscribes to devices/+/telemetry`,
    window: 1_600,
    copies: 1,
    flows: 1,
    parties: ({ devices, services }) => [
      {
        publishers: devices.map((pair) => ({ pair, topic: telemetryOf(pair) })),
        subscribers: services.slice(0, 1),
        filter: 'devices/+/telemetry',
      },
    ],
  },
  {
    name: 'fan-out',
    says: `a service publishes, ${DEVICES} devices subscribe`,
    window: 64,
    copies: DEVICES,
    flows: 1,
    parties: ({ devices, services }) => [
      {
        publishers: services.slice(0, 1).map((pair) => ({ pair, topic: NEWS })),
        subscribers: devices,
        filter: NEWS,
      },
    ],
  },
  {
    name: 'pairs',
    says: `${SERVICES} devices publish, to each listens a service of its own`,
    window: 32,
    copies: 1,
    flows: SERVICES,
    parties: ({ devices, services }) =>
      services.map((service, index) => {
        const publishers = devices.slice(index, index + 1).map((pair) => ({ pair, topic: telemetryOf(pair) }))
        return {
          publishers,
          subscribers: [service],
          filter: publishers[0]?.topic ?? '',
        }
      }),
  },
]

function telemetryOf({ id }: DevicePair): string {
  return `devices/${id}/telemetry`
}

export interface OpenFlows {
  readonly flows: readonly Flow[]
  /** Ends the sessions, too. */
  close(): Promise<void>
}

/** Connects everybody whom a pattern needs to one server. */
export async function openFlows(
  target: LoadTarget,
  { fleet, pattern, mode }: { fleet: Fleet; pattern: Pattern; mode: Mode },
): Promise<OpenFlows> {
  const open: LoadClient[] = []
  const flows: Flow[] = []
  const sessions: DevicePair[] = []
  const { qos, isDurable } = mode
  for (const { publishers, subscribers, filter } of pattern.parties(fleet)) {
    const connected = await inTurn(subscribers, (pair) =>
      openLoadClient(target, { pair, isClean: !isDurable, subscription: { filter, qos } }),
    )
    const writers = await inTurn(publishers, async ({ pair, topic }) => ({
      client: await openLoadClient(target, { pair, isClean: true }),
      topic,
    }))
    open.push(...connected, ...writers.map(({ client }) => client))
    flows.push({ publishers: writers, subscribers: connected, window: pattern.window })
    if (isDurable) sessions.push(...subscribers)
  }
  const close = async () => {
    for (const client of open) client.close()
    await inTurn(sessions, async (pair) => (await openLoadClient(target, { pair, isClean: true })).close())
  }
  return { flows, close }
}

/** One after the other: a server that paces handshakes has no reason to. */
async function inTurn<T, R>(items: readonly T[], work: (item: T) => Promise<R>): Promise<R[]> {
  const done: R[] = []
  for (const item of items) done.push(await work(item))
  return done
}
