import type { Test } from 'tap'
import { DAY_MS, device, deviceId, hex } from '../../support/registry-plane.ts'
import type { Fresh } from '../registry.ts'

export async function tokensContract(t: Test, fresh: Fresh): Promise<void> {
  await t.test('a token makes its batch on first use', async (t) => {
    const plane = await fresh(t)
    t.match(await plane.token('t1', { batch: 'new', uses: 3, naming: 'assigned' }), {
      id: 't1',
      batch: 'new',
      uses: 3,
      used: 0,
      state: 'open',
      device: null,
      listed: 0,
    })
    t.match(await plane.registry.listBatches(), [
      { id: 'new', fleet: 'default', naming: 'assigned', tokens: 1 },
    ])
    await t.rejects(
      plane.token('t2', { batch: 'new', naming: 'csr' }),
      { code: 'conflict' },
      'another naming',
    )
    t.equal(
      (await plane.registry.listTokens({ now: plane.now() })).length,
      1,
      'a refused token leaves nothing',
    )
  })

  await t.test('the id and the hash of a token are unique', async (t) => {
    const plane = await fresh(t)
    await plane.token('t1')
    await t.rejects(plane.token('t1'), { code: 'conflict' })
    await t.rejects(plane.token('t2', { hash: hex('t1') }), { code: 'conflict' })
  })

  await t.test('the ids on a list become expected devices of its batch, and of no other', async (t) => {
    const plane = await fresh(t)
    const listed = await plane.token('t1', { uses: 3, devices: ['d1', 'd2', 'd2'].map(deviceId) })
    t.equal(listed.listed, 2)
    const { devices } = await plane.registry.listDevices({ limit: 10, now: plane.now() })
    t.match(devices, [
      { id: 'd1', state: 'expected', batch: 'lab', fleet: 'default' },
      { id: 'd2', state: 'expected' },
    ])
    await plane.token('t2', { devices: [deviceId('d1')] })
    await t.rejects(plane.token('t3', { batch: 'other', devices: [deviceId('d1')] }), { code: 'conflict' })
    t.strictSame(
      (await plane.registry.listBatches()).map(({ id }) => id),
      ['lab'],
      'the refused token made no batch',
    )
  })

  await t.test('a long list is taken whole or not at all', async (t) => {
    const plane = await fresh(t)
    const ids = Array.from({ length: 1500 }, (_, i) => deviceId(`d${i}`))
    await plane.token('t1', { batch: 'other', devices: [deviceId('d1499')] })
    await t.rejects(plane.token('t2', { uses: 1500, devices: ids }), { code: 'conflict' })
    t.equal(await plane.registry.findToken(hex('t2'), plane.now()), null)
    t.strictSame(
      (await plane.registry.listBatches()).map(({ id }) => id),
      ['other'],
    )
    t.match(await plane.token('t3', { uses: 1500, devices: ids.slice(0, -1) }), { listed: 1499 })
    for (const id of ['d0', 'd999', 'd1000', 'd1498']) t.ok(await plane.begin('t3', id, `key of ${id}`), id)
    await t.rejects(plane.begin('t3', 'd1499', 'k'), { code: 'csr_subject' })
  })

  await t.test('brokers do not hear of a device that is only expected', async (t) => {
    const plane = await fresh(t)
    const before = await plane.registry.cursor()
    await plane.token('t1', { devices: [deviceId('d1')] })
    t.strictSame(await plane.registry.cursor(), before)
  })

  await t.test('a token says whether it is open, spent, expired or cancelled', async (t) => {
    const plane = await fresh(t)
    await plane.token('open')
    await plane.token('spent')
    await plane.token('expired', { expiresAt: plane.now() + DAY_MS })
    await plane.token('cancelled', { batch: 'other' })
    await plane.enrollWith('spent', 'd1', 'k1')
    await plane.registry.cancelToken('cancelled', plane.act())
    plane.pass(DAY_MS)
    const states = (await plane.registry.listTokens({ now: plane.now() })).map(({ id, state }) => [id, state])
    t.strictSame(states, [
      ['open', 'open'],
      ['spent', 'spent'],
      ['expired', 'expired'],
      ['cancelled', 'cancelled'],
    ])
    t.match(await plane.registry.listTokens({ batch: 'other', now: plane.now() }), [{ id: 'cancelled' }])
  })

  await t.test('a token is found by the hash of its text, whatever its state', async (t) => {
    const plane = await fresh(t)
    await plane.token('t1')
    await plane.registry.cancelToken('t1', plane.act())
    t.match(await plane.registry.findToken(hex('t1'), plane.now()), { id: 't1', state: 'cancelled' })
    t.equal(await plane.registry.findToken(hex('guess'), plane.now()), null)
  })

  await t.test('cancelling is for tokens that exist, and once is enough', async (t) => {
    const plane = await fresh(t)
    await plane.token('t1')
    await plane.registry.cancelToken('t1', plane.act())
    const entries = (await plane.registry.listAudit(0, 100)).length
    t.match(await plane.registry.cancelToken('t1', plane.act()), { state: 'cancelled' })
    t.equal((await plane.registry.listAudit(0, 100)).length, entries, 'nothing happened the second time')
    await t.rejects(plane.registry.cancelToken('none', plane.act()), { code: 'not_found' })
  })

  await t.test('a reissue token is for a device that is known, and no service', async (t) => {
    const plane = await fresh(t)
    await plane.enroll('d1')
    t.match(await plane.reissue('r1', 'd1'), { device: 'd1', batch: 'lab', uses: 1, state: 'open' })
    await t.rejects(plane.reissue('r2', 'none'), { code: 'not_found' })
    await plane.service('reader', 'k')
    await t.rejects(plane.reissue('r3', 'reader'), { code: 'conflict' })
  })

  await t.test('retiring a device cancels the tokens that would bring it back', async (t) => {
    const plane = await fresh(t)
    await plane.enroll('d1')
    await plane.reissue('r1', 'd1')
    await plane.registry.retireDevice('d1', plane.act())
    t.match(await plane.registry.findToken(hex('r1'), plane.now()), { state: 'cancelled' })
    await t.rejects(plane.begin('r1', 'd1', 'k2'), { code: 'token_cancelled' })
  })

  await t.test('finalising cancels the tokens of its scope and no others', async (t) => {
    const plane = await fresh(t)
    await plane.enroll('d1')
    await plane.enroll('e1', 'other')
    await plane.token('lab', { uses: 5 })
    await plane.token('other', { batch: 'other' })
    await plane.reissue('r-d1', 'd1')
    await plane.reissue('r-e1', 'e1')
    const state = async (id: string) => (await plane.registry.findToken(hex(id), plane.now()))?.state
    await plane.revoke('p1', device('d1'))
    t.strictSame(
      [await state('lab'), await state('r-d1'), await state('r-e1')],
      ['open', 'cancelled', 'open'],
    )
    await plane.revoke('p2', { scope: 'batch', id: 'lab' })
    t.strictSame([await state('lab'), await state('other')], ['cancelled', 'open'])
    await plane.revoke('p3', { scope: 'fleet', id: 'default' })
    t.strictSame([await state('other'), await state('r-e1')], ['cancelled', 'cancelled'])
  })
}
