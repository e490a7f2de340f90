import type { Test } from 'tap'
import { DAY_MS, device, deviceId } from '../../support/registry-plane.ts'
import { replayed, snapshotOf } from '../../support/registry-replica.ts'
import type { Fresh } from '../registry.ts'

export async function streamContract(t: Test, fresh: Fresh): Promise<void> {
  await t.test('changes come in order, without a gap, and in pages', async (t) => {
    const plane = await fresh(t)
    for (let i = 0; i < 5; i++) await plane.enroll(`d${i}`)
    const { position } = await plane.registry.cursor()
    const all = await plane.registry.changesAfter(0, 1000)
    t.strictSame(
      all.map((change) => change.position),
      Array.from({ length: position }, (_, i) => i + 1),
    )
    t.ok(
      all.every(({ at }) => at === plane.now()),
      'each says when it was committed',
    )
    t.strictSame(await plane.registry.changesAfter(3, 4), all.slice(3, 7))
    t.strictSame(await plane.registry.changesAfter(position, 4), [])
  })

  await t.test('a listener hears of each commit that added changes, until it stops', async (t) => {
    const plane = await fresh(t)
    const heard: number[] = []
    const stop = plane.registry.onCommit((position) => heard.push(position))
    await plane.token('t1')
    t.strictSame(heard, [], 'a token is no change')
    await plane.enrollWith('t1', 'd1', 'k1')
    t.equal(heard.at(-1), (await plane.registry.cursor()).position)
    stop()
    const before = heard.length
    await plane.registry.retireDevice('d1', plane.act())
    t.equal(heard.length, before)
  })

  await t.test('a refused intent adds nothing to the stream', async (t) => {
    const plane = await fresh(t)
    await plane.enroll('d1')
    const before = await plane.registry.cursor()
    await t.rejects(plane.registry.createFleet({ id: 'default' }, plane.act()), { code: 'conflict' })
    await t.rejects(plane.registry.retireDevice('none', plane.act()), { code: 'not_found' })
    t.strictSame(await plane.registry.cursor(), before)
    t.equal(await plane.registry.verifyAudit(), null)
  })

  await t.test('a snapshot is what the changes from the beginning add up to', async (t) => {
    const plane = await fresh(t)
    await plane.broker()
    await plane.registry.recordIssuer({ id: plane.issuer.id, pem: 'PEM', trusted: true }, plane.act())
    await plane.registry.recordTrust({ version: 2, roots: ['R'], links: [] }, plane.act())
    const first = await plane.enroll('d1')
    await plane.report([plane.connected(await plane.renew(first.fingerprint, 'k2'))])
    await plane.enroll('d2')
    await plane.enroll('d3')
    await plane.service('reader', 'k')
    await plane.token('t1', { uses: 2, devices: ['e1', 'e2'].map(deviceId) })
    await plane.begin('t1', 'e1', 'reserved')
    await plane.registry.retireDevice('d3', plane.act())
    await plane.propose('proposed', device('d1', 'd2'))
    await plane.hold('held', { scope: 'fleet', id: 'services' })
    await plane.hold('undone', device('d1'))
    await plane.registry.undoPlan('undone', plane.act())
    await plane.revoke('final', device('d2'))
    const replica = (await replayed(plane.registry)).contents(plane.now())
    t.strictSame((await snapshotOf(plane.registry, plane.now())).contents(plane.now()), replica)
    t.strictSame(
      replica.devices.map(([id]) => id),
      ['d1', 'd2', 'd3', 'reader'],
      'no expected device',
    )
    t.strictSame(replica.members, [['proposed', ['d1', 'd2']]], 'members come before the hold')
    t.strictSame(
      replica.holds.map(([id]) => id),
      ['held'],
    )
  })

  await t.test('a snapshot leaves out certificates that have expired', async (t) => {
    const plane = await fresh(t)
    const { notAfter } = await plane.enroll('d1')
    t.equal((await snapshotOf(plane.registry, notAfter + 999)).certificates.size, 1)
    t.equal((await snapshotOf(plane.registry, notAfter + 1000)).certificates.size, 0)
  })

  await t.test('a snapshot is read at one cursor, while writers go on', async (t) => {
    const plane = await fresh(t)
    await plane.enroll('d1')
    const { cursor, changes } = await plane.registry.snapshot(plane.now())
    t.strictSame(cursor, await plane.registry.cursor())
    await plane.enroll('d2')
    const seen: string[] = []
    for await (const chunk of changes) {
      for (const change of chunk) if (change.kind === 'device') seen.push(change.device.id)
      await plane.registry.retireDevice('d2', plane.act()).catch(() => undefined)
    }
    t.strictSame(seen, ['d1'])
    const [next] = await plane.registry.changesAfter(cursor.position, 1)
    t.match(next, { change: { kind: 'device', device: { id: 'd2' } } }, 'and the stream goes on after it')
  })

  await t.test('a snapshot can be given up, before and while it is read', async (t) => {
    const plane = await fresh(t)
    for (let i = 0; i < 3; i++) {
      const { changes } = await plane.registry.snapshot(plane.now())
      if (i === 0) await changes[Symbol.asyncIterator]().return?.()
      for await (const chunk of changes) {
        t.ok(chunk)
        break
      }
    }
    const { changes } = await plane.registry.snapshot(plane.now())
    t.ok(changes, 'one that is never read ends with the registry')
  })

  await t.test('every change has one audit entry, and the chain is whole', async (t) => {
    const plane = await fresh(t)
    await plane.broker()
    const first = await plane.enroll('d1')
    await plane.report([plane.connected(first)])
    await plane.revoke('p1', device('d1'))
    plane.pass(DAY_MS)
    const entries = await plane.registry.listAudit(0, 1000)
    const covered = entries.flatMap(({ positions }) => (positions === null ? [] : [positions]))
    let next = 1
    for (const [from, to] of covered) {
      t.equal(from, next)
      next = to + 1
    }
    t.equal(next - 1, (await plane.registry.cursor()).position)
    t.equal(new Set(entries.map(({ hash }) => hash)).size, entries.length)
    t.strictSame(await plane.registry.listAudit(2, 2), entries.slice(2, 4))
    t.equal(await plane.registry.verifyAudit(), null)
    t.ok(
      entries.every(({ by }) => /^(plane|(operator|token|device|broker):.+)$/.test(by)),
      'each names its actor',
    )
  })
}
