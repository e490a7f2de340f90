import type { Test } from 'tap'
import type { Idevid, ManufacturedRow } from '../../../enrollment/registry/registry.ts'
import { testManufacturer } from '../../support/manufacturer.ts'
import fc from '../../support/properties.ts'
import { DAY_MS, deviceId, hex, type Plane } from '../../support/registry-plane.ts'
import type { Fresh } from '../registry.ts'

const { ca: PEM } = testManufacturer()
const CA = hex('CA of acme')

const claim = (plane: Plane, id: string, of: { uses?: number; key?: string } = {}) =>
  plane.token(id, {
    uses: of.uses ?? 1,
    hash: hex(`reserved ${id}`),
    claim: {
      issuer: plane.issuer.id,
      serial: plane.serial(),
      spki: hex(of.key ?? `key of ${id}`),
      notAfter: plane.now() + DAY_MS,
    },
  })
/** Its certificate has the fingerprint that stands for its name in these tests. */
const finish = (plane: Plane, id: string) =>
  plane.registry.finishClaim(id, { der: Buffer.from(id), fingerprint: hex(id) }, plane.act())

const maker = (plane: Plane, id: string, of: { batch?: string; ca?: string; expiresAt?: number } = {}) =>
  plane.registry.createManufacturer({
    ...plane.act(),
    id,
    hash: hex(id),
    batch: of.batch ?? 'lab',
    ca: of.ca ?? CA,
    pem: PEM,
    expiresAt: of.expiresAt ?? null,
  })
const row = (id: string, serialNumber: string | null = id, certificateSerial: string | null = null) =>
  ({ id: deviceId(id), serialNumber, certificateSerial }) satisfies ManufacturedRow
const list = (plane: Plane, manufacturer: string, ...rows: ManufacturedRow[]) =>
  plane.registry.listManufactured({ ...plane.act(), manufacturer, rows, isRehearsal: false })
const idevid = (serialNumber: string | null, certificateSerial = 'c0'): Idevid => ({
  ca: CA,
  fingerprint: hex(`idevid ${serialNumber}`),
  serialNumber,
  certificateSerial,
})
const come = async (
  plane: Plane,
  manufacturer: string,
  of: { number: string | null; key: string; serial?: string },
) =>
  plane.finish(
    await plane.beginIssuance(
      plane.intent({ token: manufacturer, key: of.key, idevid: idevid(of.number, of.serial) }),
    ),
  )

