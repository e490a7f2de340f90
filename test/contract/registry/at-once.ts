import type { Test } from 'tap'
import type { Issuance } from '../../../enrollment/registry/registry.ts'
import { deviceId, hex } from '../../support/registry-plane.ts'
import type { Fresh } from '../registry.ts'

/** An intent that is given a signer records the certificate in the same commit, or nothing at all. */
export async function atOnceContract(t: Test, fresh: Fresh): Promise<void> {
  await t.test(
    'a device enrolls in one commit, with one audit entry that names what was issued',
    async (t) => {
      const plane = await fresh(t)
      await plane.token('t1')
      const { position } = await plane.registry.cursor()
      const audited = (await plane.registry.auditHead())?.sequence ?? 0
      const request = plane.intent({ token: 't1', key: 'k1', commonName: deviceId('d1') })
      const issued = await plane.registry.beginIssuance(request, plane.sign)
      if ('waitsFor' in issued) throw new Error('nobody has to approve')
      t.equal(String(issued.certificate), `certificate ${issued.serial}`)
      t.match(await plane.registry.changesAfter(position, 10), [
        { change: { kind: 'device', device: { id: 'd1', state: 'active', batch: 'lab' } } },
        {
          change: {
            kind: 'certificate',
            certificate: { serial: issued.serial, device: 'd1', state: 'issued', notAfter: issued.notAfter },
          },
        },
      ])
      t.match(await plane.registry.listAudit(audited, 10), [
        {
          by: 'token:t1',
          action: 'enroll',
          subject: `device:d1 certificate:${issued.serial}`,
          positions: [position + 1, position + 2],
        },
      ])
      t.match(await plane.registry.findCredential({ fingerprint: plane.sign(issued).fingerprint }), {
        certificate: { state: 'issued' },
        device: { state: 'active' },
      })
      t.strictSame(await plane.registry.beginIssuance(request, plane.sign), issued, 'and again the same')
      t.match(await plane.registry.findToken(hex('t1'), plane.now()), { used: 1 })
    },
  )

  await t.test('it is recorded as it is when it is signed later', async (t) => {
    const [now, later] = [await fresh(t), await fresh(t)]
    for (const plane of [now, later]) await plane.token('t1', { uses: 2 })
    const serial = now.serial()
    const ask = (plane: typeof now) =>
      plane.intent({ token: 't1', key: 'k1', commonName: deviceId('d1'), serial, issuer: now.issuer })
    await now.registry.beginIssuance(ask(now), now.sign)
    await later.finish(await later.beginIssuance(ask(later)))
    for (const plane of [now, later]) await plane.registry.createFleet({ id: 'last' }, plane.act())
    const told = async (plane: typeof now) =>
      (await plane.registry.changesAfter(0, 100)).map(({ change }) => change)
    t.strictSame(await told(now), await told(later))
    const credential = (plane: typeof now) => plane.registry.findCredential({ serial })
    t.strictSame(await credential(now), await credential(later))
  })

  await t.test('a signature that fails spends nothing and leaves nothing', async (t) => {
    const plane = await fresh(t)
    await plane.token('t1')
    const { position } = await plane.registry.cursor()
    const audited = await plane.registry.auditHead()
    const request = plane.intent({ token: 't1', key: 'k1', commonName: deviceId('d1') })
    const refuse = () => {
      throw new Error('the linter refused')
    }
    await t.rejects(plane.registry.beginIssuance(request, refuse), { message: 'the linter refused' })
    t.match(await plane.registry.findToken(hex('t1'), plane.now()), { used: 0, state: 'open' })
    t.equal((await plane.registry.cursor()).position, position)
    t.strictSame(await plane.registry.auditHead(), audited)
    await t.rejects(plane.registry.showDevice('d1', plane.now()), { code: 'not_found' })
    t.ok(await plane.registry.beginIssuance(request, plane.sign), 'the same request may come again')
  })

  await t.test(
    'a signer that cannot sign at once leaves a reservation, which the next one signs',
    async (t) => {
      const plane = await fresh(t)
      await plane.token('t1')
      const request = plane.intent({ token: 't1', key: 'k1', commonName: deviceId('d1') })
      const reserved = await plane.registry.beginIssuance(request, () => null)
      t.match(reserved, { certificate: null, device: 'd1' })
      t.match(await plane.registry.showDevice('d1', plane.now()), { state: 'expected' })
      const seen: Issuance[] = []
      const issued = await plane.registry.beginIssuance(request, (issuance) => {
        seen.push(issuance)
        return plane.sign(issuance)
      })
      t.strictSame(seen, [reserved], 'for the same id, serial and dates')
      t.strictSame({ ...issued, certificate: null }, reserved)
      t.match(await plane.registry.showDevice('d1', plane.now()), { state: 'active' })
      t.match(await plane.registry.findToken(hex('t1'), plane.now()), { used: 1 })
      t.match(await plane.registry.listAudit((await lastOf(plane)) - 1, 1), [
        { by: 'token:t1', action: 'issue' },
      ])
    },
  )

  await t.test('nothing is signed for who waits for approval, until it is there', async (t) => {
    const plane = await fresh(t)
    await plane.token('t1', { approval: true })
    const request = plane.intent({ token: 't1', key: 'k1', commonName: deviceId('d1') })
    let signed = 0
    const sign = (issuance: Issuance) => {
      signed++
      return plane.sign(issuance)
    }
    t.match(await plane.registry.beginIssuance(request, sign), { waitsFor: 'approval' })
    t.match(await plane.registry.showDevice('d1', plane.now()), { state: 'pending' })
    t.equal(signed, 0)
    await plane.registry.approveDevice({ id: 'd1', spki: request.spkiHash }, plane.act())
    t.match(await plane.registry.beginIssuance(request, sign), { device: 'd1' })
    t.match(await plane.registry.showDevice('d1', plane.now()), { state: 'active' })
    t.equal(signed, 1)
  })

  await t.test('a renewal and a service likewise', async (t) => {
    const plane = await fresh(t)
    const first = await plane.enroll('d1')
    const renewal = plane.renewal(first.fingerprint, 'k2')
    const next = await plane.registry.beginRenewal(renewal, plane.sign)
    t.equal(String(next.certificate), `certificate ${next.serial}`)
    t.strictSame(await plane.registry.beginRenewal(renewal, plane.sign), next)
    const service = {
      ...plane.act(),
      id: deviceId('s1'),
      spkiHash: hex('k3'),
      serial: plane.serial(),
      issuer: plane.issuer,
    }
    const issued = await plane.registry.beginService(service, plane.sign)
    t.equal(String(issued.certificate), `certificate ${service.serial}`)
    t.match(await plane.registry.findCredential({ serial: service.serial }), {
      device: { id: 's1', kind: 'service', state: 'active', batch: null },
    })
    t.strictSame(
      await plane.registry.beginService({ ...service, serial: plane.serial() }, plane.sign),
      issued,
    )
  })

  await t.test('100 uses of a one-use token: one signature is recorded', async (t) => {
    const one = await fresh(t)
    const two = await one.another('b')
    await one.token('t1')
    const results = await Promise.allSettled(
      Array.from({ length: 100 }, (_, i) => {
        const plane = i % 2 === 0 ? one : two
        const request = plane.intent({ token: 't1', key: `k${i}`, commonName: deviceId(`d${i}`) })
        return plane.registry.beginIssuance(request, plane.sign)
      }),
    )
    t.equal(results.filter(({ status }) => status === 'fulfilled').length, 1)
    t.match(await one.registry.findToken(hex('t1'), one.now()), { used: 1, state: 'spent' })
    const changes = await one.registry.changesAfter(0, 1000)
    t.equal(changes.filter(({ change }) => change.kind === 'certificate').length, 1)
    t.equal((await one.registry.listDevices({ limit: 200, now: one.now() })).devices.length, 1)
    t.equal(await one.registry.verifyAudit(), null)
  })
}

async function lastOf({ registry }: Awaited<ReturnType<Fresh>>): Promise<number> {
  return (await registry.auditHead())?.sequence ?? 0
}
