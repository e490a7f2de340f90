import { MusterError } from '#shared/errors'
import type { LoadClient, Tally } from './mqtt-load-client.ts'
import { publishPacket, type Qos } from './mqtt-octets.ts'

/** Packet identifiers of a publisher, in turns: many more than are under way. */
const IDENTIFIERS = 512
const STANDSTILL_MS = 3_000
/** How often it is looked at in that time. */
const LOOKS = 12

/** Publishers that take turns, and subscribers each of whom gets every message. */
export interface Flow {
  readonly publishers: readonly { readonly client: LoadClient; readonly topic: string }[]
  readonly subscribers: readonly LoadClient[]
  /** Most messages that were published and have not reached everybody, or are not acknowledged. */
  readonly window: number
}

export interface Load {
  /** Messages of each flow, a multiple of `batch`. */
  readonly count: number
  readonly qos: Qos
  readonly payload: Buffer
  /** Messages in one write of a publisher, and so in one record of TLS. */
  readonly batch: number
  /** A flow that stands still for so long has lost what has not come, ms. */
  readonly standstillMs?: number
}

export interface Carried {
  /** Messages that subscribers received. */
  readonly delivered: number
  /** Those that they should have received and did not. */
  readonly lost: number
}

/**
 * Publishes so many messages over each flow and resolves when all of them have arrived, and with QoS 1 are
 * acknowledged on both legs. There are never more under way than a queue of any of the servers takes, so none has a
 * reason to drop one.
 * @throws MusterError check_failed when one of QoS 1 is lost
 */
export async function carry(flows: readonly Flow[], load: Load): Promise<Carried> {
  const carried = await Promise.all(flows.map((flow) => carryFlow(flow, load)))
  const sum = (key: keyof Carried) => carried.reduce((total, each) => total + each[key], 0)
  return { delivered: sum('delivered'), lost: sum('lost') }
}

async function carryFlow(flow: Flow, load: Load): Promise<Carried> {
  const { count, qos, batch } = load
  const { subscribers, publishers, window } = flow
  const writers = publishers.map(({ client, topic }) => ({ client, next: writesOf(topic, load) }))
  const clients = [...subscribers, ...publishers.map(({ client }) => client)]
  const tally: Tally = { received: 0, acknowledged: 0 }
  const finished = Promise.withResolvers<void>()
  let sent = 0
  let turn = 0
  const pump = () => {
    const arrived = Math.floor(tally.received / subscribers.length)
    const done = qos === 0 ? arrived : Math.min(arrived, tally.acknowledged)
    while (sent < count && sent - done + batch <= window) {
      const writer = writers[turn++ % writers.length]
      writer?.client.write(writer.next())
      sent += batch
    }
    if (done >= count) finished.resolve()
  }
  for (const client of clients) Object.assign(client, { tally, heard: pump } satisfies Partial<LoadClient>)
  pump()
  const { standstillMs: ms = STANDSTILL_MS } = load
  await orStandstill(finished.promise, { ms, progress: () => tally.received + tally.acknowledged })
  const delivered = tally.received
  const lost = sent * subscribers.length - delivered
  const unacknowledged = qos === 0 ? 0 : sent - tally.acknowledged
  if (qos > 0 && (lost > 0 || unacknowledged > 0)) {
    throw new MusterError(
      'check_failed',
      `Cannot count this run: of ${sent} messages of QoS 1 ${lost} were lost and ${unacknowledged} not acknowledged`,
    )
  }
  return { delivered, lost }
}

/** Ready-made writes of one publisher, over and over. */
function writesOf(topic: string, { qos, payload, batch }: Load): () => Buffer {
  const writes: Buffer[] = []
  for (let first = 1; first <= (qos === 0 ? 1 : IDENTIFIERS); first += batch) {
    const ids = Array.from({ length: batch }, (_, index) => (qos === 0 ? null : first + index))
    writes.push(Buffer.concat(ids.map((id) => publishPacket(topic, payload, id))))
  }
  let at = 0
  return () => writes[at++ % writes.length] ?? payload
}

/** Resolves with the work, or when nothing has moved for a while. */
async function orStandstill(
  work: Promise<void>,
  { ms, progress }: { ms: number; progress: () => number },
): Promise<void> {
  const { promise, resolve } = Promise.withResolvers<void>()
  let [seen, looks] = [progress(), 0]
  const timer = setInterval(() => {
    if (progress() !== seen) [seen, looks] = [progress(), 0]
    else if (++looks === LOOKS) resolve()
  }, ms / LOOKS)
  await Promise.race([work, promise])
  clearInterval(timer)
}
