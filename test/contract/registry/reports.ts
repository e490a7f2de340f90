import type { Test } from 'tap'
import type { Report } from '#shared/feed'
import { DAY_MS, device, HOUR_MS, hex } from '../../support/registry-plane.ts'
import type { Fresh } from '../registry.ts'

export async function reportsContract(t: Test, fresh: Fresh): Promise<void> {
  await t.test(
    'the first sighting makes a certificate active, and starts the overlap of those before it',
    async (t) => {
      const plane = await fresh(t)
      await plane.broker()
      const first = await plane.enroll('d1')
      await plane.report([plane.connected(first)])
      t.match(await plane.certificate(first.fingerprint), {
        state: 'active',
        firstSeenAt: plane.now(),
        supersededFrom: null,
      })
      const second = await plane.renew(first.fingerprint, 'k2')
      const third = await plane.renew(first.fingerprint, 'k3')
      const { position } = await plane.registry.cursor()
      plane.pass(HOUR_MS)
      await plane.report([plane.connected(second)])
      const end = plane.now() + DAY_MS
      t.match(await plane.certificate(first.fingerprint), { state: 'active', supersededFrom: end })
      t.match(
        await plane.certificate(third.fingerprint),
        { state: 'issued', supersededFrom: null },
        'an unseen successor',
      )
      t.match(await plane.registry.changesAfter(position, 10), [
        { change: { certificate: { serial: second.serial, state: 'active' } } },
        { change: { certificate: { serial: first.serial, supersededFrom: end } } },
      ])
      plane.pass(HOUR_MS)
      await plane.report([plane.connected(third), plane.connected(second)])
      t.match(
        await plane.certificate(first.fingerprint),
        { supersededFrom: end },
        'an overlap that began is not moved',
      )
      t.match(await plane.certificate(second.fingerprint), { supersededFrom: plane.now() + DAY_MS })
    },
  )

  await t.test(
    'a sighting counts when it was, not in the future, and not before there was a certificate',
    async (t) => {
      const plane = await fresh(t)
      await plane.broker()
      const [early, late, ahead] = await Promise.all(['early', 'late', 'ahead'].map((id) => plane.enroll(id)))
      if (!early || !late || !ahead) throw new Error('three were enrolled')
      const made = plane.now()
      plane.pass(DAY_MS)
      const at = (of: typeof early, time: number) => ({ ...plane.connected(of), at: time }) as Report
      await plane.report([at(early, 0), at(late, made + HOUR_MS), at(ahead, plane.now() + DAY_MS)])
      t.match(await plane.certificate(early.fingerprint), { firstSeenAt: made })
      t.match(await plane.certificate(late.fingerprint), { firstSeenAt: made + HOUR_MS })
      t.match(await plane.certificate(ahead.fingerprint), { firstSeenAt: plane.now() })
    },
  )

  await t.test('a certificate whose overlap is over is superseded by a change', async (t) => {
    const plane = await fresh(t)
    await plane.broker()
    for (const id of ['d1', 'd2', 'd3']) {
      const { fingerprint } = await plane.enroll(id)
      await plane.report([plane.connected(await plane.renew(fingerprint, `k2 ${id}`))])
    }
    const { position } = await plane.registry.cursor()
    plane.pass(DAY_MS - 1)
    t.equal(await plane.registry.supersedeDue(plane.now(), 10), 0)
    plane.pass(1)
    t.equal(await plane.registry.supersedeDue(plane.now(), 2), 2, 'in slices')
    t.equal(await plane.registry.supersedeDue(plane.now(), 2), 1)
    t.equal(await plane.registry.supersedeDue(plane.now(), 2), 0)
    const states = (await plane.registry.changesAfter(position, 10)).map(({ change }) => change)
    t.match(states, Array(3).fill({ kind: 'certificate', certificate: { state: 'superseded' } }))
  })

  await t.test('the sighting of a revoked certificate ends nobody', async (t) => {
    const plane = await fresh(t)
    await plane.broker()
    const first = await plane.enroll('d1')
    await plane.renew(first.fingerprint, 'k2')
    const [second] = (await plane.registry.showDevice('d1', plane.now())).certificates
    await plane.revoke('p1', device('d1'))
    await plane.reissue('r1', 'd1')
    const back = await plane.enrollWith('r1', 'd1', 'k3')
    const { position } = await plane.registry.cursor()
    await plane.report([plane.connected({ fingerprint: String(second?.fingerprint), device: 'd1' })])
    t.equal((await plane.registry.cursor()).position, position)
    t.match(await plane.certificate(back.fingerprint), { supersededFrom: null })
  })

  await t.test('a batch that was taken before changes nothing', async (t) => {
    const plane = await fresh(t)
    await plane.broker()
    const first = await plane.enroll('d1')
    const batch = plane.batch({ sequence: 1, sessions: 7, reports: [plane.connected(first)] })
    const take = () => plane.registry.applyReports('b1', batch, DAY_MS, plane.now())
    await take()
    await plane.report([plane.disconnected(first)], { sequence: 2, sessions: 0 })
    const before = [await plane.registry.cursor(), await plane.registry.listBrokers(plane.now())]
    await take()
    t.strictSame([await plane.registry.cursor(), await plane.registry.listBrokers(plane.now())], before)
    t.match(await plane.registry.showDevice('d1', plane.now()), { online: false })
  })

  await t.test('a device is online while a broker has a connection of it', async (t) => {
    const plane = await fresh(t)
    await plane.broker('b1')
    await plane.broker('b2')
    const first = await plane.enroll('d1')
    const online = async () => (await plane.registry.showDevice('d1', plane.now())).online
    await plane.report([plane.connected(first, 'c1')], { broker: 'b1' })
    await plane.report([plane.connected(first, 'c1')], { broker: 'b2' })
    t.equal((await plane.registry.counts(plane.now())).online, 1, 'one device, however many connections')
    await plane.report([plane.disconnected(first, 'c1')], { broker: 'b1' })
    t.equal(await online(), true)
    plane.pass(1000)
    await plane.report([plane.disconnected(first, 'c1')], { broker: 'b2' })
    t.equal(await online(), false)
    t.match(await plane.registry.showDevice('d1', plane.now()), { lastSeenAt: plane.now() })
  })

  await t.test('a broker that starts again has none of its old connections', async (t) => {
    const plane = await fresh(t)
    await plane.broker()
    const first = await plane.enroll('d1')
    const second = await plane.enroll('d2')
    await plane.report([plane.connected(first)], { boot: 'boot-1', sequence: 1 })
    await plane.report([plane.connected(second)], { boot: 'boot-2', sequence: 1, sessions: 1 })
    t.match(await plane.registry.showDevice('d1', plane.now()), { online: false })
    t.match(await plane.registry.showDevice('d2', plane.now()), { online: true })
    const third = await plane.enroll('d3')
    await plane.report([plane.connected(third)], { boot: 'boot-1', sequence: 2, sessions: 9 })
    t.match(
      await plane.registry.showDevice('d3', plane.now()),
      { online: false, lastSeenAt: plane.now() },
      'a late report',
    )
    t.match(await plane.registry.listBrokers(plane.now()), [{ sessions: 1 }])
  })

  await t.test('refusals are kept: the last twenty of a device, newest first', async (t) => {
    const plane = await fresh(t)
    await plane.broker()
    await plane.enroll('d1')
    const refused = (of: Partial<Extract<Report, { type: 'refused' }>>): Report => ({
      type: 'refused',
      at: plane.now(),
      code: 'R-HELD',
      evidence: {},
      device: null,
      fingerprint: null,
      address: '192.0.2.9',
      ...of,
    })
    for (let i = 0; i < 25; i++) {
      plane.pass(1)
      await plane.report([refused({ device: 'd1', evidence: { i }, fingerprint: hex('f') })])
    }
    const kept = await plane.registry.refusalsOf({ device: 'd1' })
    t.equal(kept.length, 20)
    t.match(kept[0], { evidence: { i: 24 }, by: 'b1', code: 'R-HELD' })
    t.equal((await plane.registry.counts(plane.now())).refusedLastHour, 25, 'all are counted')
    plane.pass(2 * HOUR_MS)
    t.equal((await plane.registry.counts(plane.now())).refusedLastHour, 0)
    t.match(await plane.registry.refusalsOf({ fingerprint: hex('f') }), [{ device: 'd1' }])
  })

  await t.test('strangers share one bounded place, whatever they call themselves', async (t) => {
    const plane = await fresh(t)
    await plane.broker()
    await plane.enroll('d1')
    const stranger = (i: number): Report => ({
      type: 'refused',
      at: plane.now(),
      code: 'R-UNRECORDED',
      evidence: {},
      device: `claimed-${i}`,
      fingerprint: null,
      address: i === 0 ? '192.0.2.1' : `192.0.2.${2 + (i % 50)}`,
    })
    await plane.registry.recordRefusal({
      now: plane.now(),
      code: 'token_spent',
      evidence: {},
      device: 'd1',
      fingerprint: null,
      address: '192.0.2.1',
    })
    for (let from = 0; from < 1500; from += 500) {
      await plane.report(Array.from({ length: 500 }, (_, i) => stranger(from + i)))
    }
    t.equal((await plane.registry.refusalsOf({ device: 'claimed-0' })).length, 0, 'the oldest has gone')
    t.match(await plane.registry.refusalsOf({ device: 'claimed-1499' }), [{ code: 'R-UNRECORDED' }])
    t.match(await plane.registry.refusalsOf({ address: '192.0.2.1' }), [
      { code: 'R-TOKEN-SPENT', device: 'd1' },
    ])
    t.equal((await plane.registry.refusalsOf({ address: '192.0.2.2' })).length, 20)
  })

  await t.test(
    'a clone alarm is kept of each device, told once, and due for a hold where its fleet says so',
    async (t) => {
      const plane = await fresh(t)
      await plane.broker()
      const [d1, d2] = [await plane.enroll('d1'), await plane.enroll('d2')]
      const alarm = ({ device, fingerprint }: typeof d1, at = plane.now()): Report => ({
        type: 'refused',
        at,
        code: 'R-CLONE',
        evidence: { address: '192.0.2.1', otherAddress: '192.0.2.2', takeovers: 3, withinS: 60 },
        device,
        fingerprint,
        address: '192.0.2.1',
      })
      const { registry } = plane
      const ofDevice = (device: string) => registry.cloneAlarms({ since: 0, limit: 9, device })
      const first = plane.now()
      await plane.report([alarm(d1)])
      plane.pass(HOUR_MS)
      await plane.report([alarm(d1), alarm(d2), { ...alarm(d1), device: 'nobody' } as Report])
      const told = {
        fleet: 'default',
        address: '192.0.2.1',
        otherAddress: '192.0.2.2',
        broker: 'b1',
        plan: null,
      }
      t.strictSame(await registry.cloneAlarms({ since: first, limit: 9 }), [
        { ...told, device: 'd2', alarms: 1, firstAt: plane.now(), lastAt: plane.now() },
        { ...told, device: 'd1', alarms: 2, firstAt: first, lastAt: plane.now() },
      ])
      t.strictSame(await registry.cloneAlarms({ since: plane.now() + 1, limit: 9 }), [])
      t.match(await registry.openClones(0), [
        { device: 'd1', isTold: false, mayHold: false },
        { device: 'd2', isTold: false, mayHold: false },
      ])
      for (const id of ['d1', 'd1', 'd2']) await registry.tellClone(id, plane.act())
      t.strictSame(await registry.openClones(0), [])
      const audit = (await registry.listAudit(0, 1_000)).filter(({ action }) => action === 'clone.alarm')
      t.match(audit, [{ subject: 'device:d1' }, { subject: 'device:d2' }], 'once')

      t.strictSame(await registry.showQuarantine('default'), { fleet: 'default', clones: false })
      t.strictSame(await registry.setQuarantine('default', true, plane.act()), {
        fleet: 'default',
        clones: true,
      })
      t.match(await registry.openClones(plane.now() + 1), [], 'those of the past are not due')
      t.match(await registry.openClones(0), [
        { device: 'd1', mayHold: true },
        { device: 'd2', mayHold: true },
      ])
      plane.pass(HOUR_MS)
      await registry.cloneHeld('d1', 'p1', plane.act())
      await plane.report([alarm(d1, plane.now() - HOUR_MS)])
      t.match(
        await ofDevice('d1'),
        [{ plan: 'p1', alarms: 3 }],
        'what was seen before the hold is no reason for another',
      )
      plane.pass(HOUR_MS)
      await plane.report([alarm(d1)])
      t.match(await ofDevice('d1'), [{ plan: null, alarms: 4 }])
      await t.rejects(registry.setQuarantine('none', true, plane.act()), { code: 'not_found' })
      await t.rejects(registry.showQuarantine('none'), { code: 'not_found' })
    },
  )

  await t.test(
    'reports of a broker that is not known are refused, of a forgotten certificate dropped',
    async (t) => {
      const plane = await fresh(t)
      await t.rejects(plane.report([], { broker: 'none' }), { code: 'not_found' })
      await plane.broker()
      await plane.report([plane.connected({ fingerprint: hex('unknown'), device: 'd1' })])
      await plane.registry.forgetBroker('b1', plane.act())
      await t.rejects(plane.report([]), { code: 'not_found' })
    },
  )
}
