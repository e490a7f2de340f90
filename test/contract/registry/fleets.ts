import type { Test } from 'tap'
import { type DeviceId, EST_OPERATIONS } from '#shared/identity/device'
import type { Fresh } from '../registry.ts'

export async function fleetsContract(t: Test, fresh: Fresh): Promise<void> {
  await t.test('a new registry has the fleets default and services', async (t) => {
    const { registry } = await fresh(t)
    const fleets = await registry.listFleets()
    t.strictSame(
      fleets.map(({ id, policyEpoch, devices, synthetic }) => ({ id, policyEpoch, devices, synthetic })),
      [
        { id: 'default', policyEpoch: 1, devices: 0, synthetic: false },
        { id: 'services', policyEpoch: 1, devices: 0, synthetic: false },
      ],
    )
    t.strictSame(fleets[0]?.policy.publish, ['devices/$' + '{device.id}/#'], 'a device has its own branch')
    t.strictSame(
      fleets[1]?.policy.subscribe,
      ['devices/#', 'muster/presence/#'],
      'a service reads all of them',
    )
  })

  await t.test('a fleet is made once', async (t) => {
    const { registry, act } = await fresh(t)
    const made = await registry.createFleet({ id: 'pumps', lifetimeMs: 60_000, synthetic: true }, act())
    t.match(made, { id: 'pumps', lifetimeMs: 60_000, synthetic: true, policyEpoch: 1 })
    await t.rejects(registry.createFleet({ id: 'pumps' }, act()), { code: 'conflict' })
    await t.rejects(registry.createFleet({ id: 'services' }, act()), { code: 'conflict' })
  })

  await t.test('a new policy raises the epoch, and brokers hear of it', async (t) => {
    const { registry, act } = await fresh(t)
    const policy = { publish: ['a/#'], subscribe: [] }
    t.match(await registry.setPolicy('default', policy, act()), { policy, policyEpoch: 2 })
    const { position } = await registry.cursor()
    const [change] = await registry.changesAfter(position - 1, 10)
    t.strictSame(change?.change, { kind: 'fleet', fleet: { id: 'default', policy, policyEpoch: 2 } })
    await t.rejects(registry.setPolicy('none', policy, act()), { code: 'not_found' })
  })

  await t.test('a batch belongs to one fleet, which exists and is not that of the services', async (t) => {
    const { registry, act, token } = await fresh(t)
    t.match(await registry.createBatch({ id: 'lab' }, act()), { id: 'lab', fleet: 'default', naming: 'csr' })
    await t.rejects(registry.createBatch({ id: 'lab' }, act()), { code: 'conflict' })
    await t.rejects(registry.createBatch({ id: 'x', fleet: 'none' }, act()), { code: 'not_found' })
    await t.rejects(registry.createBatch({ id: 'x', fleet: 'services' }, act()), { code: 'conflict' })
    for (const id of EST_OPERATIONS) {
      await t.rejects(registry.createBatch({ id }, act()), { code: 'invalid_request' }, 'a label of EST')
      await t.rejects(token('t1', { batch: id }), { code: 'invalid_request' })
    }
    t.strictSame(
      (await registry.listBatches()).map(({ id }) => id),
      ['lab'],
    )
  })
  await t.test(
    'attributes and the own policy of a device go to the brokers with it, and are audited',
    async (t) => {
      const { registry, act, token } = await fresh(t)
      await token('t1', { batch: 'lab' })
      await registry.addDevice({ id: 'd1' as DeviceId, batch: 'lab', spki: null, ...act() })
      const { position: before } = await registry.cursor()
      const tagged = await registry.tagDevice('d1', { site: 'oslo', model: 'x' }, act())
      t.match(tagged, { device: { id: 'd1', attributes: { site: 'oslo', model: 'x' } }, isOnline: false })
      t.equal(
        (await registry.cursor()).position,
        before,
        'brokers do not know a device that is only expected',
      )
      const own = { publish: ['own/#'], subscribe: [] }
      t.match((await registry.setDevicePolicy('d1', own, act())).device, { policy: own })
      const { device } = await registry.tagDevice('d1', { site: '', model: 'y' }, act())
      t.strictSame(device.attributes, { model: 'y' })
      t.strictSame((await registry.setDevicePolicy('d1', null, act())).device.policy, undefined)
      t.match((await registry.showDevice('d1', 0)).attributes, { model: 'y' })
      const many = Object.fromEntries(Array.from({ length: 16 }, (_, n) => [`a${n}`, 'x']))
      await t.rejects(registry.tagDevice('d1', many, act()), { code: 'invalid_request' })
      await t.rejects(registry.tagDevice('none', {}, act()), { code: 'not_found' })
      await t.rejects(registry.setDevicePolicy('none', null, act()), { code: 'not_found' })
      const actions = (await registry.listAudit(0, 100)).map(({ action }) => action)
      t.strictSame(actions.slice(-4), ['device.tag', 'device.policy', 'device.tag', 'device.policy'])
    },
  )

  await t.test('devices of a fleet are sampled evenly', async (t) => {
    const { registry, act, token } = await fresh(t)
    await token('t1', { batch: 'lab' })
    for (let n = 0; n < 10; n++) {
      await registry.addDevice({ id: `d${n}` as DeviceId, batch: 'lab', spki: null, ...act() })
    }
    const all = await registry.samplePolicySubjects('default', 10)
    t.match([all.total, all.sample.length], [10, 10])
    const some = await registry.samplePolicySubjects('default', 4)
    t.strictSame(
      some.sample.map(({ device }) => device.id),
      ['d2', 'd5', 'd8'],
    )
    await t.rejects(registry.samplePolicySubjects('none', 1), { code: 'not_found' })
  })
}
