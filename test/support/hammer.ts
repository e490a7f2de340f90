/** Revoked devices that come back as fast as they are let, while others publish and connect. */
import { fileURLToPath } from 'node:url'
import type { Test } from 'tap'
import { openSqliteForReading } from '#shared/sqlite'
import { inParallel } from '../../device-sim/fleet.ts'
import { finaliseDue } from '../../enrollment/plans.ts'
import { enrollDevice, type RunningEnrollment, startEnrollment, type TestDevice } from './enrollment.ts'
import type { HammerCount, HammerOrder } from './hammer-process.ts'
import type { Lag } from './lag-probe.ts'
import { connectAs, invitedBroker } from './running-broker.ts'
import { ask, ensureBatch, heard, openBystanders, startBroker, startProcess, until } from './storm-parts.ts'

const HAMMER = fileURLToPath(new URL('./hammer-process.ts', import.meta.url))
const AT_A_TIME = 8
/** Healthy devices that connect meanwhile, and how often each does: less than the limit of a certificate. */
const NEWCOMERS = 10
const RETURNS = 5

export interface HammerOptions {
  readonly devices: number
  /** Of each device. */
  readonly attempts: number
  readonly processes: number
  readonly limits?: readonly string[]
}

export interface Hammering {
  readonly count: Omit<HammerCount, 'type'>
  readonly ms: number
  readonly lag: Lag
  /** How long each healthy device that connected meanwhile took, ms, ascending. */
  readonly newcomersMs: readonly number[]
  readonly published: number
  readonly lost: number
  /** Most refusals of one device that are kept, and of all. */
  readonly kept: { readonly most: number; readonly all: number }
  /** Refusals that explain the first device. */
  readonly codes: readonly string[]
}

export async function hammerBroker(t: Test, options: HammerOptions): Promise<Hammering> {
  const { devices, attempts, processes, limits = [] } = options
  const service = await startEnrollment(t)
  const broker = await startBroker(t, [...(await invitedBroker(service, 'broker-1')), ...limits])
  const revoked = await revokedDevices(service, devices)
  const good = await openBystanders(t, service, broker)
  const newcomers = await enrolled(service, { prefix: 'new', count: NEWCOMERS, batch: 'good' })
  const hammers = await Promise.all(
    Array.from({ length: processes }, async (_, n) => {
      const child = await startProcess(t, { program: HAMMER })
      const own = revoked.filter((_, index) => index % processes === n)
      return { child, order: { ...broker, ca: service.root, attempts, network: n + 1, devices: own } }
    }),
  )
  await ask<Lag>(broker.process, 'lag')
  const began = performance.now()
  const counts = hammers.map(({ child, order: { port, ca, network, devices } }) => {
    const count = heard<HammerCount>(child, 'hammered')
    child.send({ port, ca, attempts, network, devices } satisfies HammerOrder)
    return count
  })
  let isOver = false
  const over = Promise.all(counts).finally(() => {
    isOver = true
  })
  const newcomersMs: number[] = []
  for (const newcomer of Array(RETURNS).fill(newcomers).flat()) {
    const at = performance.now()
    const client = await connectAs(service, broker, newcomer)
    await client.publishAsync(`devices/${newcomer.id}/telemetry`, 'here', { qos: 1 })
    newcomersMs.push(performance.now() - at)
    await client.endAsync()
    if (isOver) break
  }
  const count = sum(await over)
  const ms = performance.now() - began
  const lag = await ask<Lag>(broker.process, 'lag')
  const { lost, published } = await good.end()
  const [first] = revoked
  const explained = await until(async () => {
    const { lastRefusals } = await service.admin.explain(first?.id ?? '')
    return lastRefusals.length > 0 ? lastRefusals : null
  })
  return {
    ...{ count, ms, lag, lost, published, kept: keptBy(service) },
    newcomersMs: newcomersMs.sort((a, b) => a - b),
    codes: [...new Set(explained.map(({ code }) => code))],
  }
}

async function revokedDevices(service: RunningEnrollment, count: number): Promise<TestDevice[]> {
  const { admin, deps } = service
  const made = await enrolled(service, { prefix: 'bad', count, batch: 'bad' })
  const scope = { kind: 'batch', id: 'bad' } as const
  const { id } = await admin.proposePlan({ action: 'revoke', undoMs: 0, scope })
  await admin.applyPlan(id, count)
  await admin.receipt(id, 30_000)
  await finaliseDue(deps, new AbortController().signal)
  return made
}

export async function enrolled(
  service: RunningEnrollment,
  { prefix, count, batch }: { prefix: string; count: number; batch: string },
): Promise<TestDevice[]> {
  await ensureBatch(service, batch)
  const made: TestDevice[] = []
  await inParallel(
    Array.from({ length: count }, (_, n) => `${prefix}-${n}`),
    { limit: AT_A_TIME, work: async (id) => void made.push(await enrollDevice(service, { id, batch })) },
  )
  return made
}

function keptBy({ config }: RunningEnrollment): Hammering['kept'] {
  const registry = openSqliteForReading(config.layout.registry, 5_000)
  const rows = registry
    .prepare<[], number>('SELECT count(*) FROM refusals WHERE bucket > 0 GROUP BY bucket ORDER BY 1 DESC')
    .pluck()
    .all()
  registry.close()
  return { most: rows[0] ?? 0, all: rows.reduce((all, one) => all + one, 0) }
}

function sum(counts: readonly HammerCount[]): Hammering['count'] {
  const of = (name: keyof Hammering['count']) => counts.reduce((total, one) => total + one[name], 0)
  return { accepted: of('accepted'), refused: of('refused'), busy: of('busy'), dropped: of('dropped') }
}
