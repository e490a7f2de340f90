import {
  copyFileSync,
  mkdtempSync,
  readdirSync,
  readFileSync,
  rmSync,
  statSync,
  writeFileSync,
} from 'node:fs'
import { basename, dirname, join } from 'node:path'
import Database from 'better-sqlite3'
import t, { type Test } from 'tap'
import type { Change, HoldRecord } from '#shared/feed'
import { openSqlite } from '#shared/sqlite'
import { LastHeard } from '../../broker/replica/last-heard.ts'
import { openReplica, type PositionedChange, type Replica } from '../../broker/replica/replica.ts'
import { MIGRATIONS } from '../../broker/replica/replica-schema.ts'
import {
  certificateChange,
  deviceChange,
  fingerprintOf,
  fleetChange,
  holdChange,
  issuerChange,
  membersChange,
  smallRegistry,
} from '../support/feed-changes.ts'
import fc from '../support/properties.ts'
import { countStates, stateFileOf } from '../support/state-files.ts'

function directory(t: Test): string {
  return mkdtempSync(join(t.testdir(), 'replica-'))
}

/** A replica in a directory of its own, closed with the test. */
function replicaOf(t: Test, path = join(directory(t), 'broker.db')): Replica {
  const replica = openReplica(path)
  t.teardown(() => replica.close())
  return replica
}

function from(position: number, changes: readonly Change[]): PositionedChange[] {
  return changes.map((change, index) => ({ type: 'change', position: position + index, at: 0, change }))
}

async function load(replica: Replica, changes: readonly Change[], position = 100, epoch = 'e1') {
  replica.beginSnapshot()
  replica.stage(from(position, changes))
  await replica.finishSnapshot({ epoch, position })
  replica.endSnapshot()
}

const lamp = fingerprintOf('lamp')

t.test(
  'a certificate is known with its device, fleet and hold once the registry has told of it',
  async (t) => {
    const replica = replicaOf(t)
    t.equal(replica.record(lamp), null)
    t.equal(replica.cursor(), null)
    await load(replica, smallRegistry())
    t.match(replica.record(lamp), {
      device: { id: 'lamp', state: 'active' },
      fleet: { id: 'default' },
      hold: null,
    })
    t.same(replica.cursor(), { epoch: 'e1', position: 100 })
  },
)

t.test('a hold on any scope is found from the certificate, and its end leaves the others', async (t) => {
  const scopes: HoldRecord['scope'][] = [
    { kind: 'device', id: 'lamp' },
    { kind: 'batch', id: 'b1' },
    { kind: 'fleet', id: 'default' },
    { kind: 'issuer', id: 'aa' },
    { kind: 'plan', id: 'h4' },
  ]
  const replica = replicaOf(t)
  await load(replica, [...smallRegistry(['lamp', 'door']), deviceChange('lamp', { batch: 'b1' })])
  replica.apply(from(101, [membersChange('h4', ['lamp'])]))
  t.equal(replica.record(lamp)?.hold, null, 'members alone hold nobody')
  for (const [index, scope] of scopes.entries()) {
    replica.apply(from(200 + index, [holdChange(`h${index}`, scope)]))
    t.ok(replica.record(lamp)?.hold, `held by its ${scope.kind}`)
  }
  for (const [index, scope] of scopes.entries()) {
    t.ok(replica.record(lamp)?.hold, 'still held by those that are left')
    replica.apply(from(300 + index, [holdChange(`h${index}`, scope, 'ended')]))
  }
  t.equal(replica.record(lamp)?.hold, null)
  t.equal(replica.record(fingerprintOf('door'))?.hold, null)
  while (replica.sweep());
  t.equal(replica.isMember('h4', 'lamp'), false, 'members of an ended hold are swept')
})

t.test('a certificate of an issuer that is not trusted, or of an unknown fleet, is not known', async (t) => {
  const replica = replicaOf(t)
  await load(replica, smallRegistry())
  replica.apply(from(101, [issuerChange('aa', { trusted: false })]))
  t.equal(replica.record(lamp), null)
  replica.apply(from(102, [issuerChange(), deviceChange('lamp', { fleet: 'nowhere' })]))
  t.equal(replica.record(lamp), null)
})

