import type { Test } from 'tap'
import fc from '../../support/properties.ts'
import { deviceId, hex, type Plane } from '../../support/registry-plane.ts'
import type { Fresh } from '../registry.ts'

interface Row {
  readonly id: string
  readonly key?: string
  readonly attributes?: Record<string, string>
}

const importRows = (plane: Plane, rows: readonly Row[], of: { batch?: string; isRehearsal?: boolean } = {}) =>
  plane.registry.importDevices({
    ...plane.act(),
    batch: of.batch ?? 'lab',
    isRehearsal: of.isRehearsal ?? false,
    rows: rows.map(({ id, key, attributes = {} }) => ({
      id: deviceId(id),
      spki: key === undefined ? null : hex(key),
      attributes,
    })),
  })
const devicesOf = async (plane: Plane) =>
  (await plane.registry.listDevices({ limit: 100, now: plane.now() })).devices.map(({ id }) => id)

export async function manifestContract(t: Test, fresh: Fresh): Promise<void> {
  await t.test('the devices of a manifest are expected, and enroll without approval', async (t) => {
    const plane = await fresh(t)
    await plane.token('t1', { approval: true, uses: 9 })
    const colour = { colour: 'red' }
    const reply = await importRows(plane, [{ id: 'd1', key: 'k1', attributes: colour }, { id: 'd2' }])
    t.match(reply, {
      applied: true,
      rows: [
        { row: 1, verdict: 'added' },
        { row: 2, id: 'd2', verdict: 'added' },
      ],
    })
    const shown = await plane.registry.showDevice('d1', plane.now())
    t.match(shown, { state: 'expected', batch: 'lab', fleet: 'default' })
    t.strictSame(shown.attributes, colour)
    await t.rejects(plane.begin('t1', 'd1', 'other'), { code: 'csr_key' }, 'another key')
    t.match(await plane.enrollWith('t1', 'd1', 'k1'), { device: 'd1' })
    t.match(await plane.enrollWith('t1', 'd2', 'any'), { device: 'd2' })
    t.match(await plane.apply('t1', 'd3', 'k3'), { waitsFor: 'approval' }, 'who is in no manifest waits')
    const entries = (await plane.registry.listAudit(0, 100)).filter(
      ({ action }) => action === 'device.import',
    )
    t.match(entries, [{ subject: 'batch:lab devices:2', by: 'operator:test' }])
  })

  await t.test('a rehearsal judges like the import itself and leaves nothing', async (t) => {
    const plane = await fresh(t)
    await plane.enroll('old', 'elsewhere')
    await plane.token('t1')
    await importRows(plane, [{ id: 'here', key: 'taken' }])
    const before = await plane.registry.listAudit(0, 100)
    const rows = [
      { id: 'd1' },
      { id: 'old' },
      { id: 'd1', key: 'k' },
      { id: 'd2', key: 'taken' },
      { id: 'd3', key: 'key of old' },
    ]
    const rehearsed = await importRows(plane, rows, { isRehearsal: true })
    t.strictSame(
      rehearsed.rows.map(({ verdict, code }) => code ?? verdict),
      ['added', 'conflict', 'conflict', 'csr_key', 'csr_key'],
    )
    t.strictSame(await importRows(plane, rows), rehearsed, 'and with a refused row nothing is imported')
    t.equal(rehearsed.applied, false)
    t.strictSame(await devicesOf(plane), ['here', 'old'])
    t.strictSame(await plane.registry.listAudit(0, 100), before)
    await t.rejects(importRows(plane, rows, { batch: 'none' }), { code: 'not_found' })
  })

  await t.test(
    'a manifest can be imported again: what is in is known, what differs is refused',
    async (t) => {
      const plane = await fresh(t)
      await plane.token('t1')
      const rows = [{ id: 'd1', key: 'k1', attributes: { a: '1' } }, { id: 'd2' }]
      await importRows(plane, rows)
      const again = await importRows(plane, [...rows, { id: 'd3' }])
      t.strictSame(
        again.rows.map(({ verdict }) => verdict),
        ['known', 'known', 'added'],
      )
      for (const other of [
        { id: 'd1', key: 'k1' },
        { id: 'd1', key: 'k2', attributes: { a: '1' } },
        { id: 'd2', attributes: { a: '1' } },
      ]) {
        t.match(await importRows(plane, [other]), { applied: false, rows: [{ code: 'conflict' }] })
      }
      await plane.enrollWith('t1', 'd1', 'k1')
      t.match(
        await importRows(plane, rows),
        { applied: false, rows: [{ code: 'conflict' }] },
        'after it enrolled',
      )
    },
  )

  await t.test('whatever the rows, all of them are in or none, and each is judged', async (t) => {
    const plane = await fresh(t)
    await plane.token('t1')
    const id = fc.constantFrom('a', 'b', 'c', 'd', 'e')
    const row = fc.record({ id, key: fc.constantFrom('k1', 'k2', 'k3') }, { requiredKeys: ['id'] })
    await fc.assert(
      fc.asyncProperty(
        fc.array(row, { minLength: 1, maxLength: 4 }),
        fc.boolean(),
        async (rows, isRehearsal) => {
          const before = await devicesOf(plane)
          const reply = await importRows(plane, rows, { isRehearsal })
          const added = reply.rows.filter(({ verdict }) => verdict === 'added')
          const after = await devicesOf(plane)
          t.equal(reply.rows.length, rows.length)
          t.equal(after.length, before.length + (reply.applied ? added.length : 0))
          const isWell = reply.rows.every(({ verdict }) => verdict !== 'refused')
          t.equal(reply.applied, isWell && !isRehearsal)
        },
      ),
      { numRuns: 40 },
    )
  })
}
