import type { Test } from 'tap'
import fc from '../../support/properties.ts'
import { DAY_MS, deviceId, hex, type Plane } from '../../support/registry-plane.ts'
import type { Fresh } from '../registry.ts'

const reportOf = (plane: Plane, batch = 'lab') => plane.registry.batchReport(batch, plane.now())
const attempt = (plane: Plane, token: string, code: 'token_spent' | 'token_expired' | 'token_batch') =>
  plane.registry.recordRefusal({
    now: plane.now(),
    code,
    evidence: { token },
    device: null,
    fingerprint: null,
    address: '192.0.2.1',
  })
const NONE = { total: 0, open: 0, spent: 0, expired: 0, cancelled: 0 }
const parts = ({ total: _, ...counts }: Record<string, number>) =>
  Object.values(counts).reduce((total, count) => total + count, 0)

export async function batchReportContract(t: Test, fresh: Fresh): Promise<void> {
  await t.test('a report says what became of every use of a batch, and of its devices', async (t) => {
    const plane = await fresh(t)
    await t.rejects(reportOf(plane), { code: 'not_found' })
    await plane.token('open', { uses: 5 })
    await plane.token('spent')
    await plane.token('expired', { uses: 3, expiresAt: plane.now() + DAY_MS })
    await plane.token('cancelled', { uses: 7 })
    await plane.token('asks', { uses: 2, approval: true })
    await plane.token('foreign', { uses: 9, batch: 'elsewhere' })
    await plane.enrollWith('open', 'd1', 'k1')
    await plane.enrollWith('spent', 'd2', 'k2')
    await plane.enrollWith('expired', 'd3', 'k3')
    await plane.apply('asks', 'd4', 'k4')
    await plane.registry.addDevice({ ...plane.act(), id: deviceId('d5'), batch: 'lab', spki: hex('k5') })
    await plane.registry.cancelToken('cancelled', plane.act())
    await plane.registry.retireDevice('d3', plane.act())
    plane.pass(2 * DAY_MS)
    t.strictSame(await reportOf(plane), {
      batch: 'lab',
      fleet: 'default',
      tokens: { total: 5, open: 2, spent: 1, expired: 1, cancelled: 1 },
      claims: NONE,
      manufacturers: NONE,
      uses: { total: 18, enrolled: 3, reserved: 1, open: 5, expired: 2, cancelled: 7 },
      devices: { total: 5, expected: 1, pending: 1, enrolled: 2, retired: 1 },
      alarms: [],
    })
  })

  await t.test('attempts on a token that is over are counted, each reason for itself', async (t) => {
    const plane = await fresh(t)
    await plane.token('t1')
    await plane.token('t2')
    for (const token of ['t1', 't1', 't2', 'nobody']) await attempt(plane, token, 'token_spent')
    plane.pass(DAY_MS)
    await attempt(plane, 't1', 'token_spent')
    await attempt(plane, 't1', 'token_expired')
    await attempt(plane, 't1', 'token_batch')
    t.strictSame((await reportOf(plane)).alarms, [
      { batch: 'lab', kind: 'token', token: 't1', code: 'R-TOKEN-EXPIRED', attempts: 1, lastAt: plane.now() },
      { batch: 'lab', kind: 'token', token: 't1', code: 'R-TOKEN-SPENT', attempts: 3, lastAt: plane.now() },
      {
        batch: 'lab',
        kind: 'token',
        token: 't2',
        code: 'R-TOKEN-SPENT',
        attempts: 1,
        lastAt: plane.now() - DAY_MS,
      },
    ])
  })

  await t.test('whatever happens to a batch, its report adds up', async (t) => {
    const plane = await fresh(t)
    const tokens = ['first', 'asks']
    let named = 0
    const step = fc.record({
      kind: fc.constantFrom('token', 'ask', 'enroll', 'approve', 'reject', 'cancel', 'retire', 'pass'),
      token: fc.nat(),
      device: fc.constantFrom('d1', 'd2', 'd3', 'new'),
      uses: fc.integer({ min: 1, max: 3 }),
    })
    const act = async (one: { kind: string; token: number; device: string; uses: number }) => {
      const { kind, uses } = one
      const token = tokens[one.token % tokens.length] ?? 'first'
      const device = one.device === 'new' ? `n${++named}` : one.device
      const of = { id: device, spki: hex(device) }
      if (kind === 'token') {
        const approval = uses === 2
        const name = `t${++named}`
        tokens.push(name)
        await plane.token(name, { uses, approval, expiresAt: uses === 3 ? null : plane.now() + DAY_MS })
      }
      if (kind === 'ask') await plane.apply(token, device, device)
      if (kind === 'enroll') await plane.enrollWith(token, device, device)
      if (kind === 'approve') await plane.registry.approveDevice(of, plane.act())
      if (kind === 'reject') await plane.registry.rejectDevice(of, plane.act())
      if (kind === 'cancel') await plane.registry.cancelToken(token, plane.act())
      if (kind === 'retire') await plane.registry.retireDevice(device, plane.act())
      if (kind === 'pass') plane.pass(DAY_MS / 3)
    }
    await plane.token('first', { uses: 100 })
    await plane.token('asks', { uses: 100, approval: true })
    let [enrolled, reserved] = [0, 0]
    await fc.assert(
      fc.asyncProperty(fc.array(step, { minLength: 10, maxLength: 20 }), async (steps) => {
        for (const one of steps) await act(one).catch(() => {}) // most steps are refused in most states
        const { tokens: sums, uses, devices } = await reportOf(plane)
        for (const counts of [sums, uses, devices]) t.equal(parts(counts), counts.total)
        const listed = await plane.registry.listTokens({ batch: 'lab', now: plane.now() })
        t.equal(sums.total, listed.length)
        for (const state of ['open', 'spent', 'expired', 'cancelled'] as const) {
          t.equal(sums[state], listed.filter((token) => token.state === state).length)
        }
        t.equal(
          uses.total,
          listed.reduce((total, token) => total + token.uses, 0),
        )
        t.equal(
          uses.enrolled + uses.reserved,
          listed.reduce((total, token) => total + token.used, 0),
        )
        const page = await plane.registry.listDevices({ batch: 'lab', limit: 1000, now: plane.now() })
        t.equal(devices.total, page.devices.length)
        enrolled = Math.max(enrolled, uses.enrolled)
        reserved = Math.max(reserved, uses.reserved)
        t.equal(uses.enrolled, enrolled, 'what has enrolled stays so')
      }),
      { numRuns: 25, endOnFailure: true },
    )
    t.ok(enrolled > 0 && reserved > 0, 'some steps did something')
  })
}
