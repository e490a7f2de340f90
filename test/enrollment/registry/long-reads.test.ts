import { join } from 'node:path'
import t, { type Test } from 'tap'
import { openSqliteForReading } from '#shared/sqlite'
import { openRegistry } from '../../../enrollment/registry/open.ts'
import fc from '../../support/properties.ts'
import { BEGIN, deviceId, type Plane, planeOf } from '../../support/registry-plane.ts'

async function open(t: Test, rowsInTurn?: number): Promise<Plane & { path: string }> {
  const path = join(t.testdir({}), 'registry.db')
  const options = { trustDomain: 'plane.test', epoch: 'epoch-1', now: BEGIN }
  const registry = await openRegistry(path, { ...options, ...(rowsInTurn && { rowsInTurn }) })
  t.teardown(() => registry.close())
  return Object.assign(planeOf(registry), { path })
}

/** Turns of the event loop until it is done. */
async function turnsOf(work: Promise<unknown>): Promise<number> {
  let [turns, isDone] = [0, false]
  const end = () => {
    isDone = true
  }
  work.then(end, end)
  while (!isDone) {
    await new Promise(setImmediate)
    turns += 1
  }
  return turns
}

const expected = (plane: Plane, count: number) => {
  const devices = Array.from({ length: count }, (_, index) => deviceId(`d${String(index).padStart(6, '0')}`))
  return plane.token('listed', { uses: count, devices })
}

t.test('what is asked about a whole fleet leaves room for other work', async (t) => {
  const plane = await open(t, 100)
  await expected(plane, 2_000)
  const { registry } = plane
  const questions = {
    status: () => registry.counts(plane.now()),
    'batch report': () => registry.batchReport('lab', plane.now()),
    'plan for a fleet': () => plane.propose('p1', { scope: 'fleet', id: 'default' }),
    'plan for a batch': () => plane.propose('p2', { scope: 'batch', id: 'lab' }),
    'list by state': () => registry.listDevices({ state: 'retired', limit: 100, now: plane.now() }),
    'list of a batch of another fleet': () =>
      registry.listDevices({ fleet: 'services', batch: 'lab', limit: 100, now: plane.now() }),
  }
  for (const [name, ask] of Object.entries(questions)) {
    const turns = await turnsOf(ask())
    t.ok(turns >= 20, `${name}: ${turns} turns for 20 slices`)
  }
  const all = () => registry.listDevices({ limit: 100, now: plane.now() })
  t.ok((await turnsOf(all())) < 5, 'a page that is full at once needs no more')
})

t.test('the usual number of rows in a turn bounds nothing that is counted', async (t) => {
  const plane = await open(t)
  await expected(plane, 20_000)
  const { registry } = plane
  t.match(await registry.counts(plane.now()), { expected: 20_000 })
  t.match(await registry.batchReport('lab', plane.now()), { devices: { total: 20_000, expected: 20_000 } })
  const { counts } = await plane.propose('p1', { scope: 'fleet', id: 'default' })
  t.match(counts, { devices: 20_000, byBatch: { lab: 20_000 } })
  await registry.retireDevice('d019999', plane.act())
  t.match(await registry.listDevices({ state: 'retired', limit: 100, now: plane.now() }), {
    devices: [{ id: 'd019999' }],
    next: null,
  })
})

t.test('a report is of one state, whatever is committed while it is read', async (t) => {
  const plane = await open(t, 1)
  await expected(plane, 60)
  const { registry } = plane
  let isDone = false
  const report = registry.batchReport('lab', plane.now()).finally(() => {
    isDone = true
  })
  let retired = 0
  for (; !isDone && retired < 60; retired++) {
    await registry.retireDevice(`d${String(59 - retired).padStart(6, '0')}`, plane.act())
  }
  t.ok(retired > 0, `${retired} were retired meanwhile`)
  t.match((await report).devices, { total: 60, expected: 60, retired: 0 })
})

/** What a plan covers, counted in one statement. */
const ORACLE = {
  fleet: 'd.fleet = @id',
  batch: 'd.batch = @id',
  device: 'd.id = @id',
  issuer: `d.row IN (SELECT c.device FROM certificates c WHERE c.issuer = @id AND c.state IN ('issued', 'active'))`,
} as const

const step = fc.record({
  what: fc.constantFrom('enroll', 'renew', 'retire', 'connect', 'revoke', 'token', 'elsewhere'),
  device: fc.integer({ min: 0, max: 4 }),
  batch: fc.constantFrom('lab', 'other'),
})

t.test('slices count what one statement counts, of every kind of scope', async (t) => {
  let walks = 0
  const walk = fc.asyncProperty(
    fc.array(step, { minLength: 10, maxLength: 20 }),
    fc.integer({ min: 1, max: 3 }),
    async (steps, rowsInTurn) => {
      walks += 1
      await t.test(`walk ${walks}`, async (t) => {
        const plane = await open(t, rowsInTurn)
        await plane.broker()
        for (const [index, { what, device, batch }] of steps.entries()) {
          await happen(plane, { what, id: `d${device}`, batch, index }).catch(() => undefined) // refused ones too
        }
        const db = openSqliteForReading(plane.path, 1_000)
        t.teardown(() => db.close())
        const states = db.prepare<[], { state: string; devices: number }>(
          `SELECT state, COUNT(*) AS devices FROM devices WHERE kind = 'device' GROUP BY state`,
        )
        const inStates = Object.fromEntries(states.all().map(({ state, devices }) => [state, devices]))
        t.match(await plane.registry.counts(plane.now()), inStates)
        const scopes = { fleet: 'default', batch: 'lab', device: 'd1', issuer: plane.issuer.id }
        for (const [scope, id] of Object.entries(scopes) as [keyof typeof ORACLE, string][]) {
          const wanted = db
            .prepare<[{ id: string }], { devices: number; online: number }>(
              `SELECT COUNT(*) AS devices, TOTAL(EXISTS (SELECT 1 FROM connections n WHERE n.device = d.row)) AS online
               FROM devices d WHERE ${ORACLE[scope]} AND d.state <> 'retired'`,
            )
            .get({ id })
          const found = await plane.propose(`p-${scope}`, { scope, id }).catch(() => null)
          if (found) t.match(found.counts, { ...wanted }, `${scope} ${id}`)
        }
      })
    },
  )
  await fc.assert(walk, { numRuns: 15 })
})

async function happen(
  plane: Plane,
  { what, id, batch, index }: { what: string; id: string; batch: string; index: number },
): Promise<unknown> {
  const newest = async () => {
    const { certificates } = await plane.registry.showDevice(id, plane.now())
    return certificates[0]?.fingerprint ?? 'none'
  }
  switch (what) {
    case 'renew':
      return plane.renew(await newest(), `key ${index}`)
    case 'retire':
      return plane.registry.retireDevice(id, plane.act())
    case 'connect':
      return plane.report([plane.connected({ fingerprint: await newest(), device: id }, `c${index}`)])
    case 'revoke':
      return plane.revoke(`r${index}`, { scope: 'device', id })
    case 'token':
      return plane.token(`t${index}`, { batch, uses: index })
    case 'elsewhere':
      return plane.service(`s${index}`, `key ${index}`)
    default:
      return plane.enroll(id, batch)
  }
}
