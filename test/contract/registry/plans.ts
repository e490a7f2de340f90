import type { Test } from 'tap'
import { DAY_MS, device, deviceId, HOUR_MS } from '../../support/registry-plane.ts'
import { snapshotOf } from '../../support/registry-replica.ts'
import type { Fresh } from '../registry.ts'

export async function plansContract(t: Test, fresh: Fresh): Promise<void> {
  await t.test('a plan counts what it would stop, before it does', async (t) => {
    const plane = await fresh(t)
    await plane.broker()
    const first = await plane.enroll('d1')
    await plane.enroll('d2')
    await plane.enroll('e1', 'other')
    await plane.token('open', { uses: 3, devices: [deviceId('d3')] })
    await plane.enroll('gone')
    await plane.registry.retireDevice('gone', plane.act())
    await plane.report([plane.connected(first)])
    const counts = async (id: string, target: Parameters<typeof plane.propose>[1]) =>
      (await plane.propose(id, target)).counts
    t.strictSame(await counts('batch', { scope: 'batch', id: 'lab' }), {
      devices: 3,
      online: 1,
      tokens: 1,
      byBatch: { lab: 3 },
    })
    t.match(await counts('fleet', { scope: 'fleet', id: 'default' }), {
      devices: 4,
      byBatch: { lab: 3, other: 1 },
    })
    t.match(await counts('device', { scope: 'device', id: 'd2' }), { devices: 1, online: 0, tokens: 0 })
    t.match(await counts('issuer', { scope: 'issuer', id: plane.issuer.id }), { devices: 3 })
    t.match(await counts('list', device('d1', 'e1', 'd1')), { devices: 2, byBatch: { lab: 1, other: 1 } })
    t.match(await plane.registry.counts(plane.now()), { holds: 0 }, 'and nothing is held')
  })

  await t.test('a plan for what does not exist is refused', async (t) => {
    const plane = await fresh(t)
    for (const scope of ['device', 'batch', 'fleet', 'issuer'] as const) {
      await t.rejects(plane.propose(scope, { scope, id: 'none' }), { code: 'not_found' }, scope)
    }
    await plane.enroll('d1')
    const { position } = await plane.registry.cursor()
    await t.rejects(plane.propose('list', device('d1', 'none')), { code: 'not_found' })
    t.equal((await plane.registry.cursor()).position, position, 'its members are not told either')
    await t.rejects(plane.registry.showPlan('list', plane.now()), { code: 'not_found' })
    t.strictSame(await plane.registry.listPlans(plane.now()), [])
  })

  await t.test('applying is one change, and needs the right count', async (t) => {
    const plane = await fresh(t)
    await plane.enroll('d1')
    await plane.propose('p1', { scope: 'batch', id: 'lab' })
    const { position } = await plane.registry.cursor()
    await t.rejects(plane.registry.applyPlan('p1', 2, plane.act()), { code: 'count_mismatch' })
    const applied = await plane.registry.applyPlan('p1', 1, plane.act())
    t.match(applied, { state: 'applied', appliedAt: plane.now(), finaliseAt: null })
    const changes = await plane.registry.changesAfter(position, 10)
    t.strictSame(
      changes.map(({ change }) => change),
      [{ kind: 'hold', hold: { id: 'p1', scope: { kind: 'batch', id: 'lab' }, state: 'active' } }],
    )
    t.strictSame(await plane.registry.applyPlan('p1', 1, plane.act()), applied, 'again changes nothing')
    t.equal((await plane.registry.cursor()).position, position + 1)
    await t.rejects(plane.registry.applyPlan('none', 1, plane.act()), { code: 'not_found' })
  })

  await t.test('members are told in slices before the hold that is on them', async (t) => {
    const plane = await fresh(t)
    const ids = Array.from({ length: 2500 }, (_, i) => `d${i}`)
    await plane.token('t1', { uses: 2500, devices: ids.map(deviceId) })
    const { position } = await plane.registry.cursor()
    await plane.hold('p1', device(...ids))
    const changes = (await plane.registry.changesAfter(position, 10)).map(({ change }) => change)
    const slices = changes.flatMap((change) => (change.kind === 'members' ? [change.devices] : []))
    t.strictSame(
      slices.map(({ length }) => length),
      [1000, 1000, 500],
    )
    t.strictSame(new Set(slices.flat()), new Set(ids))
    t.match(changes.at(-1), { kind: 'hold', hold: { id: 'p1', scope: { kind: 'plan', id: 'p1' } } })
    await t.rejects(plane.begin('t1', 'd2400', 'k'), { code: 'held' })
  })

  await t.test('a plan that nobody applied in time has expired', async (t) => {
    const plane = await fresh(t)
    await plane.enroll('d1')
    await plane.propose('p1', device('d1'))
    plane.pass(HOUR_MS)
    t.match(await plane.registry.showPlan('p1', plane.now()), { state: 'expired' })
    t.match(await plane.registry.listPlans(plane.now()), [{ id: 'p1', state: 'expired' }])
    await t.rejects(plane.registry.applyPlan('p1', 1, plane.act()), { code: 'conflict' })
    await t.rejects(plane.registry.undoPlan('p1', plane.act()), { code: 'conflict' })
    const { position } = await plane.registry.cursor()
    await plane.propose('p2', device('d1'))
    t.match(
      (await plane.registry.changesAfter(position, 1))[0]?.change,
      { kind: 'hold', hold: { id: 'p1', state: 'ended' } },
      'so that brokers forget its members',
    )
  })

  await t.test('undo ends its own hold and leaves the others', async (t) => {
    const plane = await fresh(t)
    const { fingerprint } = await plane.enroll('d1')
    await plane.hold('p1', device('d1'))
    plane.pass(1)
    await plane.hold('p2', { scope: 'fleet', id: 'default' })
    const held = async () => (await plane.registry.findCredential({ fingerprint }))?.hold?.id ?? null
    t.equal(await held(), 'p1', 'the oldest is named')
    const { position } = await plane.registry.cursor()
    t.match(await plane.registry.undoPlan('p1', plane.act()), { state: 'undone' })
    t.match(await plane.registry.changesAfter(position, 10), [
      { change: { kind: 'hold', hold: { id: 'p1', state: 'ended' } } },
    ])
    t.equal(await held(), 'p2')
    t.match(await plane.registry.undoPlan('p1', plane.act()), { state: 'undone' }, 'again changes nothing')
    await plane.registry.undoPlan('p2', plane.act())
    t.equal(await held(), null)
    t.ok(await plane.renew(fingerprint, 'k2'), 'with the same certificate as before')
    await t.rejects(plane.registry.applyPlan('p1', 1, plane.act()), { code: 'conflict' })
    await t.rejects(plane.registry.undoPlan('none', plane.act()), { code: 'not_found' })
  })

  await t.test('a revocation can be undone until its time is over, a hold always', async (t) => {
    const plane = await fresh(t)
    await plane.enroll('d1')
    const plan = await plane.hold('p1', device('d1'), { action: 'revoke', undoMs: 900_000 })
    t.equal(plan.finaliseAt, plane.now() + 900_000)
    plane.pass(899_999)
    t.match(await plane.registry.undoPlan('p1', plane.act()), { state: 'undone' })
    await plane.hold('p2', device('d1'), { action: 'revoke', undoMs: 900_000 })
    await plane.hold('p3', device('d1'))
    plane.pass(900_000)
    await t.rejects(plane.registry.undoPlan('p2', plane.act()), { code: 'undo_over' })
    plane.pass(90 * DAY_MS)
    t.match(await plane.registry.undoPlan('p3', plane.act()), { state: 'undone' })
  })

  await t.test(
    'what devices have retained goes with a plan that says so, and not with its undoing',
    async (t) => {
      const plane = await fresh(t)
      await plane.enroll('d1')
      const { position } = await plane.registry.cursor()
      const retained = { purgeRetained: true }
      t.match(await plane.hold('p1', device('d1'), { ...retained, action: 'revoke', undoMs: 1 }), retained)
      t.match(await plane.hold('p2', { scope: 'batch', id: 'lab' }, retained), retained)
      t.match(await plane.hold('p3', { scope: 'fleet', id: 'default' }), { purgeRetained: false })
      const held = [...(await snapshotOf(plane.registry, plane.now())).holds.values()]
      await plane.registry.undoPlan('p2', plane.act())
      plane.pass(1)
      await plane.registry.beginFinalising('p1', plane.act())
      await plane.registry.finaliseSlice('p1', 10, plane.act())
      const told = (await plane.registry.changesAfter(position, 10)).flatMap(({ change }) =>
        change.kind === 'hold' ? [[change.hold.id, change.hold.state, change.hold.purgeRetained]] : [],
      )
      t.strictSame(told, [
        ['p1', 'active', true],
        ['p2', 'active', true],
        ['p3', 'active', undefined],
        ['p2', 'ended', undefined],
        ['p1', 'ended', true],
      ])
      t.strictSame(
        held.map(({ id, purgeRetained }) => [id, purgeRetained]),
        [
          ['p1', true],
          ['p2', true],
          ['p3', undefined],
        ],
      )
    },
  )

  await t.test('a compromised key leaves no time for undo', async (t) => {
    const plane = await fresh(t)
    await plane.enroll('d1')
    const plan = await plane.hold('p1', device('d1'), { action: 'revoke', reason: 'keyCompromise' })
    t.match(plan, { undoMs: 0, finaliseAt: plane.now() })
    await t.rejects(plane.registry.undoPlan('p1', plane.act()), { code: 'undo_over' })
  })
}