t.test('what was read before a change is read again after it', async (t) => {
  const replica = replicaOf(t)
  await load(replica, smallRegistry())
  const read = () => [replica.record(lamp)?.device.fleet ?? null, replica.trust()?.version ?? null]
  t.strictSame(read(), ['default', null])
  const trustChange = (version: number): Change => ({
    kind: 'trust',
    trust: { version, roots: ['a root'], links: [] },
  })
  replica.apply(from(101, [fleetChange('other'), deviceChange('lamp', { fleet: 'other' }), trustChange(1)]))
  t.strictSame(read(), ['other', 1])
  replica.apply(from(104, [deviceChange('lamp'), trustChange(2)]))
  t.strictSame(read(), ['default', 2])
  await load(replica, smallRegistry(['door']), 200, 'e2')
  t.strictSame(read(), [null, null], 'nor does it outlive its snapshot')
})

t.test('a forgotten device is forgotten with its certificates', async (t) => {
  const replica = replicaOf(t)
  await load(replica, smallRegistry(['lamp', 'door']))
  t.ok(replica.record(lamp))
  replica.apply(from(101, [{ kind: 'forgotten', device: 'lamp' }, deviceChange('lamp')]))
  t.equal(replica.record(lamp), null)
  t.ok(replica.record(fingerprintOf('door')))
})

t.test('a change that is delivered again, late, does not undo what followed it', async (t) => {
  const replica = replicaOf(t)
  await load(replica, smallRegistry())
  const hold = from(101, [holdChange('h', { kind: 'device', id: 'lamp' })])
  const end = from(102, [holdChange('h', { kind: 'device', id: 'lamp' }, 'ended')])
  t.equal(replica.apply([...hold, ...hold, ...end]).length, 2)
  t.equal(replica.apply([...hold, ...end, ...hold]).length, 0)
  t.equal(replica.record(lamp)?.hold, null)
  t.equal(replica.cursor()?.position, 102)
})

t.test('state, cursor and the time when the registry was heard survive a restart', async (t) => {
  const path = join(directory(t), 'broker.db')
  const before = openReplica(path)
  await load(before, smallRegistry())
  before.apply(from(101, [holdChange('h', { kind: 'fleet', id: 'default' })]))
  before.heard(5_000, true)
  before.close()
  t.equal(statSync(path).mode & 0o777, 0o600)

  const after = replicaOf(t, path)
  t.same(after.cursor(), { epoch: 'e1', position: 101 })
  t.equal(after.lastHeardAt(), 5_000)
  t.equal(after.record(lamp)?.hold?.id, 'h')
  t.same(
    after.unreportedHolds().map(({ id }) => id),
    ['h'],
  )
  after.markReported('h')
  t.same(after.unreportedHolds(), [])
})

t.test('no time that a wrong clock has noted makes a silent registry look fresh', (t) => {
  const day = 86_400_000
  const open = (storedAt: number | null, at: number) => {
    const clock = { wall: at, rising: 0 }
    const heard = new LastHeard(storedAt, { now: () => clock.wall, monotonic: () => clock.rising })
    const pass = (ms: number, asleep = false) => {
      clock.wall += ms
      if (!asleep) clock.rising += ms
    }
    return { heard, clock, pass, silentMs: () => heard.silentMs(clock.wall) }
  }
  const well = open(1_000, 4_000)
  t.equal(well.silentMs(), 3_000)
  well.pass(500)
  t.equal(well.silentMs(), 3_500)
  well.clock.wall -= 100 * day
  t.equal(well.silentMs(), 3_500, 'a clock that is set back takes nothing away')
  well.heard.heard(well.clock.wall)
  t.equal(well.silentMs(), 0)
  well.pass(2 * day, true)
  t.equal(well.silentMs(), 2 * day, 'a machine that slept was silent all the same')

  const ahead = open(30 * day, day)
  t.equal(ahead.heard.at, null)
  t.equal(ahead.silentMs(), Number.MAX_SAFE_INTEGER, 'nobody knows when it was heard')
  ahead.pass(40 * day)
  t.equal(ahead.silentMs(), Number.MAX_SAFE_INTEGER, 'and that the clock comes there says nothing')
  ahead.heard.heard(ahead.clock.wall)
  t.equal(ahead.silentMs(), 0)

  const moved = open(day + 2_000, day)
  t.equal(moved.silentMs(), 0, 'a clock that was moved by a little does not cost the replica')
  moved.pass(7)
  t.equal(moved.silentMs(), 7)
  t.equal(open(null, 0).silentMs(), Number.MAX_SAFE_INTEGER)
  t.end()
})

