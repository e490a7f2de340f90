import type { Test } from 'tap'
import { DAY_MS, device, HOUR_MS, hex } from '../../support/registry-plane.ts'
import type { Fresh } from '../registry.ts'

export async function renewalContract(t: Test, fresh: Fresh): Promise<void> {
  await t.test('a device renews for the same key and rekeys for another', async (t) => {
    const plane = await fresh(t)
    const first = await plane.enroll('d1')
    const renewed = await plane.renew(first.fingerprint, 'key of d1')
    const rekeyed = await plane.renew(renewed.fingerprint, 'k2')
    t.match(renewed, { device: 'd1', kind: 'device', fleet: 'default' })
    const actions = (await plane.registry.listAudit(0, 100)).map(({ action, by }) => `${action} ${by}`)
    t.ok(
      actions.includes('renew device:d1') && actions.includes('rekey device:d1'),
      'the audit log tells them apart',
    )
    t.equal(new Set([first, renewed, rekeyed].map(({ serial }) => serial)).size, 3)
  })

  await t.test(
    'a lost reply costs nothing: the same certificate and key get the same successor',
    async (t) => {
      const plane = await fresh(t)
      const { fingerprint } = await plane.enroll('d1')
      const reserved = await plane.registry.beginRenewal(plane.renewal(fingerprint, 'k2'))
      t.strictSame(await plane.registry.beginRenewal(plane.renewal(fingerprint, 'k2')), reserved)
      await plane.finish(reserved)
      plane.pass(DAY_MS)
      const again = await plane.registry.beginRenewal(plane.renewal(fingerprint, 'k2'))
      t.strictSame({ ...again, certificate: null }, reserved)
      t.equal(String(again.certificate), `certificate ${reserved.serial}`)
    },
  )

  await t.test('at most three successors may be unseen; a connection makes room', async (t) => {
    const plane = await fresh(t)
    await plane.broker()
    const first = await plane.enroll('d1')
    const second = await plane.renew(first.fingerprint, 'k2')
    await plane.renew(first.fingerprint, 'k3')
    await plane.renew(second.fingerprint, 'k4')
    const another = () => plane.registry.beginRenewal(plane.renewal(first.fingerprint, 'k5'))
    await t.rejects(another(), { code: 'successors', evidence: { serial: first.serial, unseen: 3 } })
    t.ok(
      await plane.registry.beginRenewal(plane.renewal(first.fingerprint, 'k2')),
      'a repeated request is none',
    )
    await plane.report([plane.connected(second)])
    t.ok(await another())
  })

  await t.test('a certificate that is no longer good renews nothing', async (t) => {
    const plane = await fresh(t)
    await plane.broker()
    const renew = (of: { fingerprint: string }) =>
      plane.registry.beginRenewal(plane.renewal(of.fingerprint, `new ${of.fingerprint}`))
    await t.rejects(renew({ fingerprint: hex('forged') }), { code: 'unrecorded' })
    const [old, revoked, retired, held, early] = await Promise.all(
      ['old', 'revoked', 'retired', 'held', 'early'].map((id) => plane.enroll(id)),
    )
    if (!old || !revoked || !retired || !held || !early) throw new Error('five were enrolled')
    await plane.revoke('p1', device('revoked'), { reason: 'privilegeWithdrawn' })
    await t.rejects(renew(revoked), { code: 'revoked', evidence: { reason: 'privilegeWithdrawn' } })
    await plane.registry.retireDevice('retired', plane.act())
    await t.rejects(renew(retired), { code: 'retired' })
    await plane.hold('p2', device('held'))
    await t.rejects(renew(held), { code: 'held', evidence: { hold: 'p2' } })
    plane.pass(-2 * HOUR_MS)
    await t.rejects(renew(early), { code: 'notyet' })
    plane.pass(2 * HOUR_MS)
    await plane.report([plane.connected(await plane.renew(old.fingerprint, 'k2'))])
    plane.pass(DAY_MS - 1)
    t.ok(await renew(old), 'good until the overlap is over')
    plane.pass(1)
    await t.rejects(renew(old), { code: 'superseded' }, 'whether or not a change has said so')
    await plane.registry.supersedeDue(plane.now(), 10)
    await t.rejects(renew(old), { code: 'superseded' })
    plane.pass(early.notAfter + 999 - plane.now())
    t.ok(await renew(early), 'notAfter names the last valid second')
    plane.pass(1)
    await t.rejects(renew(early), { code: 'expired' })
  })

  await t.test('the key of another device, and one that is compromised, are refused', async (t) => {
    const plane = await fresh(t)
    const first = await plane.enroll('d1')
    const other = await plane.enroll('d2')
    const renew = (key: string) => plane.registry.beginRenewal(plane.renewal(first.fingerprint, key))
    await t.rejects(renew('key of d2'), { code: 'csr_key' })
    await plane.revoke('p1', device('d2'), { reason: 'keyCompromise' })
    await plane.reissue('r2', 'd2')
    await t.rejects(plane.begin('r2', 'd2', 'key of d2'), { code: 'csr_key' })
    t.ok(await plane.begin('r2', 'd2', 'new key of d2'))
    t.not(other.serial, first.serial)
  })

  await t.test('reissue brings back a device that was revoked, and with it no other', async (t) => {
    const plane = await fresh(t)
    await plane.enroll('d1')
    await plane.enroll('d2')
    await plane.revoke('p1', device('d1'))
    await plane.reissue('r1', 'd1')
    await t.rejects(plane.begin('r1', 'd2', 'k2'), { code: 'csr_subject' })
    await t.rejects(plane.begin('r1', 'd1', 'key of d2'), { code: 'csr_key' })
    const back = await plane.enrollWith('r1', 'd1', 'k2')
    t.match(await plane.registry.findCredential(back), {
      certificate: { state: 'issued' },
      device: { state: 'active' },
    })
    t.equal((await plane.begin('r1', 'd1', 'k2')).serial, back.serial, 'its retry is free')
    await t.rejects(plane.begin('r1', 'd1', 'k3'), { code: 'token_spent' })
  })

  await t.test('reissue brings back a device that was retired, once it is signed', async (t) => {
    const plane = await fresh(t)
    await plane.enroll('d1')
    await plane.registry.retireDevice('d1', plane.act())
    await plane.reissue('r1', 'd1')
    const reserved = await plane.begin('r1', 'd1', 'k2')
    t.match(await plane.registry.showDevice('d1', plane.now()), { state: 'retired' })
    t.equal((await plane.begin('r1', 'd1', 'k2')).serial, reserved.serial, 'resumed')
    await plane.finish(reserved)
    t.match(await plane.registry.showDevice('d1', plane.now()), { state: 'active' })
    await plane.registry.retireDevice('d1', plane.act())
    await t.rejects(
      plane.begin('r1', 'd1', 'k2'),
      { code: 'token_tombstone' },
      'retired again, it is out again',
    )
  })

  await t.test(
    'after a reissue the older certificates are superseded once the new one is seen',
    async (t) => {
      const plane = await fresh(t)
      await plane.broker()
      const first = await plane.enroll('d1')
      const successor = await plane.renew(first.fingerprint, 'k2')
      await plane.reissue('r1', 'd1')
      const back = await plane.enrollWith('r1', 'd1', 'k3')
      await plane.report([plane.connected(back)])
      const end = plane.now() + DAY_MS
      for (const { fingerprint } of [first, successor]) {
        t.match(await plane.certificate(fingerprint), { supersededFrom: end })
      }
      t.match(await plane.certificate(back.fingerprint), { supersededFrom: null, state: 'active' })
    },
  )
}
