/** The stream of events as operators read it: over HTTP and with the CLI; and that its log stays as large as it may be. */
import { join } from 'node:path'
import t from 'tap'
import type { EventMessage } from '#shared/api'
import { openSqlite } from '#shared/sqlite'
import { openEventLog } from '../../enrollment/registry/event-log.ts'
import { MIGRATIONS } from '../../enrollment/registry/schema.ts'
import { enrollDevice, type RunningEnrollment, startEnrollment } from '../support/enrollment.ts'
import { connectAs, disconnected, invitedBroker, runBroker } from '../support/running-broker.ts'

/** Reads until a message is the one that is waited for; fails after 20 s. */
async function follow(
  { admin }: RunningEnrollment,
  from: Parameters<RunningEnrollment['admin']['events']>[0],
  isLast: (message: EventMessage) => boolean,
): Promise<EventMessage[]> {
  const seen: EventMessage[] = []
  const enough = new AbortController()
  for await (const message of admin.events(
    from,
    AbortSignal.any([enough.signal, AbortSignal.timeout(20_000)]),
  )) {
    seen.push(message)
    if (isLast(message)) break
  }
  enough.abort()
  return seen
}

const isKind = (kind: string) => (message: EventMessage) => message.type === 'event' && message.kind === kind

t.test(
  'who follows hears of a connection, a hold and its end as they happen, each once, in order',
  async (t) => {
    const service = await startEnrollment(t)
    const broker = await runBroker(t, await invitedBroker(service, 'edge'))
    const device = await enrollDevice(service, { id: 'told-1' })
    const { newest } = await service.deps.registry.eventBounds()
    const heard = follow(service, { after: newest, device: 'told-1' }, isKind('refused'))
    const client = await connectAs(service, broker, device)
    await follow(service, { after: newest }, isKind('connected'))
    const scope = { kind: 'device', id: 'told-1' } as const
    const plan = await service.admin.proposePlan({ action: 'hold', scope, reason: 'unspecified' })
    await service.admin.applyPlan(plan.id, plan.counts.devices)
    await disconnected(client)
    await follow(service, { after: newest }, isKind('disconnected'))
    await t.rejects(connectAs(service, broker, device))
    const events = (await heard).flatMap((message) => (message.type === 'event' ? [message] : []))
    t.strictSame(
      events.map(({ kind }) => kind),
      ['connected', 'held', 'disconnected', 'refused'],
    )
    t.match(events[0], { serial: device.serial, connection: /^c\d+$/, broker: 'edge', address: '127.0.0.1' })
    t.match(events[2], { reason: 'held', connection: String(events[0]?.connection) })
    t.match(events[3], { reason: 'R-HELD' })
    t.strictSame(
      events.flatMap(({ deviceSequence }) => deviceSequence ?? []),
      [2, 3, 4, 5],
      'the hold on the device is one of its events',
    )
    const { events: timeline } = await service.admin.timeline('told-1')
    t.strictSame(
      timeline.map(({ kind }) => kind),
      ['enrolled', 'connected', 'held', 'disconnected', 'refused'],
    )
  },
)

t.test('a cursor that is not kept, or is of another epoch, is answered with a gap', async (t) => {
  const service = await startEnrollment(t)
  await enrollDevice(service, { id: 'gap-1' })
  const { epoch, newest } = await service.deps.registry.eventBounds()
  const read = (from: object) => follow(service, { ...from, follow: 'false' }, () => false)
  t.match(await read({ after: newest, epoch }), [{ type: 'alive', epoch, sequence: newest }])
  t.match(await read({ after: newest + 7, epoch }), [
    { type: 'gap', after: newest + 7, oldest: 1 },
    { type: 'alive' },
  ])
  const other = await read({ after: newest, epoch: 'of-a-backup' })
  t.match(other[0], { type: 'gap', epoch, oldest: 1 })
  t.match(other[1], { type: 'event', sequence: 1 }, 'and everything that is kept')
  for (const query of ['?after=-1', '?after=x', '?after=1.5', `?device=${'x'.repeat(200)}`]) {
    const reply = await service.adminClient().send('GET', `/v1/events${query}`)
    t.match(reply.status, /^4/, query)
  }
})

t.test('the log of events drops its oldest and never its newest, a little at a time', async (t) => {
  const db = openSqlite(join(t.testdir({}), 'registry.db'), { busyTimeoutMs: 100, migrations: MIGRATIONS })
  t.teardown(() => db.close())
  const log = openEventLog(db, 1_000)
  const now = Date.now()
  const rows = () =>
    db
      .prepare<[], { oldest: number; newest: number; held: number }>(
        'SELECT MIN(sequence) AS oldest, MAX(sequence) AS newest, COUNT(*) AS held FROM events',
      )
      .get()
  const add = (count: number, at: number) =>
    db.transaction(() => {
      for (let i = 0; i < count; i++) log.add({ at, kind: 'held', scope: 'fleet:default' })
    })()
  add(10_000, now)
  const { oldest = 0, newest = 0, held = 0 } = rows() ?? {}
  t.equal(newest, 10_000)
  t.ok(held >= 1_000 && held <= 1_256, `${held} are kept`)
  t.equal(newest - oldest + 1, held, 'without gaps')
  add(2_000, now + 31 * 86_400_000)
  t.equal(rows()?.newest, 12_000)
  t.ok((rows()?.oldest ?? 0) > 10_000, 'those of a month ago are gone')
})
