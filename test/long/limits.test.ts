import { setTimeout as pause } from 'node:timers/promises'
import t from 'tap'
import { newRequest, startEnrollment, type TestDevice } from '../support/enrollment.ts'
import { enrolled } from '../support/hammer.ts'
import {
  again,
  away,
  commanding,
  greedy,
  halfOpen,
  type Place,
  residentMiB,
  silent,
  slow,
} from '../support/limit-load.ts'
import { invitedBroker } from '../support/running-broker.ts'
import { startBroker } from '../support/storm-parts.ts'

t.setTimeout(3_600_000)

const MINUTES = Number(process.env.MUSTER_LIMITS_MINUTES ?? 10)
/** Until then queues and retained messages have filled, and the heap has the size that it needs. */
const WARM_MS = Math.min(90_000, MINUTES * 60_000)
const LOOK_EVERY_MS = 2_000
const EACH = 20
/** What it may grow by, MiB. */
const GROWTH = 50

t.test(`at its limits for ${MINUTES} minutes the broker does not grow`, async (t) => {
  const service = await startEnrollment(t)
  const broker = await startBroker(t, await invitedBroker(service, 'broker-1'))
  const kinds = ['slow', 'away', 'greedy'] as const
  const [slows = [], aways = [], greedies = []] = await Promise.all(
    kinds.map((prefix) => enrolled(service, { prefix, count: EACH, batch: 'lab' })),
  )
  const { csr, key } = await newRequest('backend')
  const { certificate } = await service.admin.createService({ id: 'backend', csr })
  const backend = { id: 'backend', certificate, key } as TestDevice // what a client presents
  const stopping = new AbortController()
  const { signal } = stopping
  const place: Place = { port: broker.port, ca: service.root, signal }
  for (const device of aways) await away(place, device)
  const targets = { away: aways.map(({ id }) => id), slow: slows.map(({ id }) => id) }
  const running = [
    again(signal, () => commanding(place, backend, targets)),
    ...slows.map((device) => again(signal, () => slow(place, device))),
    ...greedies.map((device) => again(signal, () => greedy(place, device))),
    ...Array.from({ length: 100 }, () => again(signal, () => silent(place))),
    ...Array.from({ length: 100 }, () => again(signal, () => halfOpen(place))),
  ]
  const seen: number[] = []
  const look = () => seen.push(residentMiB(broker.process.pid ?? 0))
  await pause(WARM_MS)
  look()
  for (const until = Date.now() + MINUTES * 60_000; Date.now() < until; look()) await pause(LOOK_EVERY_MS)
  stopping.abort()
  const times = await Promise.all(running)
  const [first = 0] = seen
  const most = Math.max(...seen)
  t.comment(`MiB resident: ${first} when everything was full, at most ${most}, ${seen.at(-1)} at the end`)
  t.comment(`slow readers came ${times[1]} times each`)
  const { lastRefusals } = await service.admin.explain(slows[0]?.id ?? '')
  t.match(lastRefusals[0], { code: 'R-PACKET' }, 'slow readers were cut off')
  t.ok(most - first < GROWTH, `grew by ${most - first} MiB`)
})
