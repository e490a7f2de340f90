import type { Test } from 'tap'
import { DAY_MS, device, deviceId, HOUR_MS, type Plane } from '../../support/registry-plane.ts'
import type { Fresh } from '../registry.ts'

const LIFE_MS = 30 * DAY_MS

async function begin(
  plane: Plane,
  id: string,
  target: { scope: 'device' | 'batch' | 'fleet'; id: string } | string[],
) {
  const act = plane.act()
  const aim = Array.isArray(target) ? { devices: target.map(deviceId) } : target
  return plane.registry.beginRotation({ ...act, id, target: aim, overMs: DAY_MS })
}

/** Moves the windows in slices of two; how many slices it took. */
async function pace(plane: Plane, id: string) {
  for (let slices = 1; ; slices++) if (await plane.registry.paceRotation(id, 2, plane.act())) return slices
}

async function states(plane: Plane, id: string) {
  const members = await plane.registry.rotationMembers(id, { after: 0, limit: 100, now: plane.now() })
  return Object.fromEntries(members.map((member) => [member.device, member.state]))
}

export async function rotationsContract(t: Test, fresh: Fresh): Promise<void> {
  await t.test('a rotation spreads the windows of a batch over its time, in slices', async (t) => {
    const plane = await fresh(t)
    const inside = await Promise.all(['d1', 'd2', 'd3', 'd4', 'd5'].map((id) => plane.enroll(id)))
    const outside = await plane.enroll('other', 'elsewhere')
    await plane.service('s1', 'key of s1')
    plane.pass(HOUR_MS)
    const start = plane.now()
    t.match(await begin(plane, 'r1', { scope: 'batch', id: 'lab' }), { state: 'pacing', overMs: DAY_MS })
    t.strictSame(await plane.registry.pacingRotations(), ['r1'])
    const { position } = await plane.registry.cursor()
    t.equal(await pace(plane, 'r1'), 3)
    t.strictSame(await plane.registry.pacingRotations(), [])
    t.equal(await plane.registry.paceRotation('r1', 2, plane.act()), true, 'once more is no harm')
    const changes = await plane.registry.changesAfter(position, 100)
    t.equal(changes.length, 5, 'one change a certificate')
    const windows = new Set<number>()
    for (const { fingerprint } of inside) {
      const { renewAfter, renewBefore } = await plane.certificate(fingerprint)
      t.ok(renewAfter >= start && renewBefore <= start + DAY_MS && renewAfter < renewBefore)
      const told = changes
        .map(({ change }) => change)
        .find((one) => 'certificate' in one && one.certificate.fingerprint === fingerprint)
      t.match(told, { kind: 'certificate', certificate: { renewAfter, renewBefore } })
      windows.add(renewAfter)
    }
    t.equal(windows.size, 5)
    t.ok((await plane.certificate(outside.fingerprint)).renewAfter > start + LIFE_MS / 2, 'others stay')
    const audit = (await plane.registry.listAudit(0, 100)).map(({ action }) => action)
    t.equal(audit.filter((action) => action === 'rotation.pace').length, 2)
    t.equal(audit.filter((action) => action === 'rotation.paced').length, 1)
  })

  await t.test('progress tells who has rotated, waits, is late or gone', async (t) => {
    const plane = await fresh(t)
    await plane.broker()
    const [done] = await Promise.all(['done', 'late', 'gone', 'retired'].map((id) => plane.enroll(id)))
    if (!done) throw new Error('four were enrolled')
    plane.pass(HOUR_MS)
    await begin(plane, 'r1', ['done', 'late', 'gone', 'retired'])
    await pace(plane, 'r1')
    const all = (state: string) => ({ done: state, late: state, gone: state, retired: state })
    t.strictSame(await states(plane, 'r1'), all('waiting'))
    const successor = await plane.renew(done.fingerprint, 'k2')
    t.strictSame(await states(plane, 'r1'), all('waiting'), 'issued is not yet seen')
    await plane.report([plane.connected(successor)])
    await plane.revoke('p1', device('gone'))
    await plane.registry.retireDevice('retired', plane.act())
    plane.pass(DAY_MS)
    t.strictSame(await states(plane, 'r1'), { done: 'rotated', late: 'late', gone: 'gone', retired: 'gone' })
    t.ok(
      (await plane.certificate(successor.fingerprint)).renewAfter > plane.now() + LIFE_MS / 2,
      'the next is not moved',
    )
  })

  await t.test('a window is never moved to a later time, and a new certificate is left alone', async (t) => {
    const plane = await fresh(t)
    const due = await plane.enroll('due')
    const before = await plane.certificate(due.fingerprint)
    plane.pass(before.renewAfter + 1000 - plane.now())
    await begin(plane, 'r1', { scope: 'fleet', id: 'default' })
    plane.pass(1000)
    const late = await plane.enroll('enrolled-since')
    await pace(plane, 'r1')
    t.equal((await plane.certificate(due.fingerprint)).renewAfter, before.renewAfter)
    t.strictSame(Object.keys(await states(plane, 'r1')), ['due'])
    t.ok((await plane.certificate(late.fingerprint)).renewAfter > plane.now() + DAY_MS)
  })

  await t.test('what is not there is not rotated', async (t) => {
    const plane = await fresh(t)
    await plane.enroll('d1')
    for (const scope of ['device', 'batch', 'fleet'] as const) {
      await t.rejects(begin(plane, 'r1', { scope, id: 'none' }), { code: 'not_found' })
    }
    await t.rejects(begin(plane, 'r1', ['d1', 'none']), { code: 'not_found' })
    await t.rejects(plane.registry.showRotation('r1'), { code: 'not_found' })
    await t.rejects(plane.registry.paceRotation('r1', 1, plane.act()), { code: 'not_found' })
    await begin(plane, 'r2', { scope: 'device', id: 'd1' })
    await begin(plane, 'r3', ['d1'])
    t.strictSame(
      (await plane.registry.listRotations()).map(({ id }) => id),
      ['r3', 'r2'],
    )
  })
}