t.test('a snapshot replaces everything at once, and the older state serves until then', async (t) => {
  const replica = replicaOf(t)
  await load(replica, smallRegistry(['lamp', 'door']))
  replica.beginSnapshot()
  replica.stage(from(7, smallRegistry(['gate'])))
  t.ok(replica.record(lamp))
  t.equal(replica.record(fingerprintOf('gate')), null)
  await replica.finishSnapshot({ epoch: 'e2', position: 7 })
  t.ok(replica.record(lamp), 'also when the new one is ready')
  replica.endSnapshot()
  t.equal(replica.record(lamp), null)
  t.ok(replica.record(fingerprintOf('gate')))
  t.same(replica.cursor(), { epoch: 'e2', position: 7 })
})

t.test(
  'a snapshot that was cut in the middle changes nothing, also not after a restart, and is swept',
  async (t) => {
    const path = join(directory(t), 'broker.db')
    const before = openReplica(path)
    await load(before, smallRegistry())
    before.beginSnapshot()
    before.stage(from(7, smallRegistry(['gate'])))
    before.close()

    const after = replicaOf(t, path)
    t.ok(after.record(lamp))
    t.same(after.cursor(), { epoch: 'e1', position: 100 })
    await load(after, smallRegistry(['door']), 9, 'e2')
    t.equal(after.record(fingerprintOf('gate')), null)
    while (after.sweep());
    t.equal(countStates(path), 1)
  },
)

t.test(
  'a hold is in force although the disk refuses it, and the cursor stays for the next delivery',
  async (t) => {
    const path = join(directory(t), 'broker.db')
    const replica = replicaOf(t, path)
    await load(replica, smallRegistry())
    const other = new Database(stateFileOf(path))
    other.exec('BEGIN IMMEDIATE')
    const hold = from(101, [holdChange('h', { kind: 'device', id: 'lamp' })])
    t.throws(() => replica.apply(hold), { code: 'SQLITE_BUSY' })
    t.match(replica.stopUnstored(hold), [{ hold: { id: 'h' } }])
    t.equal(replica.record(lamp)?.hold?.id, 'h')
    t.same(replica.stopUnstored(hold), [], 'once')
    t.equal(replica.cursor()?.position, 100)
    other.close()
    t.equal(replica.apply(hold).length, 1)
    t.equal(replica.cursor()?.position, 101)
  },
)

t.test('a damaged replica is refused with the way to start again', async (t) => {
  const path = join(directory(t), 'broker.db')
  const replica = openReplica(path)
  await load(replica, smallRegistry(Array.from({ length: 500 }, (_, index) => `d${index}`)))
  replica.close()
  const state = stateFileOf(path)
  const whole = readFileSync(state)
  const edited = new Database(state)
  edited.prepare("UPDATE fleets SET policy = '{{'").run()
  edited.close()
  const damaged = {
    code: 'directory_unusable',
    message: /copy of the registry; fix: rm .*broker\.db-state-2 /,
  }
  t.throws(() => openReplica(path), damaged, 'a policy that is not JSON')
  writeFileSync(state, Buffer.alloc(whole.length, 0x55))
  t.throws(() => openReplica(path), damaged)
  // The pages of the schema and of the small tables.
  writeFileSync(state, whole.fill(0xff, 4096, 4096 * 20))
  t.throws(() => openReplica(path), damaged)
  for (const suffix of ['', '-wal', '-shm']) rmSync(state + suffix, { force: true })
  const again = replicaOf(t, path)
  t.equal(again.cursor(), null, 'as the message says: it asks for a snapshot')
  again.close()
  writeFileSync(path, Buffer.alloc(4096, 0x55))
  t.throws(() => openReplica(path), { code: 'directory_unusable', message: /fix: rm .*broker\.db .*reports/ })
})

t.test('changes applied one by one come to the same as their snapshot', async (t) => {
  const path = join(directory(t), 'broker.db')
  let run = 0
  await fc.assert(
    fc.asyncProperty(
      fc.array(arbitraryChange, { maxLength: 60 }),
      fc.integer({ min: 1, max: 7 }),
      async (drawn, step) => {
        const changes = withoutReturns(drawn)
        const incremental = openReplica(`${path}.${++run}`)
        const whole = openReplica(`${path}.${++run}`)
        await load(incremental, [], 0)
        for (let start = 0; start < changes.length; start += step) {
          incremental.apply(from(start + 1, changes.slice(start, start + step)))
          if (start % 2 === 0) incremental.sweep()
        }
        await load(whole, snapshotOf(changes), changes.length)
        t.strictSame(everything(incremental), everything(whole))
        incremental.close()
        whole.close()
      },
    ),
    { numRuns: 30 },
  )
})

