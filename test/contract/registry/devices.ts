import type { Test } from 'tap'
import { DAY_MS, device, deviceId, hex } from '../../support/registry-plane.ts'
import type { Fresh } from '../registry.ts'

export async function devicesContract(t: Test, fresh: Fresh): Promise<void> {
  await t.test('devices are listed in pages, by fleet, batch and state', async (t) => {
    const plane = await fresh(t)
    for (const id of ['d3', 'd1', 'd2']) await plane.enroll(id)
    await plane.enroll('e1', 'other')
    await plane.registry.retireDevice('d2', plane.act())
    const list = async (page: {
      batch?: string
      fleet?: string
      state?: string
      after?: string
      limit?: number
    }) => {
      const { devices, next } = await plane.registry.listDevices({ limit: 10, now: plane.now(), ...page })
      return { ids: devices.map(({ id }) => id), next }
    }
    t.strictSame(await list({ limit: 2 }), { ids: ['d1', 'd2'], next: 'd2' })
    t.strictSame(await list({ limit: 2, after: 'd2' }), { ids: ['d3', 'e1'], next: null })
    t.strictSame(await list({ batch: 'lab' }), { ids: ['d1', 'd2', 'd3'], next: null })
    t.strictSame(await list({ fleet: 'default', state: 'active', limit: 2 }), {
      ids: ['d1', 'd3'],
      next: 'd3',
    })
    t.strictSame(await list({ batch: 'lab', state: 'retired' }), { ids: ['d2'], next: null })
    t.strictSame(await list({ batch: 'none' }), { ids: [], next: null })
  })

  await t.test('a device is shown with its certificates, holds and refusals', async (t) => {
    const plane = await fresh(t)
    const first = await plane.enroll('d1')
    const second = await plane.renew(first.fingerprint, 'k2')
    await plane.hold('p1', device('d1'), { reason: 'privilegeWithdrawn' })
    await plane.registry.recordRefusal({
      now: plane.now(),
      code: 'held',
      evidence: { hold: 'p1' },
      device: 'd1',
      fingerprint: first.fingerprint,
      address: '192.0.2.1',
    })
    const shown = await plane.registry.showDevice('d1', plane.now())
    t.match(shown, {
      id: 'd1',
      state: 'active',
      held: true,
      online: false,
      lastSeenAt: null,
      expiresAt: second.notAfter,
      holds: [
        { id: 'p1', scope: { kind: 'plan', id: 'p1' }, reason: 'privilegeWithdrawn', since: plane.now() },
      ],
      refusals: [{ code: 'R-HELD', by: 'enrollment', evidence: { hold: 'p1' } }],
    })
    t.strictSame(
      shown.certificates.map(({ serial }) => serial),
      [second.serial, first.serial],
      'newest first',
    )
    await t.rejects(plane.registry.showDevice('none', plane.now()), { code: 'not_found' })
  })

  await t.test('a certificate is found by its fingerprint and by its serial', async (t) => {
    const plane = await fresh(t)
    const { fingerprint, serial } = await plane.enroll('d1')
    const credential = await plane.registry.findCredential({ fingerprint })
    t.match(credential, { certificate: { serial }, device: { id: 'd1', held: false }, hold: null })
    t.equal(String(credential?.der), `certificate ${serial}`)
    await plane.hold('p1', { scope: 'fleet', id: 'default' })
    t.match(await plane.registry.findCredential({ serial }), {
      device: { held: true },
      hold: { id: 'p1', scope: { kind: 'fleet', id: 'default' } },
    })
    t.equal(await plane.registry.findCredential({ fingerprint: hex('none') }), null)
  })

  await t.test('retiring is told to brokers, and happens once', async (t) => {
    const plane = await fresh(t)
    await plane.enroll('d1')
    const { position } = await plane.registry.cursor()
    await plane.registry.retireDevice('d1', plane.act())
    t.match(await plane.registry.changesAfter(position, 10), [
      { change: { kind: 'device', device: { state: 'retired' } } },
    ])
    await t.rejects(plane.registry.retireDevice('d1', plane.act()), { code: 'conflict' })
    await t.rejects(plane.registry.retireDevice('none', plane.act()), { code: 'not_found' })
  })

  await t.test('a service gets its certificate by its name, and one for each key', async (t) => {
    const plane = await fresh(t)
    await plane.broker()
    const one = await plane.service('reader', 'k1')
    t.match(one, { device: 'reader', kind: 'service', fleet: 'services' })
    const again = {
      ...plane.act(),
      id: deviceId('reader'),
      spkiHash: hex('k1'),
      serial: plane.serial(),
      issuer: plane.issuer,
    }
    t.equal(
      (await plane.registry.beginService(again)).serial,
      one.serial,
      'the same key again is the same certificate',
    )
    const two = await plane.service('reader', 'k2')
    await plane.report([plane.connected(two)])
    t.match(
      await plane.certificate(one.fingerprint),
      { supersededFrom: null },
      'two places do not supersede each other',
    )
    const next = await plane.renew(one.fingerprint, 'k3')
    await plane.report([plane.connected(next)])
    t.match(
      await plane.certificate(one.fingerprint),
      { supersededFrom: plane.now() + DAY_MS },
      'a renewal does',
    )
    t.match(await plane.certificate(two.fingerprint), { supersededFrom: null })
  })

  await t.test('devices and services share one namespace, and keys', async (t) => {
    const plane = await fresh(t)
    await plane.enroll('d1')
    await plane.service('reader', 'k1')
    await t.rejects(plane.service('d1', 'k2'), { code: 'id_taken' })
    await t.rejects(plane.service('writer', 'key of d1'), { code: 'csr_key' })
    await plane.token('t1')
    await t.rejects(plane.begin('t1', 'reader', 'k3'), { code: 'id_taken' })
    await t.rejects(plane.token('t2', { devices: [deviceId('reader')] }), { code: 'conflict' })
    await plane.hold('p1', device('reader'))
    await t.rejects(plane.service('reader', 'k4'), { code: 'held' })
  })

  await t.test('synthetic devices are forgotten, with their tokens, and nobody else', async (t) => {
    const plane = await fresh(t)
    await plane.registry.createFleet({ id: 'demo', synthetic: true }, plane.act())
    await plane.registry.createBatch({ id: 'demo', fleet: 'demo' }, plane.act())
    await plane.enroll('real')
    const fake = await plane.enroll('fake', 'demo')
    const revoked = await plane.enroll('revoked', 'demo')
    await plane.revoke('p1', device('revoked'))
    const { position } = await plane.registry.cursor()
    t.equal(await plane.registry.clearSynthetic(plane.act()), 2)
    t.match(await plane.registry.changesAfter(position, 10), [
      { change: { kind: 'forgotten', device: 'fake' } },
      { change: { kind: 'forgotten', device: 'revoked' } },
    ])
    t.equal(await plane.registry.findCredential(fake), null)
    t.equal(await plane.registry.findToken(hex('token of fake'), plane.now()), null)
    t.match(await plane.registry.counts(plane.now()), { active: 1, synthetic: 0 })
    t.match(
      await plane.registry.revokedBy(plane.issuer.id, 0),
      [{ serial: revoked.serial }],
      'a CRL loses no entry: nothing is un-revoked',
    )
    t.equal(await plane.registry.clearSynthetic(plane.act()), 0)
    t.ok(await plane.enroll('real-2'))
  })

  await t.test('the counts leave synthetic devices and services out', async (t) => {
    const plane = await fresh(t)
    await plane.registry.createFleet({ id: 'demo', synthetic: true }, plane.act())
    await plane.registry.createBatch({ id: 'demo', fleet: 'demo' }, plane.act())
    await plane.enroll('fake', 'demo')
    await plane.service('reader', 'k1')
    await plane.token('t1', { devices: ['d1', 'd2'].map(deviceId) })
    await plane.enroll('d3')
    await plane.enroll('d4')
    await plane.registry.retireDevice('d4', plane.act())
    await plane.hold('p1', { scope: 'fleet', id: 'demo' })
    t.strictSame(await plane.registry.counts(plane.now()), {
      expected: 2,
      pending: 0,
      active: 1,
      retired: 1,
      online: 0,
      synthetic: 1,
      holds: 1,
      refusedLastHour: 0,
    })
  })
}
