import type { Test } from 'tap'
import { DAY_MS, device, deviceId, hex, type Plane } from '../../support/registry-plane.ts'
import type { Fresh } from '../registry.ts'

const used = async (plane: Plane, token: string) =>
  (await plane.registry.findToken(hex(token), plane.now()))?.used
const stateOf = async (plane: Plane, id: string) => (await plane.registry.showDevice(id, plane.now())).state
const approve = (plane: Plane, id: string, key: string) =>
  plane.registry.approveDevice({ id, spki: hex(key) }, plane.act())
const reject = (plane: Plane, id: string, key: string) =>
  plane.registry.rejectDevice({ id, spki: hex(key) }, plane.act())
const add = (plane: Plane, id: string, of: { batch?: string; key?: string } = {}) =>
  plane.registry.addDevice({
    ...plane.act(),
    id: deviceId(id),
    batch: of.batch ?? 'lab',
    spki: of.key === undefined ? null : hex(of.key),
  })

export async function approvalContract(t: Test, fresh: Fresh): Promise<void> {
  await t.test('a device that has to be approved waits, with its key and a reserved use', async (t) => {
    const plane = await fresh(t)
    t.match(await plane.token('t1', { approval: true }), { approval: true })
    const { position } = await plane.registry.cursor()
    const asked = await plane.apply('t1', 'd1', 'k1')
    t.strictSame(asked, { waitsFor: 'approval', device: 'd1', spki: hex('k1'), since: plane.now() })
    t.equal(await used(plane, 't1'), 1)
    const { devices } = await plane.registry.listDevices({ state: 'pending', limit: 10, now: plane.now() })
    t.match(devices, [{ id: 'd1', state: 'pending', application: { spki: hex('k1'), since: plane.now() } }])
    t.match(await plane.registry.counts(plane.now()), { pending: 1, active: 0, expected: 0 })
    plane.pass(DAY_MS)
    t.strictSame(await plane.apply('t1', 'd1', 'k1'), asked, 'a repeated request changes nothing')
    t.equal((await plane.registry.cursor()).position, position, 'brokers hear of none of it')
    await t.rejects(plane.begin('t1', 'd2', 'k2'), { code: 'token_spent' }, 'the use is taken')
  })

  await t.test(
    'approved, the same request gets the certificate, also when the token has expired',
    async (t) => {
      const plane = await fresh(t)
      await plane.token('t1', { approval: true, expiresAt: plane.now() + DAY_MS })
      await plane.apply('t1', 'd1', 'k1')
      t.match(await approve(plane, 'd1', 'k1'), { id: 'd1', state: 'expected', application: null })
      plane.pass(2 * DAY_MS)
      const issued = await plane.enrollWith('t1', 'd1', 'k1')
      t.match(issued, { device: 'd1' })
      t.equal(await used(plane, 't1'), 1)
      t.equal(await stateOf(plane, 'd1'), 'active')
      t.equal((await plane.begin('t1', 'd1', 'k1')).serial, issued.serial, 'and a lost reply costs nothing')
      const actions = (await plane.registry.listAudit(0, 100)).map(({ action, by }) => `${action} by ${by}`)
      t.strictSame(actions.slice(-4), [
        'device.apply by token:t1',
        'device.approve by operator:test',
        'enroll by token:t1',
        'issue by operator:test',
      ])
    },
  )

  await t.test('what the profile does not grant is refused before anybody is asked', async (t) => {
    const plane = await fresh(t)
    await plane.token('t1', { approval: true })
    const asked = plane.intent({ token: 't1', key: 'k1', commonName: deviceId('d1') })
    const wish = { ...asked.wish, names: ['DNS:elsewhere.test'] }
    await t.rejects(plane.registry.beginIssuance({ ...asked, wish }), { code: 'csr_subject' })
    const key = { type: 'RSA', name: 'RSA-2048' } as const
    await t.rejects(plane.registry.beginIssuance({ ...asked, wish: { ...asked.wish, key } }), {
      code: 'csr_key',
    })
    t.equal(await used(plane, 't1'), 0, 'no use is reserved')
    await t.rejects(plane.registry.showDevice('d1', plane.now()), { code: 'not_found' })
    await plane.apply('t1', 'd1', 'k1')
    await t.rejects(
      plane.registry.beginIssuance({ ...asked, wish: { ...asked.wish, key } }),
      { code: 'csr_key' },
      'nor while it waits',
    )
    await plane.registry.setProfile('default', { keys: ['P-384'] }, plane.act())
    await t.rejects(plane.apply('t1', 'd1', 'k1'), { code: 'csr_key' }, 'the profile is that of the moment')
  })

  await t.test('an approval is for one id and one key', async (t) => {
    const plane = await fresh(t)
    await plane.token('t1', { approval: true, uses: 5 })
    await plane.token('t2', { approval: true, uses: 5 })
    await plane.apply('t1', 'd1', 'k1')
    await t.rejects(plane.apply('t1', 'd1', 'other'), { code: 'id_taken' }, 'while it waits')
    await t.rejects(plane.apply('t2', 'd2', 'k1'), { code: 'csr_key' }, 'its key under another id')
    await t.rejects(plane.apply('t2', 'd1', 'k1'), { code: 'pending' }, 'with another token')
    await t.rejects(
      approve(plane, 'd1', 'other'),
      { code: 'conflict' },
      'another key than the one that waits',
    )
    await approve(plane, 'd1', 'k1')
    await t.rejects(plane.begin('t1', 'd1', 'other'), { code: 'csr_key' }, 'after it was approved')
    await plane.enrollWith('t1', 'd1', 'k1')
    await t.rejects(plane.begin('t1', 'd1', 'other'), { code: 'id_taken' }, 'after it has enrolled')
    t.strictSame([await used(plane, 't1'), await used(plane, 't2')], [1, 0], 'refusals cost nothing')
  })

  await t.test('approved with one token and collected with another, it takes one use', async (t) => {
    const plane = await fresh(t)
    await plane.token('t1', { approval: true })
    await plane.token('t2', { approval: true })
    await plane.apply('t1', 'd1', 'k1')
    await approve(plane, 'd1', 'k1')
    await plane.enrollWith('t2', 'd1', 'k1')
    t.strictSame([await used(plane, 't1'), await used(plane, 't2')], [0, 1])
  })

  await t.test(
    'rejected, the use returns, the device is gone, and the same request stays refused',
    async (t) => {
      const plane = await fresh(t)
      await plane.token('t1', { approval: true })
      await plane.apply('t1', 'd1', 'k1')
      await t.rejects(reject(plane, 'd1', 'other'), { code: 'conflict' })
      await reject(plane, 'd1', 'k1')
      t.equal(await used(plane, 't1'), 0)
      await t.rejects(plane.registry.showDevice('d1', plane.now()), { code: 'not_found' })
      await t.rejects(plane.begin('t1', 'd1', 'k1'), {
        code: 'rejected',
        evidence: { token: 't1', key: hex('k1') },
      })
      t.match(await plane.apply('t1', 'd1', 'k2'), { device: 'd1' }, 'the id is free for another key')
      await reject(plane, 'd1', 'k2')
      await add(plane, 'd1', { key: 'k1' })
      t.match(await plane.enrollWith('t1', 'd1', 'k1'), { device: 'd1' }, 'a mistake can be mended')
    },
  )

  await t.test('a listed device that is rejected stays on its list', async (t) => {
    const plane = await fresh(t)
    await plane.token('t1', { approval: true, devices: [deviceId('d1')] })
    await plane.apply('t1', 'd1', 'k1')
    await reject(plane, 'd1', 'k1')
    t.equal(await stateOf(plane, 'd1'), 'expected')
    t.match(await plane.apply('t1', 'd1', 'k2'), { device: 'd1' })
  })

  await t.test('a batch can demand approval of everybody', async (t) => {
    const plane = await fresh(t)
    t.match(await plane.registry.createBatch({ id: 'line', approval: true }, plane.act()), { approval: true })
    await plane.token('t1', { batch: 'line', uses: 2 })
    t.match(await plane.apply('t1', 'd1', 'k1'), { device: 'd1' })
    await t.rejects(approve(plane, 'none', 'k1'), { code: 'not_found' })
    await plane.enroll('e1')
    await t.rejects(approve(plane, 'e1', 'key of e1'), { code: 'conflict' }, 'only what waits')
    await t.rejects(reject(plane, 'e1', 'key of e1'), { code: 'conflict' })
  })

  await t.test('a device that was added needs no approval; with a key only that one', async (t) => {
    const plane = await fresh(t)
    await plane.registry.createBatch({ id: 'line', approval: true, naming: 'assigned' }, plane.act())
    await plane.token('t1', { batch: 'line', uses: 9 })
    await t.rejects(add(plane, 'd1', { batch: 'none' }), { code: 'not_found' })
    t.match(await add(plane, 'd1', { batch: 'line', key: 'k1' }), { id: 'd1', state: 'expected' })
    await t.rejects(add(plane, 'd1', { batch: 'line' }), { code: 'conflict' }, 'once')
    await t.rejects(add(plane, 'd2', { batch: 'line', key: 'k1' }), { code: 'csr_key' }, 'a key is for one')
    t.equal((await plane.enrollWith('t1', 'whatever', 'k1')).device, 'd1', 'its key says who it is')
    await plane.registry.createBatch({ id: 'named', approval: true }, plane.act())
    await plane.token('t2', { batch: 'named', uses: 9 })
    await add(plane, 'n1', { batch: 'named' })
    await add(plane, 'n2', { batch: 'named', key: 'k2' })
    t.match(await plane.enrollWith('t2', 'n1', 'any'), { device: 'n1' })
    await t.rejects(plane.begin('t2', 'n2', 'wrong'), { code: 'csr_key' })
    t.match(await plane.enrollWith('t2', 'n2', 'k2'), { device: 'n2' })
    t.match(await plane.apply('t2', 'n3', 'k3'), { device: 'n3' }, 'everybody else waits')
    await t.rejects(
      add(plane, 'n3', { batch: 'named' }),
      { code: 'conflict' },
      'who waits is approved instead',
    )
    await t.rejects(add(plane, 'n1', { batch: 'line' }), { code: 'conflict' }, 'another batch')
  })

  await t.test('a reissue token needs no approval, and overrides one that waits for nothing', async (t) => {
    const plane = await fresh(t)
    await plane.token('t1', { approval: true })
    await plane.apply('t1', 'd1', 'k1')
    await approve(plane, 'd1', 'k1')
    await plane.reissue('r1', 'd1')
    t.match(await plane.enrollWith('r1', 'd1', 'k2'), { device: 'd1' })
    t.equal(await used(plane, 't1'), 0)
    await t.rejects(plane.begin('t1', 'd1', 'k1'), { code: 'id_taken' })
  })

  await t.test(
    'a hold, a retirement or a cancelled token stop it; a final revocation withdraws it',
    async (t) => {
      const plane = await fresh(t)
      await plane.token('t1', { approval: true, uses: 9 })
      for (const id of ['d1', 'd2', 'd3']) await plane.apply('t1', id, `key of ${id}`)
      await plane.hold('p1', device('d1'))
      await t.rejects(plane.begin('t1', 'd1', 'key of d1'), { code: 'held' })
      await approve(plane, 'd1', 'key of d1')
      await t.rejects(plane.begin('t1', 'd1', 'key of d1'), { code: 'held' }, 'approved or not')
      await plane.registry.retireDevice('d2', plane.act())
      await t.rejects(plane.begin('t1', 'd2', 'key of d2'), { code: 'token_tombstone' })
      await t.rejects(approve(plane, 'd2', 'key of d2'), { code: 'conflict' })
      await plane.revoke('p2', { scope: 'device', id: 'd3' })
      await t.rejects(plane.begin('t1', 'd3', 'key of d3'), { code: 'rejected' })
      await plane.registry.cancelToken('t1', plane.act())
      await plane.registry.undoPlan('p1', plane.act())
      await t.rejects(plane.begin('t1', 'd1', 'key of d1'), { code: 'token_cancelled' })
    },
  )

  await t.test('a final revocation withdraws what its scope has asked for, and nothing else', async (t) => {
    for (const kind of ['batch', 'fleet'] as const) {
      const plane = await fresh(t)
      await plane.registry.createFleet({ id: 'pumps' }, plane.act())
      await plane.registry.createBatch({ id: 'other', fleet: 'pumps' }, plane.act())
      await plane.token('t1', { approval: true, uses: 2 })
      await plane.token('t2', { approval: true, batch: 'other' })
      for (const id of ['d1', 'd2']) await plane.apply('t1', id, `key of ${id}`)
      await plane.apply('t2', 'd3', 'key of d3')
      await approve(plane, 'd2', 'key of d2')
      await plane.revoke('p1', { scope: kind, id: kind === 'batch' ? 'lab' : 'default' })
      for (const id of ['d1', 'd2']) {
        await t.rejects(plane.begin('t1', id, `key of ${id}`), { code: 'rejected' }, id)
        t.equal(await stateOf(plane, id), 'expected')
      }
      t.equal(await stateOf(plane, 'd3'), 'pending')
      await approve(plane, 'd3', 'key of d3')
      await plane.enrollWith('t2', 'd3', 'key of d3')
      t.equal(await stateOf(plane, 'd3'), 'active')
    }
  })

  await t.test(
    'whoever is first: two approvers, an approval and its repeat, a rejection and its repeat',
    async (t) => {
      const one = await fresh(t)
      const two = await one.another('b')
      await one.token('t1', { approval: true, uses: 90 })
      for (let round = 0; round < 30; round++) {
        const [id, key] = [`d${round}`, `key of d${round}`]
        await one.apply('t1', id, key)
        const repeat = () => two.registry.beginIssuance(two.intent({ token: 't1', key }))
        const decisions = [
          [() => approve(one, id, key), () => approve(two, id, key), repeat],
          [repeat, () => reject(one, id, key), () => approve(two, id, key)],
          [() => reject(one, id, key), repeat, () => reject(two, id, key)],
        ][round % 3]
        const outcomes = await Promise.allSettled((decisions ?? []).map((decide) => decide()))
        const [, last] = await Promise.allSettled([Promise.resolve(), repeat()])
        const isIn = last?.status === 'fulfilled' && !('waitsFor' in last.value)
        if (round % 3 === 0) t.ok(outcomes.every(({ status }) => status === 'fulfilled') && isIn)
        if (round % 3 === 1)
          t.equal(outcomes.slice(1).filter(({ status }) => status === 'fulfilled').length, 1)
        if (round % 3 === 2) t.notOk(isIn)
      }
      const { devices } = await one.registry.listDevices({ limit: 100, now: one.now() })
      t.equal(await used(one, 't1'), devices.length, 'every spent use has exactly one device')
      t.equal(await one.registry.verifyAudit(), null)
    },
  )

  await t.test('what synthetic devices asked for is forgotten with them', async (t) => {
    const plane = await fresh(t)
    await plane.registry.createFleet({ id: 'demo', synthetic: true }, plane.act())
    await plane.registry.createBatch({ id: 'demo', fleet: 'demo', approval: true }, plane.act())
    await plane.token('t1', { batch: 'demo', uses: 9 })
    for (const id of ['d1', 'd2']) await plane.apply('t1', id, `key of ${id}`)
    await reject(plane, 'd2', 'key of d2')
    t.equal(await plane.registry.clearSynthetic(plane.act()), 1)
    await plane.token('t1', { batch: 'demo', uses: 9 })
    t.match(await plane.apply('t1', 'd2', 'key of d2'), { device: 'd2' })
  })
}
