import type { Test } from 'tap'
import { EST_OPERATIONS } from '#shared/identity/device'
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
    t.strictSame(fleets[1]?.policy.subscribe, ['devices/#'], 'a service reads all of them')
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
}
