import type { Test } from 'tap'
import { DAY_MS, device, deviceId, HOUR_MS, hex } from '../../support/registry-plane.ts'
import type { Fresh } from '../registry.ts'

export async function enrollmentContract(t: Test, fresh: Fresh): Promise<void> {
  await t.test('a device enrolls: reserved, signed, and only then known to brokers', async (t) => {
    const plane = await fresh(t)
    await plane.token('t1')
    const { position } = await plane.registry.cursor()
    const issuance = await plane.begin('t1', 'd1', 'k1')
    t.match(issuance, {
      device: 'd1',
      kind: 'device',
      fleet: 'default',
      issuer: plane.issuer.id,
      certificate: null,
    })
    t.equal((await plane.registry.cursor()).position, position, 'a reserved certificate is nobody’s business')
    t.equal(await plane.registry.findCredential({ serial: issuance.serial }), null)
    await plane.finish(issuance)
    const changes = await plane.registry.changesAfter(position, 10)
    t.match(changes, [
      {
        position: position + 1,
        change: { kind: 'device', device: { id: 'd1', state: 'active', batch: 'lab' } },
      },
      {
        position: position + 2,
        change: { kind: 'certificate', certificate: { serial: issuance.serial, state: 'issued' } },
      },
    ])
  })

  await t.test('validity begins an hour ago and ends in whole seconds, never after its issuer', async (t) => {
    const plane = await fresh(t)
    await plane.registry.createFleet({ id: 'short', lifetimeMs: 90_500 }, plane.act())
    await plane.registry.createBatch({ id: 'short', fleet: 'short' }, plane.act())
    await plane.token('t1', { batch: 'short', uses: 2 })
    plane.pass(250)
    const own = await plane.begin('t1', 'd1', 'k1')
    t.equal(own.notBefore, plane.now() - 250 - HOUR_MS)
    t.equal(own.notAfter, plane.now() - 250 + 90_000)
    const issuer = { id: plane.issuer.id, notAfter: plane.now() + 60_000 }
    const capped = await plane.beginIssuance(
      plane.intent({ token: 't1', key: 'k2', commonName: deviceId('d2'), issuer }),
    )
    t.equal(capped.notAfter, plane.now() - 250 + 60_000)
  })

  await t.test('a lost reply costs nothing: the same token and key get the same certificate', async (t) => {
    const plane = await fresh(t)
    await plane.token('t1', { expiresAt: plane.now() + DAY_MS })
    const reserved = await plane.begin('t1', 'd1', 'k1')
    t.strictSame(
      await plane.begin('t1', 'd1', 'k1'),
      reserved,
      'a crash before the signature resumes the serial',
    )
    await plane.finish(reserved)
    plane.pass(2 * DAY_MS)
    const again = await plane.begin('t1', 'd1', 'k1')
    t.strictSame({ ...again, certificate: null }, reserved, 'also when the token is spent and has expired')
    t.equal(String(again.certificate), `certificate ${reserved.serial}`)
    t.match(await plane.registry.findToken(hex('t1'), plane.now()), { used: 1 })
  })

  await t.test('a retry needs no CN: the token and the key say who it is', async (t) => {
    const plane = await fresh(t)
    await plane.token('t1')
    const { serial } = await plane.enrollWith('t1', 'd1', 'k1')
    t.match(await plane.beginIssuance(plane.intent({ token: 't1', key: 'k1' })), {
      serial,
      device: 'd1',
    })
  })

  await t.test('an enrollment that was never signed gets new dates when the old ones are over', async (t) => {
    const plane = await fresh(t)
    await plane.token('t1')
    const reserved = await plane.begin('t1', 'd1', 'k1')
    plane.pass(31 * DAY_MS)
    const resumed = await plane.begin('t1', 'd1', 'k1')
    t.equal(resumed.serial, reserved.serial)
    t.equal(resumed.notAfter, reserved.notAfter + 31 * DAY_MS)
  })

  await t.test('a retry is refused once the token is cancelled', async (t) => {
    const plane = await fresh(t)
    await plane.token('t1')
    await plane.enrollWith('t1', 'd1', 'k1')
    await plane.registry.cancelToken('t1', plane.act())
    await t.rejects(plane.begin('t1', 'd1', 'k1'), { code: 'token_cancelled' })
  })

  await t.test('a retry works only while its certificate is live', async (t) => {
    const plane = await fresh(t)
    for (const id of ['revoked', 'retired', 'held', 'superseded', 'expired']) await plane.enroll(id)
    const again = (id: string) => plane.begin(`token of ${id}`, id, `key of ${id}`)
    await plane.revoke('p1', device('revoked'))
    await t.rejects(again('revoked'), { code: 'token_tombstone', evidence: { state: 'revoked' } })
    await plane.registry.retireDevice('retired', plane.act())
    await t.rejects(again('retired'), { code: 'token_tombstone', evidence: { state: 'retired' } })
    await plane.hold('p2', device('held'))
    await t.rejects(again('held'), { code: 'held', evidence: { hold: 'p2', scope: 'plan p2' } })
    await plane.registry.undoPlan('p2', plane.act())
    t.ok((await again('held')).certificate, 'with the hold gone it works again')
    await plane.broker()
    const old = (await plane.registry.showDevice('superseded', plane.now())).certificates[0]
    const next = await plane.renew(String(old?.fingerprint), 'k2')
    await plane.report([plane.connected(next)])
    t.ok((await again('superseded')).certificate, 'during the overlap it is live')
    plane.pass(DAY_MS)
    await t.rejects(again('superseded'), { code: 'token_spent' })
    plane.pass(30 * DAY_MS)
    await t.rejects(again('expired'), { code: 'token_spent' })
  })

  await t.test('a token is refused by its own code, in a fixed order', async (t) => {
    const plane = await fresh(t)
    await t.rejects(plane.begin('none', 'd1', 'k1'), { code: 'token_unknown' })
    await plane.token('t1', { expiresAt: plane.now() + DAY_MS })
    const labelled = (label: string) =>
      plane.beginIssuance(plane.intent({ token: 't1', key: 'k1', commonName: deviceId('d1'), label }))
    await t.rejects(labelled('other'), { code: 'token_batch' })
    t.ok(await labelled('lab'), 'the label of its own batch')
    await t.rejects(plane.begin('t1', 'd2', 'k2'), {
      code: 'token_spent',
      evidence: { token: 't1', uses: 1 },
    })
    plane.pass(DAY_MS)
    await t.rejects(plane.begin('t1', 'd2', 'k2'), { code: 'token_expired' }, 'expired comes before spent')
    await plane.hold('p1', { scope: 'batch', id: 'lab' })
    await t.rejects(plane.begin('t1', 'd2', 'k2'), { code: 'held' }, 'held comes before expired')
    await plane.registry.cancelToken('t1', plane.act())
    await t.rejects(plane.begin('t1', 'd2', 'k2'), { code: 'token_cancelled' }, 'cancelled comes before held')
  })

  await t.test('a refusal spends nothing and makes no device', async (t) => {
    const plane = await fresh(t)
    await plane.enroll('d1')
    await plane.token('t1', { uses: 5 })
    await t.rejects(plane.begin('t1', 'd1', 'k2'), { code: 'id_taken' })
    await t.rejects(plane.begin('t1', 'd2', 'key of d1'), { code: 'csr_key' })
    t.match(await plane.registry.findToken(hex('t1'), plane.now()), { used: 0 })
    await t.rejects(plane.registry.showDevice('d2', plane.now()), { code: 'not_found' })
  })

  await t.test('where the id comes from: the CN, once', async (t) => {
    const plane = await fresh(t)
    await plane.token('t1', { uses: 5 })
    await t.rejects(plane.beginIssuance(plane.intent({ token: 't1', key: 'k1' })), {
      code: 'csr_subject',
    })
    t.match(await plane.begin('t1', 'd1', 'k1'), { device: 'd1' })
    await t.rejects(plane.begin('t1', 'd1', 'k2'), { code: 'id_taken' }, 'also while it is only reserved')
  })

  await t.test('where the id comes from: the list', async (t) => {
    const plane = await fresh(t)
    await plane.token('two', { uses: 5, devices: ['d1', 'd2'].map(deviceId) })
    await plane.token('one', { uses: 5, devices: [deviceId('d3')] })
    const unnamed = (token: string, key: string) => plane.beginIssuance(plane.intent({ token, key }))
    await t.rejects(unnamed('two', 'k'), { code: 'csr_subject' }, 'two are listed and none is named')
    await t.rejects(plane.begin('two', 'd3', 'k'), { code: 'csr_subject' }, 'on another list')
    t.match(await plane.begin('two', 'd2', 'k2'), { device: 'd2' })
    t.match(await unnamed('one', 'k3'), { device: 'd3' }, 'the only one that it can be')
    await t.rejects(unnamed('one', 'k4'), { code: 'id_taken' })
  })

  await t.test('where the id comes from: in a batch by list, the manifest', async (t) => {
    const plane = await fresh(t)
    await plane.token('manifest', { batch: 'm', naming: 'list', devices: [deviceId('d1')] })
    await plane.token('t1', { batch: 'm', uses: 5 })
    await t.rejects(plane.begin('t1', 'd2', 'k2'), { code: 'csr_subject' })
    t.match(await plane.begin('t1', 'd1', 'k1'), { device: 'd1' })
  })

  await t.test('where the id comes from: the server', async (t) => {
    const plane = await fresh(t)
    await plane.token('t1', { naming: 'assigned', uses: 2 })
    const assignedId = deviceId('a-1')
    t.match(await plane.beginIssuance(plane.intent({ token: 't1', key: 'k1', assignedId })), {
      device: 'a-1',
    })
    await t.rejects(
      plane.beginIssuance(plane.intent({ token: 't1', key: 'k2', assignedId })),
      { code: 'id_taken' },
      'an id that is in use is not assigned again',
    )
  })

  await t.test('an expected device enrolls with a token of its batch only', async (t) => {
    const plane = await fresh(t)
    await plane.token('t1', { devices: [deviceId('d1')] })
    await plane.token('foreign', { batch: 'other' })
    await plane.token('own')
    await t.rejects(plane.begin('foreign', 'd1', 'k1'), { code: 'id_taken' })
    t.match(await plane.begin('own', 'd1', 'k1'), { device: 'd1' })
  })

  await t.test('a revoked or retired device does not return with a new batch token', async (t) => {
    const plane = await fresh(t)
    await plane.enroll('d1')
    await plane.enroll('d2')
    await plane.revoke('p1', device('d1'))
    await plane.registry.retireDevice('d2', plane.act())
    await plane.token('t1', { uses: 5 })
    await t.rejects(plane.begin('t1', 'd1', 'new'), { code: 'token_tombstone' })
    await t.rejects(plane.begin('t1', 'd2', 'new'), { code: 'token_tombstone' })
  })

  await t.test(
    'a hold on the batch, the fleet, the device or the issuer stops enrolling, and ends',
    async (t) => {
      const plane = await fresh(t)
      await plane.enroll('d0')
      await plane.token('t1', { devices: [deviceId('d1')] })
      const targets = {
        batch: { scope: 'batch', id: 'lab' },
        fleet: { scope: 'fleet', id: 'default' },
        device: { scope: 'device', id: 'd1' },
        issuer: { scope: 'issuer', id: plane.issuer.id },
        plan: device('d1'),
      } as const
      for (const [id, target] of Object.entries(targets)) {
        await plane.hold(id, target)
        await t.rejects(plane.begin('t1', 'd1', 'k1'), { code: 'held', evidence: { hold: id } }, id)
        await plane.registry.undoPlan(id, plane.act())
      }
      t.ok(await plane.begin('t1', 'd1', 'k1'))
    },
  )

  await t.test('finishing is idempotent, and only for what was reserved', async (t) => {
    const plane = await fresh(t)
    await plane.token('t1')
    const issuance = await plane.begin('t1', 'd1', 'k1')
    await plane.finish(issuance)
    const before = await plane.registry.cursor()
    await plane.finish(issuance)
    t.strictSame(await plane.registry.cursor(), before)
    const other = { der: Buffer.from('other'), fingerprint: hex('other') }
    await t.rejects(plane.registry.finishIssuance(issuance.serial, other, plane.act()), { code: 'conflict' })
    await t.rejects(plane.registry.finishIssuance('00', other, plane.act()), { code: 'not_found' })
  })

  await t.test('what was revoked or retired while it was being signed stays out', async (t) => {
    const plane = await fresh(t)
    await plane.token('t1', { uses: 2 })
    const revoked = await plane.begin('t1', 'd1', 'k1')
    const retired = await plane.begin('t1', 'd2', 'k2')
    await plane.revoke('p1', device('d1'))
    await plane.registry.retireDevice('d2', plane.act())
    const told = (await plane.registry.changesAfter(0, 100)).map(({ change }) => change.kind)
    t.notOk(told.includes('certificate'), 'brokers hear of no certificate that is not signed')
    const first = await plane.finish(revoked)
    const second = await plane.finish(retired)
    t.match(await plane.registry.findCredential(first), {
      certificate: { state: 'revoked' },
      device: { state: 'expected' },
    })
    t.match(await plane.registry.findCredential(second), {
      certificate: { state: 'issued' },
      device: { state: 'retired' },
    })
    t.match(await plane.registry.revokedBy(plane.issuer.id, 0), [{ serial: revoked.serial }])
  })

  await t.test('no serial is used twice', async (t) => {
    const plane = await fresh(t)
    await plane.token('t1', { uses: 2 })
    const { serial } = await plane.begin('t1', 'd1', 'k1')
    const second = plane.intent({ token: 't1', key: 'k2', commonName: deviceId('d2'), serial })
    await t.rejects(plane.beginIssuance(second), { code: 'conflict' })
    t.match(await plane.registry.findToken(hex('t1'), plane.now()), { used: 1 })
  })
}