t.test(
  'whom an order to forget is on is known of devices that are away, and outlives a restart',
  async (t) => {
    const path = join(directory(t), 'broker.db')
    const replica = replicaOf(t, path)
    await load(replica, [
      ...smallRegistry(['lamp', 'rotated', 'door']),
      deviceChange('lamp', { batch: 'lot' }),
      certificateChange('0b', 'rotated', { issuer: 'bb' }),
      certificateChange('0c', 'door', { issuer: 'bb', state: 'superseded', supersededFrom: 0 }),
      certificateChange('0d', 'lamp', { issuer: 'cc', notBefore: 9 }),
      membersChange('plan', ['door']),
    ])
    const scopes = [
      { kind: 'device', id: 'lamp' },
      { kind: 'batch', id: 'lot' },
      { kind: 'fleet', id: 'default' },
      { kind: 'issuer', id: 'aa' },
      { kind: 'issuer', id: 'bb' },
      { kind: 'plan', id: 'plan' },
      { kind: 'device', id: 'stranger' },
    ] as const
    const changes = scopes.map((scope, at) => holdChange(scope.kind === 'plan' ? 'plan' : `h${at}`, scope))
    replica.apply(from(101, changes))
    const positions = ({ orders }: Replica) =>
      Object.fromEntries(
        ['lamp', 'rotated', 'door', 'stranger', 'nobody'].map((id) => [
          id,
          orders.on(id).map(({ position }) => position - 101),
        ]),
      )
    const all = { lamp: [0, 2, 1, 3], rotated: [2], door: [5, 2, 3], stranger: [6], nobody: [] }
    t.same(positions(replica), all)
    // A hold that ends leaves its order; the members of a plan have it each.
    replica.apply(from(108, [holdChange('plan', { kind: 'plan', id: 'plan' }, 'ended')]))
    while (replica.sweep()) t.same(positions(replica), all)
    t.equal(replica.members('plan', 9)?.length, 0)
    replica.close()
    const again = openReplica(path)
    t.teardown(() => again.close())
    t.same(positions(again), all)
    t.same(again.orders.newest(), new Map([['e1', 107]]))
  },
)

t.test(
  'an order that takes more takes the place of an older one that takes less, not the reverse',
  async (t) => {
    const replica = replicaOf(t)
    await load(replica, smallRegistry())
    const hold = (id: string, purgeRetained: boolean): Change => ({
      kind: 'hold',
      hold: { id, scope: { kind: 'device', id: 'lamp' }, state: 'active', purgeRetained },
    })
    const known = () => replica.orders.on('lamp').map(({ position, retained }) => [position, retained])
    replica.apply(from(101, [hold('h1', false)]))
    replica.apply(from(102, [hold('h2', true)]))
    t.same(known(), [[102, true]])
    replica.apply(from(103, [hold('h3', false)]))
    t.same(known(), [
      [103, false],
      [102, true],
    ])
  },
)

t.test('a state of an earlier version knows what its holds in force have ordered', async (t) => {
  const path = join(directory(t), 'broker.db')
  const before = openReplica(path)
  await load(before, [...smallRegistry(), holdChange('h', { kind: 'device', id: 'lamp' })], 7)
  before.close()
  const state = new Database(stateFileOf(path))
  state.exec('DROP TABLE purges; PRAGMA user_version = 3')
  state.close()
  const after = replicaOf(t, path)
  t.same(after.orders.on('lamp'), [{ epoch: 'e1', position: 7, retained: false }])
})

const DEVICES = ['d1', 'd2', 'd3', 'd4']
const CERTIFICATES = ['c1', 'c2', 'c3', 'c4', 'c5', 'c6']
const SCOPES: Record<string, HoldRecord['scope']> = {
  h1: { kind: 'device', id: 'd1' },
  h2: { kind: 'batch', id: 'b1' },
  h3: { kind: 'fleet', id: 'f1' },
  h4: { kind: 'issuer', id: 'aa' },
  h5: { kind: 'plan', id: 'h5' },
  h6: { kind: 'plan', id: 'h6' },
}