export async function bootstrapContract(t: Test, fresh: Fresh): Promise<void> {
  await t.test('a claim is good once its certificate is recorded, and is a token in all else', async (t) => {
    const plane = await fresh(t)
    t.match(await claim(plane, 'c1', { uses: 2 }), { kind: 'claim', uses: 2, state: 'open' })
    t.equal(await plane.registry.findToken(hex('c1'), plane.now()), null, 'nobody can have it yet')
    await t.rejects(plane.begin('c1', 'd1', 'k1'), { code: 'token_unknown' })
    t.match(await finish(plane, 'c1'), { id: 'c1', kind: 'claim' })
    t.match(await finish(plane, 'c1'), { id: 'c1' }, 'twice is once')
    await t.rejects(finish(plane, 'none'), { code: 'not_found' })
    const first = await plane.enrollWith('c1', 'd1', 'k1')
    t.equal((await plane.begin('c1', 'd1', 'k1')).serial, first.serial)
    await plane.enrollWith('c1', 'd2', 'k2')
    await t.rejects(plane.begin('c1', 'd3', 'k3'), { code: 'token_spent', message: /claim certificate "c1"/ })
    t.match(await plane.registry.cancelToken('c1', plane.act()), { state: 'cancelled' })
    await t.rejects(plane.begin('c1', 'd1', 'k1'), { code: 'token_cancelled' })
  })

  await t.test('claims without a certificate are cancelled at once, and no others', async (t) => {
    const plane = await fresh(t)
    await claim(plane, 'c1')
    await claim(plane, 'c2')
    await finish(plane, 'c2')
    await plane.token('t1')
    t.equal(await plane.registry.cancelUnfinishedClaims(plane.act()), 1)
    const states = (await plane.registry.listTokens({ now: plane.now() })).map(({ id, state }) => [id, state])
    t.strictSame(Object.fromEntries(states), { c1: 'cancelled', c2: 'open', t1: 'open' })
    await finish(plane, 'c1')
    await t.rejects(plane.begin('c1', 'd1', 'k1'), { code: 'token_cancelled' }, 'however late it is signed')
    t.equal(await plane.registry.cancelUnfinishedClaims(plane.act()), 0)
    t.equal(await plane.registry.verifyAudit(), null)
  })

  await t.test('a claim that is over is on the CRL, whoever ended it', async (t) => {
    const plane = await fresh(t)
    const { registry, issuer } = plane
    const known: string[] = []
    for (const id of ['c1', 'c2', 'c3']) {
      const spki = hex(`key of ${id}`)
      const serial = plane.serial()
      known.push(serial)
      const notAfter = plane.now() + DAY_MS
      await plane.token(id, {
        hash: hex(`reserved ${id}`),
        claim: { issuer: issuer.id, serial, spki, notAfter },
      })
    }
    const states = () => Promise.all(known.map((serial) => registry.revocationStatus(issuer.id, serial)))
    t.strictSame(await states(), [null, null, null], 'a reservation is no certificate')
    await finish(plane, 'c1')
    await finish(plane, 'c2')
    t.strictSame(await states(), [{ state: 'good' }, { state: 'good' }, null])
    t.equal(await registry.revocationStatus(hex('another CA'), known[0] ?? ''), null)
    await registry.cancelToken('c1', plane.act())
    await registry.cancelToken('c3', plane.act())
    await finish(plane, 'c3')
    t.match(await states(), [{ state: 'revoked' }, { state: 'good' }, { state: 'revoked' }])
    await plane.revoke('p1', { scope: 'batch', id: 'lab' })
    t.match(await states(), [{}, { state: 'revoked', reason: 'cessationOfOperation' }, {}])
    const marks = (await registry.revokedBy(issuer.id, 0)).map(({ serial }) => serial)
    t.strictSame(marks.toSorted(), known.toSorted(), 'each once')
  })

  await t.test('the key of a claim is no device’s, and no other claim’s', async (t) => {
    const plane = await fresh(t)
    await claim(plane, 'c1', { uses: 3, key: 'shared' })
    await finish(plane, 'c1')
    await plane.token('t1', { uses: 3 })
    await t.rejects(plane.begin('c1', 'd1', 'shared'), { code: 'csr_key' })
    await t.rejects(plane.begin('t1', 'd1', 'shared'), { code: 'csr_key' })
    await t.rejects(plane.service('reader', 'shared'), { code: 'csr_key' })
    const { fingerprint } = await plane.enrollWith('t1', 'd2', 'k2')
    await t.rejects(plane.renew(fingerprint, 'shared'), { code: 'csr_key' })
    await t.rejects(claim(plane, 'c2', { key: 'shared' }), { code: 'csr_key' })
    await t.rejects(claim(plane, 'c3', { key: 'k2' }), { code: 'csr_key' })
    const expected = { ...plane.act(), id: deviceId('d4'), batch: 'lab', spki: hex('shared') }
    await t.rejects(plane.registry.addDevice(expected), { code: 'csr_key' })
    await plane.registry.compromiseKeys([hex('shared')], plane.act())
    await t.rejects(plane.begin('c1', 'd5', 'k5'), { code: 'csr_key' }, 'a claim whose key got out is over')
  })

  await t.test('each device of a list enrolls once, under the id of its row', async (t) => {
    const plane = await fresh(t)
    await plane.token('other', { uses: 9 })
    await t.rejects(maker(plane, 'acme', { batch: 'none' }), { code: 'not_found' })
    t.match(await maker(plane, 'acme'), { id: 'acme', listed: 0, enrolled: 0, state: 'open' })
    await t.rejects(maker(plane, 'acme'), { code: 'conflict' })
    await t.rejects(list(plane, 'none', row('d1')), { code: 'not_found' })
    t.match(await list(plane, 'acme', row('d1', 'SN-1'), row('d2', 'SN-2', 'c2'), row('d3', null, 'c3')), {
      applied: true,
    })
    t.match((await come(plane, 'acme', { number: 'SN-1', key: 'k1' })).device, 'd1')
    t.match((await come(plane, 'acme', { number: 'SN-1', key: 'k1' })).device, 'd1', 'a repeat is free')
    await t.rejects(come(plane, 'acme', { number: 'SN-1', key: 'k9' }), { code: 'idevid_used' })
    await t.rejects(come(plane, 'acme', { number: 'SN-2', key: 'k2' }), { code: 'idevid_unlisted' })
    await t.rejects(come(plane, 'acme', { number: 'SN-2', key: 'k1', serial: 'c2' }), { code: 'csr_key' })
    t.match((await come(plane, 'acme', { number: 'SN-2', key: 'k2', serial: 'c2' })).device, 'd2')
    t.match((await come(plane, 'acme', { number: 'whatever', key: 'k3', serial: 'c3' })).device, 'd3')
    for (const number of ['sn-1', 'SN-01', 'SN-1\0', '', null]) {
      await t.rejects(come(plane, 'acme', { number, key: 'k8' }), { code: 'idevid_unlisted' })
    }
    t.match(await plane.registry.listManufacturers(plane.now()), [{ listed: 3, enrolled: 3, state: 'spent' }])
    await t.rejects(
      plane.begin('acme', 'd1', 'k1'),
      { code: 'token_unknown' },
      'without a certificate it is nothing',
    )
    const asToken = plane.intent({ token: 'other', key: 'k7', idevid: idevid('SN-1') })
    await t.rejects(
      plane.beginIssuance(asToken),
      { code: 'token_unknown' },
      'and with one a token is nothing',
    )
  })

  await t.test('a number that two rows could mean is nobody’s', async (t) => {
    const plane = await fresh(t)
    await plane.token('other')
    await maker(plane, 'acme')
    await list(plane, 'acme', row('d1', 'SN-1'), row('d2', null, 'c2'))
    await t.rejects(come(plane, 'acme', { number: 'SN-1', key: 'k1', serial: 'c2' }), {
      code: 'idevid_unlisted',
    })
  })

  await t.test('a listed device is nobody else’s before it comes', async (t) => {
    const plane = await fresh(t)
    await plane.token('t1', { uses: 9 })
    await maker(plane, 'acme')
    await list(plane, 'acme', row('d1'), row('d2'))
    await t.rejects(plane.begin('t1', 'd1', 'k1'), { code: 'csr_subject' })
    await plane.reissue('r1', 'd1')
    t.match((await plane.enrollWith('r1', 'd1', 'k1')).device, 'd1', 'but an operator may say who it is')
    await t.rejects(come(plane, 'acme', { number: 'd1', key: 'k2' }), { code: 'idevid_used' })
    await plane.registry.cancelToken('acme', plane.act())
    t.match((await plane.enrollWith('t1', 'd2', 'k3')).device, 'd2')
  })

  await t.test('one row that is refused keeps the whole slice out', async (t) => {
    const plane = await fresh(t)
    await plane.token('t1', { uses: 9 })
    await plane.enrollWith('t1', 'd1', 'k1')
    await maker(plane, 'acme')
    const slice = [row('d1'), row('d2'), row('d3', 'd2')]
    t.match(await list(plane, 'acme', ...slice), {
      applied: false,
      rows: [
        { verdict: 'refused', code: 'conflict' },
        { verdict: 'added' },
        { verdict: 'refused', reason: /numbers are those of "d2"/ },
      ],
    })
    const rehearsal = { ...plane.act(), manufacturer: 'acme', rows: [row('d2')], isRehearsal: true }
    t.match(await plane.registry.listManufactured(rehearsal), {
      applied: false,
      rows: [{ verdict: 'added' }],
    })
    await t.rejects(plane.registry.showDevice('d2', plane.now()), { code: 'not_found' })
    t.match(await plane.registry.listManufacturers(plane.now()), [{ listed: 0 }])
  })

  await t.test(
    'a device is told of the list that is open, and of one that is over when there is no other',
    async (t) => {
      const plane = await fresh(t)
      await plane.token('other')
      const find = (number: string) => plane.registry.findManufacturer(idevid(number), plane.now())
      t.equal(await find('SN-1'), null)
      await maker(plane, 'old', { expiresAt: plane.now() + DAY_MS })
      await list(plane, 'old', row('d1', 'SN-1'))
      await maker(plane, 'new')
      await list(plane, 'new', row('d2', 'SN-2'))
      t.match(
        [await find('SN-1'), await find('SN-2'), await find('SN-3')],
        [{ id: 'old' }, { id: 'new' }, { id: 'new' }],
      )
      plane.pass(DAY_MS)
      t.match(await find('SN-1'), { id: 'old' })
      await t.rejects(come(plane, 'old', { number: 'SN-1', key: 'k1' }), { code: 'token_expired' })
      await plane.registry.cancelToken('new', plane.act())
      t.match(await find('SN-2'), { id: 'new' })
      t.strictSame(
        (await plane.registry.manufacturerCas(plane.now())).map(({ isOpen }) => isOpen),
        [false, false],
      )
      await t.rejects(list(plane, 'new', row('d3')), { code: 'conflict' })
    },
  )

  await t.test('whoever comes, in whichever order, a number has one device', async (t) => {
    const plane = await fresh(t)
    await plane.token('other')
    await maker(plane, 'acme')
    await list(plane, 'acme', row('d1', 'SN-1'), row('d2', 'SN-2'), row('d3', 'SN-3'))
    const step = fc.record({
      number: fc.constantFrom('SN-1', 'SN-2', 'SN-3', 'sn-1', 'SN-4'),
      key: fc.constantFrom('k1', 'k2', 'k3', 'k4'),
    })
    const keys = new Map<string, string>()
    await fc.assert(
      fc.asyncProperty(fc.array(step, { maxLength: 8 }), async (steps) => {
        for (const one of steps) {
          const came = await come(plane, 'acme', one).catch(() => null)
          if (came === null) continue
          t.equal(keys.get(came.device) ?? one.key, one.key)
          keys.set(came.device, one.key)
          t.equal(came.device, one.number.replace('SN-', 'd'))
        }
        t.equal(new Set(keys.values()).size, keys.size)
        const { uses } = await plane.registry.batchReport('lab', plane.now())
        t.equal(uses.enrolled, keys.size)
      }),
      { numRuns: 20 },
    )
    t.ok(keys.size > 1)
  })

  await t.test('alarms are the newest first, as many as are asked for', async (t) => {
    const plane = await fresh(t)
    await claim(plane, 'c1')
    await finish(plane, 'c1')
    await maker(plane, 'acme')
    const attempt = (token: string, code: 'token_spent' | 'idevid_unlisted') =>
      plane.registry.recordRefusal({
        now: plane.now(),
        code,
        evidence: { token },
        device: null,
        fingerprint: null,
        address: '192.0.2.1',
      })
    await attempt('c1', 'token_spent')
    plane.pass(DAY_MS)
    const since = plane.now()
    await attempt('acme', 'idevid_unlisted')
    const all = [
      {
        batch: 'lab',
        kind: 'manufacturer',
        token: 'acme',
        code: 'R-IDEVID-UNLISTED',
        attempts: 1,
        lastAt: since,
      },
      {
        batch: 'lab',
        kind: 'claim',
        token: 'c1',
        code: 'R-TOKEN-SPENT',
        attempts: 1,
        lastAt: since - DAY_MS,
      },
    ]
    t.strictSame(await plane.registry.bootstrapAlarms({ since: 0, limit: 10 }), all)
    t.strictSame(await plane.registry.bootstrapAlarms({ since, limit: 10 }), all.slice(0, 1))
    t.strictSame(await plane.registry.bootstrapAlarms({ since: 0, limit: 1 }), all.slice(0, 1))
  })
}
