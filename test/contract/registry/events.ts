import type { Test } from 'tap'
import type { Report } from '#shared/feed'
import { DAY_MS, device } from '../../support/registry-plane.ts'
import type { Fresh } from '../registry.ts'

/** The stream of events: in order, without gaps, each once, and bounded. */
export async function eventsContract(t: Test, fresh: Fresh): Promise<void> {
  await t.test('the life of a device is told in order, with serial, connection and reason', async (t) => {
    const plane = await fresh(t)
    await plane.broker()
    const first = await plane.enroll('d1')
    await plane.report([plane.connected(first, 'c1')])
    const next = await plane.renew(first.fingerprint, 'k2')
    await plane.report([plane.disconnected(first, 'c1'), plane.connected(next, 'c2')])
    await plane.hold('h1', { scope: 'batch', id: 'lab' })
    await plane.registry.undoPlan('h1', plane.act())
    await plane.revoke('r1', { scope: 'device', id: 'd1' })
    const events = await plane.registry.eventsAfter(0, { limit: 100 })
    t.strictSame(
      events.map(({ kind }) => kind),
      [
        ...['enrolled', 'broker-started', 'connected', 'rotated', 'disconnected', 'connected'],
        ...['held', 'released', 'held', 'revoked', 'revoked'],
      ],
    )
    t.strictSame(
      events.map(({ sequence }) => sequence),
      events.map((_, index) => index + 1),
      'sequences have no gaps',
    )
    t.match(events[2], {
      device: 'd1',
      deviceSequence: 2,
      serial: first.serial,
      broker: 'b1',
      boot: 'boot-1',
      batch: 1,
      connection: 'c1',
    })
    t.match(events[4], { reason: 'client', connection: 'c1' })
    t.match(events[6], { scope: 'batch:lab', device: null, plan: 'h1' })
    t.match(events[9], { device: 'd1', reason: 'unspecified' })
    t.strictSame(
      await plane.registry.eventsAfter(4, { limit: 2 }),
      events.slice(4, 6),
      'replayed from a cursor',
    )
    t.match(await plane.registry.eventBounds(), { oldest: 1, newest: events.length })
  })

  await t.test('a batch of reports that comes again tells nothing again', async (t) => {
    const plane = await fresh(t)
    await plane.broker()
    const first = await plane.enroll('d1')
    const batch = plane.batch({ reports: [plane.connected(first), plane.disconnected(first)] })
    for (let i = 0; i < 3; i++) await plane.registry.applyReports('b1', batch, DAY_MS, plane.now())
    const kinds = (await plane.registry.eventsAfter(0, { limit: 100 })).map(({ kind }) => kind)
    t.strictSame(kinds, ['enrolled', 'broker-started', 'connected', 'disconnected'])
  })

  await t.test(
    'the timeline of a device has what befell its batch and its plans, and nothing of others',
    async (t) => {
      const plane = await fresh(t)
      await plane.enroll('d1')
      await plane.enroll('d2', 'other')
      await plane.hold('h1', { scope: 'batch', id: 'lab' })
      await plane.hold('h2', device('d1'))
      await plane.hold('h3', { scope: 'batch', id: 'other' })
      const timeline = await plane.registry.timelineOf('d1', { limit: 10 })
      t.strictSame(
        timeline.map(({ kind, plan }) => plan ?? kind),
        ['enrolled', 'h1', 'h2'],
      )
      const [, middle, last] = timeline
      t.strictSame(await plane.registry.timelineOf('d1', { limit: 1, before: last?.sequence ?? 0 }), [middle])
      t.strictSame(await plane.registry.eventsAfter(0, { limit: 10, device: 'd1' }), timeline)
      await t.rejects(plane.registry.timelineOf('d9', { limit: 10 }), { code: 'not_found' })
    },
  )

  await t.test(
    'a device that is refused over and over is an event a minute, and a stranger none',
    async (t) => {
      const plane = await fresh(t)
      await plane.broker()
      await plane.enroll('d1')
      const refused = (device: string | null): Report => ({
        ...{ type: 'refused', at: plane.now(), code: 'R-HELD', evidence: {} },
        ...{ device, fingerprint: null, address: '192.0.2.1' },
      })
      const count = async () =>
        (await plane.registry.eventsAfter(0, { limit: 1_000 })).filter(({ kind }) => kind === 'refused')
          .length
      await plane.report(Array.from({ length: 200 }, () => refused('d1')))
      await plane.report(Array.from({ length: 200 }, () => refused(null)))
      await plane.report(Array.from({ length: 200 }, () => refused('never-enrolled')))
      t.equal(await count(), 1)
      plane.pass(60_000)
      await plane.report([refused('d1'), refused('d1')])
      t.equal(await count(), 2)
    },
  )

  await t.test(
    'of 20 000 refusals twenty a device and a stranger stay, and no stranger hides another',
    async (t) => {
      const plane = await fresh(t)
      await plane.broker()
      await plane.enroll('d1')
      const refused = (of: { device?: string; address: string; fingerprint?: string }): Report => ({
        ...{ type: 'refused', at: plane.now(), code: 'R-UNKNOWN-CA', evidence: {} },
        ...{ device: null, fingerprint: null, ...of },
      })
      const { registry } = plane
      const kept = async (subject: Parameters<typeof registry.refusalsOf>[0]) =>
        (await registry.refusalsOf(subject)).length
      await plane.report([refused({ address: '192.0.2.7', fingerprint: 'a7' })])
      for (let batch = 0; batch < 20; batch++) {
        const flood = Array.from({ length: 998 }, (_, i) =>
          refused({
            address: '198.51.100.1',
            fingerprint: (batch * 1_000 + i).toString(16).padStart(8, '0'),
          }),
        )
        await plane.report([...flood, refused({ device: 'd1', address: '203.0.113.1' })])
        await plane.report([refused({ device: 'd1', address: '203.0.113.1' })])
      }
      t.equal(await kept({ device: 'd1' }), 20)
      t.equal(await kept({ address: '198.51.100.1' }), 20)
      t.equal(await kept({ fingerprint: '00000000' }), 0, 'the oldest of the flood went first')
      t.equal(await kept({ address: '192.0.2.7' }), 1, 'who came before the flood is still there')
      t.equal(await kept({ fingerprint: 'a7' }), 1)
      const addresses = Array.from({ length: 999 }, (_, i) =>
        refused({ address: `2001:db8::${i.toString(16)}` }),
      )
      await plane.report(addresses)
      await plane.report(
        addresses.map((one) => ({ ...one, address: `${'address' in one ? one.address : ''}:1` })),
      )
      t.equal(await kept({ address: '192.0.2.7' }), 0, 'a thousand of all strangers together')
      t.equal(await kept({ device: 'd1' }), 20, 'and no device is touched')
    },
  )

  await t.test('what is rolled back is no event, and takes no sequence', async (t) => {
    const plane = await fresh(t)
    await plane.enroll('d1')
    await t.rejects(plane.begin('no such token', 'd2', 'k2'))
    await plane.enroll('d3')
    const events = await plane.registry.eventsAfter(0, { limit: 10 })
    t.strictSame(
      events.map(({ sequence, device }) => [sequence, device]),
      [
        [1, 'd1'],
        [2, 'd3'],
      ],
    )
  })
}