const arbitraryChange: fc.Arbitrary<Change> = fc.oneof(
  fc.record({ id: fc.constantFrom('aa', 'bb'), trusted: fc.boolean() }).map((f) => issuerChange(f.id, f)),
  fc
    .constantFrom('f1', 'f2')
    .chain((id) => fc.constantFrom('a/#', 'b/#').map((rule) => fleetChange(id, { publish: [rule] }))),
  fc
    .record({
      id: fc.constantFrom(...DEVICES),
      fleet: fc.constantFrom('f1', 'f2'),
      batch: fc.constantFrom('b1', null),
      state: fc.constantFrom('active', 'retired'),
    })
    .map(({ id, ...fields }) => deviceChange(id, fields)),
  fc
    .record({
      fingerprint: fc.constantFrom(...CERTIFICATES),
      device: fc.constantFrom(...DEVICES),
      issuer: fc.constantFrom('aa', 'bb'),
      state: fc.constantFrom('issued', 'active', 'superseded', 'revoked'),
    })
    .map(({ fingerprint, device, ...fields }) => certificateChange(fingerprint, device, fields)),
  fc
    .record({ hold: fc.constantFrom('h5', 'h6'), devices: fc.uniqueArray(fc.constantFrom(...DEVICES)) })
    .map(({ hold, devices }) => membersChange(hold, devices)),
  fc
    .record({ id: fc.constantFrom(...Object.keys(SCOPES)), state: fc.constantFrom('active', 'ended') })
    .map(({ id, state }) => holdChange(id, SCOPES[id] as HoldRecord['scope'], state)), // drawn from the keys
  fc.constantFrom(...DEVICES).map((device): Change => ({ kind: 'forgotten', device })),
  fc.nat(9).map((version): Change => ({ kind: 'trust', trust: { version, roots: ['R'], links: [] } })),
)

/** A hold that has ended does not come back, and nobody joins it. */
function withoutReturns(changes: readonly Change[]): Change[] {
  const ended = new Set<string>()
  return changes.filter((change) => {
    if (change.kind === 'members') return !ended.has(change.hold)
    if (change.kind !== 'hold') return true
    if (ended.has(change.hold.id)) return false
    if (change.hold.state === 'ended') ended.add(change.hold.id)
    return true
  })
}

/** The last state of every subject, members before holds; what ended or was forgotten is left out. */
function snapshotOf(changes: readonly Change[]): Change[] {
  const last = new Map<string, Change>()
  for (const [index, change] of changes.entries()) {
    if (change.kind === 'issuer') last.set(`1 ${change.issuer.id}`, change)
    if (change.kind === 'trust') last.set('0', change)
    if (change.kind === 'fleet') last.set(`2 ${change.fleet.id}`, change)
    if (change.kind === 'device') last.set(`3 ${change.device.id}`, change)
    if (change.kind === 'certificate') last.set(`4 ${change.certificate.fingerprint}`, change)
    if (change.kind === 'members') last.set(`5 ${index}`, change)
    if (change.kind === 'hold') last.set(`6 ${change.hold.id}`, change)
    if (change.kind !== 'forgotten') continue
    last.delete(`3 ${change.device}`)
    for (const [key, kept] of last) {
      if (kept.kind === 'certificate' && kept.certificate.device === change.device) last.delete(key)
    }
  }
  return [...last.entries()].toSorted(([a], [b]) => (a < b ? -1 : 1)).map(([, change]) => change)
}

function everything(replica: Replica) {
  const byId = (a: { id: string }, b: { id: string }) => (a.id < b.id ? -1 : 1)
  return {
    records: CERTIFICATES.map((fingerprint) => replica.record(fingerprint)),
    live: DEVICES.map((device) => replica.hasLiveCertificate(device)),
    issuers: replica.issuers().toSorted(byId),
    fleets: replica.fleets().toSorted(byId),
    holds: replica.activeHolds().toSorted(byId),
    trust: replica.trust(),
    members: ['h5', 'h6']
      .filter((id) => replica.activeHolds().some((hold) => hold.id === id))
      .map((hold) => replica.members(hold, 10)),
  }
}

/** The files as a crash at this moment would leave them. */
function crashed(path: string): string {
  const copy = mkdtempSync(`${dirname(path)}-crashed-`)
  for (const name of readdirSync(dirname(path))) {
    if (!name.endsWith('-shm')) copyFileSync(join(dirname(path), name), join(copy, name))
  }
  return join(copy, basename(path))
}

