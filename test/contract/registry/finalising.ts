import type { Test } from 'tap'
import { DAY_MS, device, hex } from '../../support/registry-plane.ts'
import type { Fresh } from '../registry.ts'

export async function finalisingContract(t: Test, fresh: Fresh): Promise<void> {
  await t.test('a hold becomes revocations in slices, dated at its commit', async (t) => {
    const plane = await fresh(t)
    for (let i = 0; i < 5; i++) await plane.enroll(`d${i}`)
    const other = await plane.enroll('e1', 'other')
    const { appliedAt } = await plane.hold(
      'p1',
      { scope: 'batch', id: 'lab' },
      { action: 'revoke', reason: 'cessationOfOperation' },
    )
    plane.pass(900_000)
    await plane.registry.beginFinalising('p1', plane.act())
    const { position } = await plane.registry.cursor()
    const slice = () => plane.registry.finaliseSlice('p1', 2, plane.act())
    t.strictSame(
      [await slice(), await slice(), await slice()],
      [
        { done: false, revoked: 2 },
        { done: false, revoked: 2 },
        { done: true, revoked: 1 },
      ],
    )
    const changes = (await plane.registry.changesAfter(position, 10)).map(({ change }) => change)
    t.match(changes.at(0), {
      certificate: { state: 'revoked', revokedAt: appliedAt, reason: 'cessationOfOperation' },
    })
    t.strictSame(changes.at(-1), {
      kind: 'hold',
      hold: { id: 'p1', scope: { kind: 'batch', id: 'lab' }, state: 'ended' },
    })
    t.match(await plane.registry.showPlan('p1', plane.now()), { state: 'final' })
    t.strictSame(await slice(), { done: true, revoked: 0 }, 'again changes nothing')
    t.match(await plane.certificate(other.fingerprint), { state: 'issued' })
  })

  await t.test('every kind of scope revokes its own certificates, whatever their state', async (t) => {
    const plane = await fresh(t)
    await plane.broker()
    const first = await plane.enroll('d1')
    const second = await plane.renew(first.fingerprint, 'k2')
    await plane.report([plane.connected(second)])
    plane.pass(DAY_MS)
    await plane.registry.supersedeDue(plane.now(), 10)
    await plane.enroll('d2')
    await plane.enroll('d3', 'other')
    await plane.service('reader', 'k')
    const serials = async () => (await plane.registry.revokedBy(plane.issuer.id, 0)).length
    await plane.revoke('p1', { scope: 'device', id: 'd1' })
    t.equal(await serials(), 2, 'the superseded one too')
    await plane.revoke('p2', device('d2'))
    t.equal(await serials(), 3)
    await plane.revoke('p3', { scope: 'fleet', id: 'default' })
    t.equal(await serials(), 4, 'only what was not revoked before')
    await plane.revoke('p4', { scope: 'issuer', id: plane.issuer.id })
    t.equal(await serials(), 5)
  })

  await t.test('finalising begins when the undo time is over, and then there is no way back', async (t) => {
    const plane = await fresh(t)
    await plane.enroll('d1')
    await plane.enroll('d2')
    await plane.hold('p1', device('d1'), { action: 'revoke', undoMs: 900_000 })
    await plane.hold('p2', device('d2'))
    t.strictSame(await plane.registry.duePlans(plane.now()), [])
    await t.rejects(plane.registry.beginFinalising('p1', plane.act()), { code: 'conflict' })
    await t.rejects(plane.registry.finaliseSlice('p1', 10, plane.act()), { code: 'conflict' })
    plane.pass(900_000)
    t.strictSame(await plane.registry.duePlans(plane.now()), ['p1'], 'a hold is never due')
    await plane.registry.beginFinalising('p1', plane.act())
    await t.rejects(plane.registry.undoPlan('p1', plane.act()), { code: 'undo_over' })
    t.strictSame(await plane.registry.duePlans(0), ['p1'], 'one that was interrupted is due at once')
    await plane.registry.beginFinalising('p1', plane.act())
    await plane.registry.finaliseSlice('p1', 10, plane.act())
    t.strictSame(await plane.registry.duePlans(plane.now()), [])
    await t.rejects(plane.registry.undoPlan('p1', plane.act()), { code: 'undo_over' })
    await t.rejects(plane.registry.beginFinalising('p2', plane.act()), { code: 'conflict' })
    await t.rejects(plane.registry.beginFinalising('none', plane.act()), { code: 'not_found' })
  })

  await t.test('holds stack: a revocation ends its own hold, the others go on', async (t) => {
    const plane = await fresh(t)
    const { fingerprint } = await plane.enroll('d1')
    await plane.hold('other', { scope: 'fleet', id: 'default' })
    await plane.revoke('p1', device('d1'))
    t.match(await plane.registry.findCredential({ fingerprint }), {
      certificate: { state: 'revoked' },
      hold: { id: 'other' },
    })
    await plane.registry.undoPlan('other', plane.act())
    t.match(await plane.certificate(fingerprint), { state: 'revoked' }, 'nothing is un-revoked')
  })

  await t.test('two plans over the same devices revoke each certificate once, by the first', async (t) => {
    const plane = await fresh(t)
    await plane.enroll('d1')
    await plane.hold('p1', device('d1'), { action: 'revoke', undoMs: 0, reason: 'superseded' })
    await plane.hold('p2', device('d1'), { action: 'revoke', undoMs: 0, reason: 'keyCompromise' })
    await plane.finalise('p1')
    await plane.finalise('p2')
    t.match(await plane.registry.revokedBy(plane.issuer.id, 0), [{ reason: 'superseded' }])
  })

  await t.test('a CRL can be made: what is revoked, by whom, and whether it is out of date', async (t) => {
    const plane = await fresh(t)
    const first = await plane.enroll('d1')
    await plane.enroll('d2')
    t.equal(await plane.registry.revocationMark(plane.issuer.id), 0)
    await plane.revoke('p1', device('d1'), { reason: 'privilegeWithdrawn' })
    const mark = await plane.registry.revocationMark(plane.issuer.id)
    t.ok(mark > 0)
    const revokedAt = (await plane.registry.showPlan('p1', plane.now())).appliedAt
    const entry = { serial: first.serial, revokedAt, reason: 'privilegeWithdrawn' }
    t.strictSame(await plane.registry.revokedBy(plane.issuer.id, plane.now()), [entry])
    t.strictSame(await plane.registry.revokedBy(plane.issuer.id, first.notAfter), [entry])
    t.strictSame(await plane.registry.revokedBy(plane.issuer.id, first.notAfter + 1), [], 'it has expired')
    t.strictSame(await plane.registry.revokedBy(hex('another CA'), 0), [])
    await plane.hold('p2', device('d2'))
    t.equal(await plane.registry.revocationMark(plane.issuer.id), mark, 'a hold is on no CRL')
    await plane.revoke('p3', device('d2'))
    t.ok((await plane.registry.revocationMark(plane.issuer.id)) > mark)
    t.equal(await plane.registry.revocationMark(hex('another CA')), 0)
  })
}
