import type { Test } from 'tap'
import { DAY_MS, device, hex } from '../../support/registry-plane.ts'
import type { Fresh } from '../registry.ts'

export async function revocationContract(t: Test, fresh: Fresh): Promise<void> {
  await t.test('revocations are read in pages, each once', async (t) => {
    const plane = await fresh(t)
    const { registry, issuer } = plane
    const page = (mark: number, limit: number, notExpiredAt = 0) =>
      registry.revokedAfter(issuer.id, { mark, notExpiredAt, limit })
    t.strictSame(await page(0, 10), [])
    const enrolled = []
    for (const id of ['d1', 'd2', 'd3']) enrolled.push(await plane.enroll(id))
    for (const id of ['d1', 'd2', 'd3']) await plane.revoke(`p-${id}`, device(id), { reason: 'superseded' })
    const first = await page(0, 2)
    const rest = await page(first.at(-1)?.mark ?? 0, 2)
    t.strictSame(
      [...first, ...rest].map(({ serial, notAfter, reason }) => ({ serial, notAfter, reason })),
      enrolled.map(({ serial, notAfter }) => ({ serial, notAfter, reason: 'superseded' })),
    )
    const mark = rest.at(-1)?.mark ?? 0
    t.equal(mark, await registry.revocationMark(issuer.id))
    t.strictSame(await page(mark, 2), [])
    t.equal((await page(0, 10, enrolled[0]?.notAfter)).length, 3)
    t.strictSame(await page(0, 10, (enrolled[2]?.notAfter ?? 0) + 1), [], 'they have expired')
    t.strictSame(await registry.revokedAfter(hex('another CA'), { mark: 0, notExpiredAt: 0, limit: 9 }), [])
  })

  await t.test('the status of a certificate: good, held, good again, revoked', async (t) => {
    const plane = await fresh(t)
    const { registry, issuer } = plane
    const { serial } = await plane.enroll('d1')
    const status = () => registry.revocationStatus(issuer.id, serial)
    t.strictSame(await status(), { state: 'good' })
    plane.pass(5_000)
    const { appliedAt } = await plane.hold('h1', { scope: 'fleet', id: 'default' })
    t.strictSame(await status(), { state: 'held', since: appliedAt })
    plane.pass(5_000)
    await plane.hold('h2', device('d1'))
    t.strictSame(await status(), { state: 'held', since: appliedAt }, 'the oldest hold counts')
    await registry.undoPlan('h1', plane.act())
    await registry.undoPlan('h2', plane.act())
    t.strictSame(await status(), { state: 'good' })
    const plan = await plane.hold('r1', device('d1'), {
      action: 'revoke',
      undoMs: 0,
      reason: 'keyCompromise',
    })
    t.strictSame(await status(), { state: 'held', since: plan.appliedAt })
    await plane.finalise('r1')
    const revoked = { state: 'revoked', since: plan.appliedAt, reason: 'keyCompromise' }
    t.strictSame(await status(), revoked)
    await plane.hold('h3', { scope: 'fleet', id: 'default' })
    t.strictSame(await status(), revoked, 'what is final stays as it is')
    plane.pass(400 * DAY_MS)
    t.strictSame(await status(), revoked, 'also when it has expired')
  })

  await t.test('the mark of the state stays while nothing is written, and never returns', async (t) => {
    const plane = await fresh(t)
    const { registry, issuer } = plane
    const { serial } = await plane.enroll('d1')
    const marks = new Set([registry.stateMark()])
    await registry.revocationStatus(issuer.id, serial)
    marks.add(registry.stateMark())
    t.equal(marks.size, 1, 'reading changes nothing')
    await plane.hold('h1', device('d1'))
    marks.add(registry.stateMark())
    await registry.undoPlan('h1', plane.act())
    marks.add(registry.stateMark())
    await plane.revoke('r1', device('d1'), { reason: 'superseded' })
    marks.add(registry.stateMark())
    t.equal(marks.has(null) || marks.size, 4)
  })

  await t.test('superseded and expired certificates are good, and reserved ones are not there', async (t) => {
    const plane = await fresh(t)
    await plane.broker()
    const { registry, issuer } = plane
    const first = await plane.enroll('d1')
    const second = await plane.renew(first.fingerprint, 'k2')
    await plane.report([plane.connected(second)])
    plane.pass(DAY_MS)
    await registry.supersedeDue(plane.now(), 10)
    t.match(await plane.certificate(first.fingerprint), { state: 'superseded' })
    t.strictSame(await registry.revocationStatus(issuer.id, first.serial), { state: 'good' })
    const reserved = await registry.beginRenewal(plane.renewal(second.fingerprint, 'k3'))
    t.equal(await registry.revocationStatus(issuer.id, reserved.serial), null)
    plane.pass(400 * DAY_MS)
    t.strictSame(await registry.revocationStatus(issuer.id, second.serial), { state: 'good' })
    t.equal(await registry.revocationStatus(issuer.id, '7f'.repeat(16)), null)
    t.equal(await registry.revocationStatus(hex('another CA'), first.serial), null)
  })
}