t.test('a crash at any step of a snapshot leaves one whole state, and no file of another', async (t) => {
  const path = join(directory(t), 'broker.db')
  const replica = replicaOf(t, path)
  await load(replica, smallRegistry())
  const leaves = async (step: string, device: 'lamp' | 'door') => {
    const copy = crashed(path)
    const after = openReplica(copy)
    t.equal(after.record(lamp) !== null, device === 'lamp', step)
    t.equal(after.record(fingerprintOf('door')) !== null, device === 'door', step)
    t.equal(after.cursor()?.epoch, device === 'lamp' ? 'e1' : 'e2', step)
    t.equal(countStates(copy), 1, `${step}: and nothing else is left`)
    await load(after, smallRegistry(['gate']), 1, 'e3')
    t.ok(after.record(fingerprintOf('gate')), `${step}: and the next snapshot is taken`)
    after.close()
    t.equal(countStates(copy), 1)
  }
  replica.beginSnapshot()
  await leaves('begun', 'lamp')
  replica.stage(from(7, smallRegistry(['door'])))
  await leaves('staged', 'lamp')
  await replica.finishSnapshot({ epoch: 'e2', position: 7 })
  await leaves('finished', 'lamp')
  replica.endSnapshot()
  await leaves('ended', 'door')
  while (replica.sweep());
  await leaves('swept', 'door')
})

t.test('a large snapshot is finished while the event loop turns, and the last of two counts', async (t) => {
  const ids = Array.from({ length: 3_000 }, (_, index) => `d${index}`)
  const path = join(directory(t), 'broker.db')
  const replica = replicaOf(t, path)
  replica.beginSnapshot()
  replica.stage(from(9, smallRegistry(ids)))
  const revoked = certificateChange(fingerprintOf('d1'), 'd1', { state: 'revoked', revokedAt: 1 })
  replica.stage(from(9, [deviceChange('d0', { state: 'retired' }), revoked]))
  let turns = 0
  const counting = setInterval(() => turns++)
  await replica.finishSnapshot({ epoch: 'e', position: 9 })
  clearInterval(counting)
  t.ok(turns > 0)
  replica.endSnapshot()
  t.equal(replica.record(fingerprintOf('d0'))?.device.state, 'retired')
  t.equal(replica.record(fingerprintOf('d1'))?.certificate.state, 'revoked')
  t.ok(ids.every((id) => replica.record(fingerprintOf(id))?.device.id === id))
  replica.apply(from(10, [deviceChange('d0')]))
  t.equal(replica.record(fingerprintOf('d0'))?.device.state, 'active')

  replica.beginSnapshot()
  replica.stage(from(11, smallRegistry(ids)))
  await t.rejects(replica.finishSnapshot({ epoch: 'e', position: 11 }, AbortSignal.abort()))
  replica.abandonSnapshot()
  t.equal(replica.cursor()?.position, 10, 'given up')
  while (replica.sweep());
  t.equal(countStates(path), 1)
})

t.test('a device may be forgotten in the middle of a snapshot, and come again', async (t) => {
  const replica = replicaOf(t)
  const forgotten: Change = { kind: 'forgotten', device: 'lamp' }
  await load(replica, [...smallRegistry(['lamp', 'lamp', 'door']), forgotten, deviceChange('lamp')])
  t.equal(replica.record(lamp), null)
  t.equal(replica.hasLiveCertificate('lamp'), false)
  t.ok(replica.record(fingerprintOf('door')))
})

t.test('what a device has besides is kept as it came', async (t) => {
  const replica = replicaOf(t)
  const attributes = { model: 'x', site: 'y' }
  await load(replica, [...smallRegistry(), deviceChange('lamp', { attributes })])
  t.strictSame(replica.record(lamp)?.device.attributes, attributes)
})

t.test('a replica of an earlier version keeps its reports, and asks for a snapshot', async (t) => {
  const path = join(directory(t), 'broker.db')
  const before = openSqlite(path, { busyTimeoutMs: 100, migrations: MIGRATIONS.slice(0, 3) })
  before.exec(`UPDATE replica SET generation = 7, newest = 8, epoch = 'e1', position = 5;
    INSERT INTO devices VALUES (7, 'lamp', 'device', 'default', NULL, 'active');
    INSERT INTO spool (type, report) VALUES ('applied', '{"type":"applied"}')`)
  before.close()
  const replica = replicaOf(t, path)
  t.equal(replica.cursor(), null)
  t.equal(replica.spool.size(), 1)
  await load(replica, smallRegistry())
  t.ok(replica.record(lamp))
})
