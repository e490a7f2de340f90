import type { Test } from 'tap'
import { DAY_MS, device, hex } from '../../support/registry-plane.ts'
import type { Fresh } from '../registry.ts'

const COMPROMISED = { code: 'csr_key', evidence: { why: 'it is compromised' } }

export async function keysContract(t: Test, fresh: Fresh): Promise<void> {
  await t.test('the newest notBefore is that of the certificate that was issued last', async (t) => {
    const plane = await fresh(t)
    t.equal(await plane.registry.newestNotBefore(), 0)
    const first = await plane.enroll('d1')
    const of = async (fingerprint: string) =>
      (await plane.registry.findCredential({ fingerprint }))?.certificate.notBefore
    t.equal(await plane.registry.newestNotBefore(), await of(first.fingerprint))
    plane.pass(DAY_MS)
    await plane.revoke('p1', device('d1'), { reason: 'cessationOfOperation' })
    t.equal(await plane.registry.newestNotBefore(), await of(first.fingerprint), 'whatever else happened')
    const second = await plane.enroll('d2')
    t.equal(await plane.registry.newestNotBefore(), await of(second.fingerprint))
  })

  await t.test('a key is for one device only, whatever became of its certificate', async (t) => {
    const plane = await fresh(t)
    await plane.enroll('d1')
    await plane.token('t2')
    const foreign = { code: 'csr_key', evidence: { why: 'it belongs to another device' } }
    await t.rejects(plane.begin('t2', 'd2', 'key of d1'), foreign)
    await plane.revoke('p1', device('d1'), { reason: 'cessationOfOperation' })
    await t.rejects(plane.begin('t2', 'd2', 'key of d1'), foreign)
    t.match(await plane.registry.findToken(hex('t2'), plane.now()), { used: 0 }, 'no use is spent')
  })

  await t.test('a revocation for keyCompromise puts every key of its certificates on the list', async (t) => {
    const plane = await fresh(t)
    const first = await plane.enroll('d1')
    await plane.renew(first.fingerprint, 'k2')
    await plane.enroll('d2')
    await plane.revoke('p1', device('d1'), { reason: 'keyCompromise' })
    await plane.revoke('p2', device('d2'), { reason: 'superseded' })
    const { keys, next } = await plane.registry.listCompromisedKeys({ limit: 10 })
    t.strictSame(new Set(keys.map(({ key }) => key)), new Set([hex('key of d1'), hex('k2')]))
    t.equal(next, null)
    t.ok(keys.every(({ source }) => source === 'revocation'))
    await plane.reissue('r1', 'd1')
    await t.rejects(plane.begin('r1', 'd1', 'k2'), COMPROMISED)
    t.ok(await plane.begin('r1', 'd1', 'k3'))
  })

  await t.test('nothing is certified for a key on the list, and nothing renewed with it', async (t) => {
    const plane = await fresh(t)
    const first = await plane.enroll('d1')
    const other = await plane.enroll('d2')
    const list = [hex('key of d1'), hex('never seen')]
    t.strictSame(await plane.registry.compromiseKeys(list, plane.act()), {
      added: 2,
      known: 0,
      devices: ['d1'],
    })
    t.strictSame(await plane.registry.compromiseKeys(list, plane.act()), {
      added: 0,
      known: 2,
      devices: ['d1'],
    })
    await plane.token('t3')
    await t.rejects(plane.begin('t3', 'd3', 'never seen'), COMPROMISED)
    await t.rejects(plane.begin('token of d1', 'd1', 'key of d1'), COMPROMISED, 'not even the same again')
    const renewal = (of: { fingerprint: string }, key: string) =>
      plane.registry.beginRenewal(plane.renewal(of.fingerprint, key))
    await t.rejects(renewal(first, 'k2'), COMPROMISED, 'whoever has the key could ask')
    await t.rejects(renewal(other, 'never seen'), COMPROMISED)
    await t.rejects(plane.service('s1', 'never seen'), COMPROMISED)
    const audit = await plane.registry.listAudit(0, 100)
    t.equal(
      audit.filter(({ action }) => action === 'key.compromise').length,
      1,
      'what changes nothing is no entry',
    )
  })

  await t.test('the list comes in pages', async (t) => {
    const { registry, act } = await fresh(t)
    await registry.compromiseKeys(
      ['a', 'b', 'c'].map((text) => hex(text)),
      act(),
    )
    const page = await registry.listCompromisedKeys({ limit: 2 })
    t.equal(page.keys.length, 2)
    const last = await registry.listCompromisedKeys({ after: page.next ?? '', limit: 2 })
    t.equal(last.keys.length, 1)
    t.equal(last.next, null)
  })
}
