import type { Test } from 'tap'
import type { PurgeRecord } from '#shared/feed'
import { device, deviceId, type Plane } from '../../support/registry-plane.ts'
import { replayed, snapshotOf } from '../../support/registry-replica.ts'
import type { Fresh } from '../registry.ts'

/** What a snapshot tells of plans that are over: scope or devices, position, and whether with what they have retained. */
async function told(plane: Plane): Promise<unknown[]> {
  const { purges } = await snapshotOf(plane.registry, plane.now())
  return purges.map(({ scope, devices, position, retained }: PurgeRecord) => [
    devices ?? `${scope.kind} ${scope.id}`,
    position,
    ...(retained ? ['retained'] : []),
  ])
}

async function positionOf(plane: Plane, hold: string): Promise<number> {
  const changes = await plane.registry.changesAfter(0, 1_000)
  const of = ({ change }: (typeof changes)[number]) =>
    change.kind === 'hold' && change.hold.id === hold && change.hold.state === 'active'
  return changes.find(of)?.position ?? Number.NaN
}

async function spread(plane: Plane, limit: number): Promise<void> {
  while (await plane.registry.spreadPurges(limit, plane.act()));
}

export async function purgesContract(t: Test, fresh: Fresh): Promise<void> {
  await t.test('a snapshot tells what plans that are over took, where their holds stood', async (t) => {
    const plane = await fresh(t)
    for (const id of ['d1', 'd2', 'd3']) await plane.enroll(id)
    await plane.hold('p1', { scope: 'device', id: 'd1' }, { purgeRetained: true })
    await plane.hold('p2', { scope: 'batch', id: 'lab' })
    await plane.hold('p3', { scope: 'issuer', id: plane.issuer.id }, { purgeRetained: true })
    await plane.propose('never', device('d3'))
    t.strictSame(await told(plane), [], 'a hold in force says it itself')
    const [p1, p2, p3] = await Promise.all(['p1', 'p2', 'p3'].map((id) => positionOf(plane, id)))
    for (const id of ['p1', 'p2', 'p3']) await plane.registry.undoPlan(id, plane.act())
    await plane.revoke('p4', device('d2'))
    const p4 = await positionOf(plane, 'p4')
    const all = [
      ['device d1', p1, 'retained'],
      ['batch lab', p2],
      [`issuer ${plane.issuer.id}`, p3, 'retained'],
      [['d2'], p4],
    ]
    t.strictSame(await told(plane), all)
    const { epoch } = await plane.registry.cursor()
    const { purges } = await snapshotOf(plane.registry, plane.now())
    t.ok(purges.every((purge) => purge.epoch === epoch && purge.at <= plane.now()))
    t.same((await replayed(plane.registry)).purges, [], 'the stream says it by the holds')
    await spread(plane, 10)
    t.strictSame(await told(plane), [...all.slice(0, 3), ['device d2', p4]])
  })

  await t.test(
    'of a scope the newest order is told, and one that takes more hides one that takes less',
    async (t) => {
      const plane = await fresh(t)
      await plane.enroll('d1')
      const over = async (id: string, purgeRetained = false) => {
        await plane.hold(id, { scope: 'device', id: 'd1' }, { purgeRetained })
        await plane.registry.undoPlan(id, plane.act())
        return positionOf(plane, id)
      }
      await over('p1')
      const p2 = await over('p2')
      t.strictSame(await told(plane), [['device d1', p2]])
      const p3 = await over('p3', true)
      t.strictSame(await told(plane), [['device d1', p3, 'retained']])
      const p4 = await over('p4')
      t.strictSame(await told(plane), [
        ['device d1', p3, 'retained'],
        ['device d1', p4],
      ])
    },
  )

  await t.test('however many lists a device was in, a snapshot tells of it once', async (t) => {
    const plane = await fresh(t)
    const ids = ['d1', 'd2', 'd3', 'd4', 'd5']
    for (const id of ids) await plane.enroll(id)
    for (const id of ['p1', 'p2']) {
      await plane.hold(id, device(...ids))
      await plane.registry.undoPlan(id, plane.act())
    }
    await plane.hold('p3', device('d3', 'd4'))
    await plane.registry.undoPlan('p3', plane.act())
    await plane.hold('in force', device('d1', 'd2'))
    const [p1, p2, p3] = await Promise.all(['p1', 'p2', 'p3'].map((id) => positionOf(plane, id)))
    t.strictSame(await told(plane), [
      [ids, p1],
      [ids, p2],
      [['d3', 'd4'], p3],
    ])
    t.equal(await plane.registry.spreadPurges(2, plane.act()), true)
    const another = await plane.another('b') // what was interrupted goes on elsewhere
    await spread(another, 2)
    t.strictSame(await told(plane), [
      [['d1', 'd2', 'd5'], p2],
      [['d3', 'd4'], p3],
    ])
    t.equal(await plane.registry.spreadPurges(2, plane.act()), false, 'not those of a plan in force')
    t.equal(await plane.registry.verifyAudit(), null)
  })

  await t.test('more devices than a change holds come in several', async (t) => {
    const plane = await fresh(t)
    const ids = Array.from({ length: 1_100 }, (_, index) => `d${10_000 + index}`)
    await plane.token('t1', { uses: ids.length, devices: ids.map(deviceId) })
    await plane.hold('p', device(...ids))
    await plane.registry.undoPlan('p', plane.act())
    const counts = async () =>
      (await told(plane)).map((line) => ((line as [unknown[]])[0] as unknown[]).length)
    t.strictSame(await counts(), [1_000, 100])
    await spread(plane, 300)
    t.strictSame(
      (await counts()).reduce((sum, count) => sum + count, 0),
      1_100,
    )
  })

  await t.test('a receipt says that something is not forgotten yet, until its broker has', async (t) => {
    const plane = await fresh(t)
    for (const id of ['b1', 'old']) await plane.broker(id)
    await plane.enroll('d1')
    await plane.hold('p1', device('d1'))
    const { epoch, position } = await plane.registry.cursor()
    const line = async (broker: string) =>
      (await plane.registry.receipt('p1')).brokers.find((one) => one.broker === broker)
    const applied = plane.applied('p1', { position })
    await plane.report([applied], { broker: 'b1', purged: { epoch, position: position - 1 } })
    t.match(await line('b1'), { state: 'applied', purging: true })
    await plane.report([], { broker: 'b1', purged: { epoch: 'another', position: position + 9 } })
    await plane.report([], { broker: 'b1' })
    t.match(await line('b1'), { purging: true }, 'neither of another epoch nor of one that does not tell')
    await plane.report([], { broker: 'b1', purged: { epoch, position } })
    t.match(await line('b1'), { state: 'applied', purging: false })
    await plane.report([applied], { broker: 'old' })
    t.match(await line('old'), { state: 'applied', purging: false }, 'an older broker does not tell')
  })

  await t.test('no receipt waits for what no broker will say', async (t) => {
    const plane = await fresh(t)
    for (const id of ['b1', 'b2']) await plane.broker(id)
    await plane.enroll('d1')
    await plane.hold('p1', device('d1'))
    const { epoch, position } = await plane.registry.cursor()
    const applied = plane.applied('p1', { position: position + 500 })
    for (const broker of ['b1', 'b2']) {
      await plane.report([applied], {
        broker,
        purged: { epoch: 'before a restore', position: position + 500 },
      })
    }
    const purging = async () => {
      const { brokers } = await plane.registry.receipt('p1')
      return brokers.filter((line) => line.purging).map(({ broker }) => broker)
    }
    t.same(await purging(), ['b1', 'b2'])
    await plane.report([], { broker: 'b1', purged: { epoch, position } })
    t.same(await purging(), ['b2'], 'a position that was reported before a restore may never be reached')
    await plane.registry.forgetBroker('b2', plane.act())
    t.same(await purging(), [], 'nor is a broker waited for that is forgotten')
  })
}
