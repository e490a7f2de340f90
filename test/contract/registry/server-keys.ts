import type { Test } from 'tap'
import type { EnrollmentIntent } from '../../../enrollment/registry/registry.ts'
import { DAY_MS, device, deviceId, hex, PLAIN_WISH, type Plane } from '../../support/registry-plane.ts'
import type { Fresh } from '../registry.ts'

const WISH = { ...PLAIN_WISH, serverKey: true } as const

/** A request with the CSR's key `asks`, for which the plane has made `key`. */
const asking = (plane: Plane, token: string, of: { id: string | null; key: string; asks?: string }) =>
  plane.intent({
    token,
    key: of.asks ?? 'throwaway',
    serverKey: hex(of.key),
    wish: WISH,
    commonName: of.id === null ? null : deviceId(of.id),
  })
const begin = (plane: Plane, intent: EnrollmentIntent) => plane.beginIssuance(intent)
const used = async (plane: Plane, token: string) =>
  (await plane.registry.findToken(hex(token), plane.now()))?.used

async function allowing(plane: Plane): Promise<Plane> {
  await plane.registry.setProfile('default', { serverKeys: true }, plane.act())
  return plane
}

export async function serverKeysContract(t: Test, fresh: Fresh): Promise<void> {
  await t.test('a profile has to allow keys that the plane makes', async (t) => {
    const plane = await fresh(t)
    await plane.token('t1')
    const asked = begin(plane, asking(plane, 't1', { id: 'd1', key: 'k1' }))
    await t.rejects(asked, { code: 'server_key', evidence: { fleet: 'default' } })
    t.equal(await used(plane, 't1'), 0)
  })

  await t.test('a repeated request gets another key on the same use, and the first is revoked', async (t) => {
    const plane = await allowing(await fresh(t))
    await plane.token('t1', { expiresAt: plane.now() + DAY_MS })
    const first = await plane.finish(await begin(plane, asking(plane, 't1', { id: 'd1', key: 'k1' })))
    plane.pass(2 * DAY_MS)
    const again = asking(plane, 't1', { id: 'd1', key: 'k2', asks: 'another throwaway' })
    const second = await plane.finish(await begin(plane, again))
    t.not(second.serial, first.serial)
    t.equal(second.certificate, null, 'it is signed anew')
    t.match(await plane.certificate(first.fingerprint), {
      state: 'revoked',
      reason: 'superseded',
      revokedAt: plane.now(),
    })
    t.match(await plane.certificate(second.fingerprint), { state: 'issued' })
    t.equal(await used(plane, 't1'), 1)
    t.match(await plane.registry.revokedBy(plane.issuer.id, 0), [{ serial: first.serial }], 'for the CRL')
    const changes = await plane.registry.changesAfter(0, 100)
    t.match(
      changes.map(({ change }) => change).filter(({ kind }) => kind === 'certificate'),
      [
        { certificate: { serial: first.serial, state: 'issued' } },
        { certificate: { serial: first.serial, state: 'revoked' } },
        { certificate: { serial: second.serial, state: 'issued' } },
      ],
    )
    t.equal(await plane.registry.verifyAudit(), null)
  })

  await t.test('also after a crash before anything was signed', async (t) => {
    const plane = await allowing(await fresh(t))
    await plane.token('t1')
    const first = await begin(plane, asking(plane, 't1', { id: 'd1', key: 'k1' }))
    const second = await plane.finish(await begin(plane, asking(plane, 't1', { id: 'd1', key: 'k2' })))
    await plane.finish(first)
    t.match(await plane.certificate(hex(`certificate ${first.serial}`)), { state: 'revoked' }, 'however late')
    t.match(await plane.certificate(second.fingerprint), { state: 'issued' })
    t.match(await plane.registry.showDevice('d1', plane.now()), { state: 'active' })
    t.equal(await used(plane, 't1'), 1)
  })

  await t.test('at most three times', async (t) => {
    const plane = await allowing(await fresh(t))
    await plane.token('t1')
    for (const key of ['k1', 'k2', 'k3'])
      await plane.finish(await begin(plane, asking(plane, 't1', { id: 'd1', key })))
    const fourth = begin(plane, asking(plane, 't1', { id: 'd1', key: 'k4' }))
    await t.rejects(fourth, { code: 'successors', evidence: { unseen: 3 } })
    t.equal((await plane.registry.showDevice('d1', plane.now())).certificates[0]?.state, 'issued')
  })

  await t.test(
    'a token of several devices repeats its own request, and makes nobody another device',
    async (t) => {
      const plane = await allowing(await fresh(t))
      await plane.token('t1', { uses: 5 })
      await plane.token('t2', { uses: 5 })
      const first = await plane.finish(await begin(plane, asking(plane, 't1', { id: 'd1', key: 'k1' })))
      for (const token of ['t1', 't2']) {
        const thief = begin(plane, asking(plane, token, { id: 'd1', key: 'k2', asks: 'another request' }))
        await t.rejects(thief, { code: 'id_taken' }, 'also before the device connects')
      }
      t.match(await plane.certificate(first.fingerprint), { state: 'issued' })
      const second = await plane.finish(await begin(plane, asking(plane, 't1', { id: 'd1', key: 'k3' })))
      t.match(await plane.certificate(first.fingerprint), { state: 'revoked', reason: 'superseded' })
      t.match(await plane.certificate(second.fingerprint), { state: 'issued' })
      const reserved = await begin(plane, asking(plane, 't1', { id: 'd2', key: 'k4' }))
      const cutOff = begin(plane, asking(plane, 't1', { id: 'd2', key: 'k5', asks: 'another request' }))
      await t.rejects(cutOff, { code: 'id_taken' }, 'nor after a crash before anything was signed')
      await plane.finish(reserved)
      t.equal(await used(plane, 't1'), 2)
      t.equal(await used(plane, 't2'), 0)
    },
  )

  await t.test('a token that takes one device back is enough by itself, as often as it is for', async (t) => {
    const plane = await allowing(await fresh(t))
    await plane.enroll('d1')
    await plane.reissue('r1', 'd1')
    const ask = async (key: string, asks: string) =>
      plane.finish(await begin(plane, asking(plane, 'r1', { id: 'd1', key, asks })))
    t.not((await ask('k1', 'a')).serial, (await ask('k2', 'b')).serial)
  })

  await t.test('whoever else has the token gets nothing once the device has used its key', async (t) => {
    const plane = await allowing(await fresh(t))
    await plane.broker()
    await plane.token('t1', { uses: 5 })
    const seen = await plane.finish(await begin(plane, asking(plane, 't1', { id: 'd1', key: 'k1' })))
    await plane.report([plane.connected(seen)])
    const thief = () => begin(plane, asking(plane, 't1', { id: 'd1', key: 'k2' }))
    await t.rejects(thief(), { code: 'id_taken' }, 'a broker has seen it')

    const renewing = await plane.finish(await begin(plane, asking(plane, 't1', { id: 'd2', key: 'k3' })))
    await plane.renew(renewing.fingerprint, 'k4')
    const late = begin(plane, asking(plane, 't1', { id: 'd2', key: 'k5' }))
    await t.rejects(late, { code: 'id_taken' }, 'it has renewed')

    await plane.enrollWith('t1', 'd3', 'own key')
    const other = begin(plane, asking(plane, 't1', { id: 'd3', key: 'k6' }))
    await t.rejects(other, { code: 'id_taken' }, 'it has made its own key')
    t.equal(await used(plane, 't1'), 3)
  })

  await t.test('a device that was revoked, or is held, gets no other key', async (t) => {
    const plane = await allowing(await fresh(t))
    await plane.token('t1', { uses: 2 })
    await plane.finish(await begin(plane, asking(plane, 't1', { id: 'd1', key: 'k1' })))
    await plane.hold('h1', device('d1'))
    const again = () => begin(plane, asking(plane, 't1', { id: 'd1', key: 'k2' }))
    await t.rejects(again(), { code: 'held' })
    await plane.registry.undoPlan('h1', plane.act())
    await plane.revoke('r1', device('d1'))
    await t.rejects(again(), { code: 'token_tombstone' })
  })

  await t.test(
    'where the plane gives the id, only a token with one use knows its device again',
    async (t) => {
      const plane = await allowing(await fresh(t))
      await plane.registry.createBatch({ id: 'named', naming: 'assigned' }, plane.act())
      await plane.token('one', { batch: 'named' })
      await plane.token('many', { batch: 'named', uses: 3 })
      const ask = async (token: string, key: string) =>
        plane.finish(await begin(plane, asking(plane, token, { id: null, key })))
      t.equal((await ask('one', 'k1')).device, (await ask('one', 'k2')).device)
      t.not((await ask('many', 'k3')).device, (await ask('many', 'k4')).device)
      t.equal(await used(plane, 'many'), 2)
    },
  )

  await t.test('a key that was named beforehand is not one that the plane makes', async (t) => {
    const plane = await allowing(await fresh(t))
    await plane.token('t1', { approval: true })
    const known = { ...plane.act(), id: deviceId('d1'), batch: 'lab', spki: hex('its own') }
    await plane.registry.addDevice(known)
    const asked = begin(plane, asking(plane, 't1', { id: 'd1', key: 'k1', asks: 'its own' }))
    await t.rejects(asked, { code: 'csr_key' })
  })

  await t.test('an application is known again by the key of the request', async (t) => {
    const plane = await allowing(await fresh(t))
    await plane.token('t1', { approval: true })
    const ask = (key: string) =>
      plane.registry.beginIssuance(asking(plane, 't1', { id: 'd1', key, asks: 'a' }))
    t.match(await ask('k1'), { waitsFor: 'approval', spki: hex('a') })
    await plane.registry.approveDevice({ id: 'd1', spki: hex('a') }, plane.act())
    const other = plane.registry.beginIssuance(asking(plane, 't1', { id: 'd1', key: 'k2', asks: 'b' }))
    await t.rejects(other, { code: 'token_spent' })
    const first = await ask('k3')
    const second = await ask('k4')
    t.ok('serial' in first && 'serial' in second && first.serial !== second.serial)
    t.equal(await used(plane, 't1'), 1)
  })

  await t.test('a renewal with a key that the plane makes can be repeated likewise', async (t) => {
    const plane = await allowing(await fresh(t))
    const presented = await plane.enroll('d1')
    const renew = async (key: string) =>
      plane.finish(
        await plane.registry.beginRenewal({ ...plane.renewal(presented.fingerprint, key), wish: WISH }),
      )
    const first = await renew('k1')
    const second = await renew('k2')
    t.match(await plane.certificate(first.fingerprint), { state: 'revoked', reason: 'superseded' })
    t.match(await plane.certificate(second.fingerprint), { state: 'issued' })
    t.match(await plane.certificate(presented.fingerprint), { state: 'issued' }, 'the old pair stays')
    await renew('k3')
    await t.rejects(renew('k4'), { code: 'successors' })
    await plane.registry.setProfile('default', { serverKeys: false }, plane.act())
    const other = await plane.enroll('d2')
    const late = plane.registry.beginRenewal({ ...plane.renewal(other.fingerprint, 'k5'), wish: WISH })
    await t.rejects(late, { code: 'server_key' })
  })
}
