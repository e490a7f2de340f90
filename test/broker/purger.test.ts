/** What holds and revocations take of what is stored, whenever the broker hears of them and whatever the disk says. */
import { copyFileSync, mkdtempSync, readdirSync } from 'node:fs'
import { join } from 'node:path'
import { PassThrough } from 'node:stream'
import t, { type Test } from 'tap'
import type { Change, HoldRecord, PurgeRecord } from '#shared/feed'
import { openLog } from '#shared/log'
import { openSqlite } from '#shared/sqlite'
import { LIMITS } from '../../broker/limits.ts'
import type { MqttClient } from '../../broker/mqtt/mqtt-client.ts'
import { openReplica } from '../../broker/replica/replica.ts'
import { Purger, type PurgerDeps } from '../../broker/store/purger.ts'
import { openSessionStore } from '../../broker/store/store-open.ts'
import { STORE_MIGRATIONS } from '../../broker/store/store-schema.ts'
import { until } from '../support/broker.ts'
import { certificateChange, fingerprintOf, holdChange, smallRegistry } from '../support/feed-changes.ts'
import { feedOf, benchOf as followerOf } from '../support/follower.ts'

const log = openLog('test', 'silent', new PassThrough().resume())

/** A broker's replica, store and purger, as at a start with what lies in the directory. */
async function benchOf(t: Test, directory = mkdtempSync(join(t.testdir(), 'purger-'))) {
  const replica = openReplica(join(directory, 'broker.db'))
  const path = join(directory, 'sessions.db')
  const store = openSessionStore(path, { durability: 'kill', limits: LIMITS, log })
  const clients: Record<string, MqttClient> = {}
  await store.setup({ id: 'b', clients })
  const heard = { changes: 0, listener: () => {} }
  const deps: PurgerDeps = {
    ...{ store, replica, log },
    cleaned: async () => {},
    changed() {
      heard.changes++
      heard.listener()
    },
    random: () => 0,
    limits: { retryFirstMs: 2, retryMostMs: 4 },
  }
  const purger = new Purger(deps)
  let isOpen = true
  const close = async () => {
    if (!isOpen) return
    isOpen = false
    await purger.stop()
    await store.destroy()
    replica.close()
  }
  t.teardown(close)
  const client = (id: string) =>
    ({
      id,
      closed: false,
      conn: { destroyed: false },
      req: {
        connection: {
          device: id,
          kind: 'device',
          fleet: 'default',
          fingerprint: fingerprintOf(id),
          refused: null,
        },
      },
    }) as unknown as MqttClient // as much of one as is looked at
  const bench = {
    ...{ directory, path, replica, store, purger, heard, close },
    /** Takes what the registry says as a whole state, as the follower does. */
    async snapshot(changes: readonly Change[], position: number, epoch = 'e1') {
      replica.beginSnapshot()
      replica.stage(changes.map((change) => ({ type: 'change', position, at: 5, change })))
      await replica.finishSnapshot({ epoch, position })
      replica.endSnapshot()
      purger.ordered()
    },
    /** Takes changes that follow, in one tick. */
    stream(position: number, ...changes: Change[]) {
      replica.apply(
        changes.map((change, index) => ({ type: 'change', position: position + index, at: 5, change })),
      )
      purger.ordered()
    },
    /** A session, a will and a retained message of a device that is away. */
    async leave(id: string, text = 'on') {
      store.sessions.open(client(id))
      await store.sessions.subscribe(id, [{ topic: `${id}/in`, qos: 1 }])
      await store.putWill({ id }, { topic: `${id}/will`, payload: 'w', qos: 0, retain: false } as never)
      await bench.retain(id, text)
    },
    retain(id: string, text = 'on') {
      const head = { cmd: 'publish', topic: `${id}/state`, qos: 1, retain: true } as const
      const packet = { ...head, payload: Buffer.from(text) }
      const { write, done, undone } = store.retained.plan(packet, id)
      return store.group.commit(write, done).catch(undone)
    },
    connect(id: string) {
      clients[id] = client(id)
    },
    disconnect(id: string) {
      delete clients[id]
    },
    /** Session, will and what is retained, as letters. */
    async left(id: string) {
      const has = [
        store.sessions.hasAnythingOf(id) && 's',
        (await store.getWill({ id })) !== undefined && 'w',
        store.retained.owners().includes(id) && 'r',
      ]
      return has.filter(Boolean).join('')
    },
    /** From now on every commit that deletes from this table fails; returns how to mend that. */
    breakDisk(table: string) {
      const db = openSqlite(path, { busyTimeoutMs: 1_000, migrations: STORE_MIGRATIONS })
      db.exec(`CREATE TRIGGER broken BEFORE DELETE ON ${table} BEGIN SELECT RAISE(ABORT, 'disk full'); END`)
      return () => {
        db.exec('DROP TRIGGER broken')
        db.close()
      }
    },
    async again() {
      await close()
      const next = await benchOf(t, directory)
      next.purger.ordered()
      await next.purger.rest()
      return next
    },
  }
  return bench
}

const devices = ['lamp', 'door', 'gate']
const registry = smallRegistry(devices)
const order = (position: number, fields: Partial<PurgeRecord> = {}): Change => ({
  kind: 'purge',
  purge: { scope: { kind: 'device', id: 'lamp' }, epoch: 'e1', position, at: 3, retained: true, ...fields },
})
const hold = (id: string, fields: Partial<HoldRecord> = {}): Change => ({
  kind: 'hold',
  hold: { id, scope: { kind: 'device', id: 'lamp' }, state: 'active', ...fields },
})

t.test(
  'a hold that came and went while the broker was cut off takes what it was to take, once',
  async (t) => {
    const bench = await benchOf(t)
    await bench.snapshot(registry, 10)
    await bench.purger.rest()
    for (const id of devices) await bench.leave(id)
    const over = [
      ...registry,
      order(12),
      order(14, { scope: { kind: 'device', id: 'door' }, retained: false }),
    ]
    await bench.snapshot(over, 20)
    t.same(bench.purger.purged(), { epoch: 'e1', position: 10 }, 'and it is not said to be done before it is')
    await bench.purger.rest()
    t.same(
      await Promise.all(devices.map(bench.left)),
      ['', 'r', 'swr'],
      'each what its hold takes, the others nothing',
    )
    t.same(bench.purger.purged(), { epoch: 'e1', position: 20 })

    await bench.leave('lamp', 'after the hold')
    await bench.snapshot(over, 30)
    await bench.purger.rest()
    t.equal(await bench.left('lamp'), 'swr', 'what came later is not touched by the same order')
    const again = await bench.again()
    t.equal(await again.left('lamp'), 'swr', 'nor at a start')
    t.same(again.purger.purged(), { epoch: 'e1', position: 30 })
  },
)

t.test('a device that has merely rotated while the broker was cut off loses nothing', async (t) => {
  const bench = await benchOf(t)
  await bench.snapshot(registry, 10)
  await bench.leave('lamp')
  await bench.snapshot(
    [
      ...registry,
      certificateChange(fingerprintOf('lamp'), 'lamp', { state: 'superseded', supersededFrom: 1 }),
      certificateChange('0a', 'lamp', { state: 'active' }),
    ],
    20,
  )
  await bench.purger.rest()
  t.equal(await bench.left('lamp'), 'swr')
})

t.test(
  'an order that is over leaves a client that is connected its session, not what it had retained',
  async (t) => {
    const bench = await benchOf(t)
    await bench.snapshot(registry, 10)
    await bench.leave('lamp')
    bench.connect('lamp')
    bench.stream(11, hold('h', { purgeRetained: true }), hold('h', { state: 'ended' }))
    const since = bench.retain('lamp', 'in the tick after it')
    await bench.purger.rest()
    await since
    t.equal(await bench.left('lamp'), 'swr')
    t.ok(bench.store.retained.isKept('lamp/state', 'in the tick after it'), 'what it has retained since')
  },
)

t.test('a restore of the registry repeats no order, and hides none', async (t) => {
  const bench = await benchOf(t)
  await bench.snapshot(registry, 10)
  const gate = { kind: 'device', id: 'gate' } as const
  bench.stream(11, hold('h1'), hold('h1', { state: 'ended' }), hold('lost'), hold('lost', { state: 'ended' }))
  await bench.purger.rest()
  for (const id of devices) await bench.leave(id)
  // Brought back to change 12, and gone on from there: the same positions, of another epoch.
  await bench.snapshot([...registry, order(11), order(13, { epoch: 'e2', scope: gate })], 13, 'e2')
  await bench.purger.rest()
  t.same(await Promise.all(devices.map(bench.left)), ['swr', 'swr', ''])
  await bench.leave('gate')
  await bench.snapshot([...registry, order(11), order(13, { epoch: 'e2', scope: gate })], 14, 'e2')
  await bench.purger.rest()
  t.equal(await bench.left('gate'), 'swr')
})

t.test(
  'a broker with a new replica, or an older copy of its store, takes what was ordered since',
  async (t) => {
    const bench = await benchOf(t)
    await bench.snapshot(registry, 10)
    await bench.purger.rest()
    await bench.leave('lamp')
    await bench.close()
    const copy = `${bench.path}.copy`
    copyFileSync(bench.path, copy)
    const later = await bench.again()
    later.stream(11, hold('h', { purgeRetained: true }), hold('h', { state: 'ended' }))
    await later.purger.rest()
    t.equal(await later.left('lamp'), '')
    await later.close()
    copyFileSync(copy, bench.path)
    const again = await benchOf(t, bench.directory)
    t.equal(await again.left('lamp'), 'swr')
    again.purger.ordered()
    await again.purger.rest()
    t.equal(await again.left('lamp'), '')
  },
)

t.test('what the disk refuses is tried again until it is done, and said meanwhile', async (t) => {
  for (const table of ['sessions', 'wills', 'retained']) {
    const bench = await benchOf(t)
    await bench.snapshot(registry, 10)
    await bench.purger.rest()
    await bench.leave('lamp')
    const mend = bench.breakDisk(table)
    bench.stream(11, hold('h', { purgeRetained: true }), hold('h', { state: 'ended' }))
    await bench.purger.rest()
    t.match(bench.purger.fault(), /^Cannot forget what holds and revocations take: .*disk full; fix: /, table)
    t.same(bench.purger.purged(), { epoch: 'e1', position: 10 }, 'what is not done is not said to be done')
    t.match(bench.purger.counts(), { waiting: 1 })
    t.same([...bench.store.retained.matching(['#'])], [], 'what a hold took is read by nobody meanwhile')
    await until(() => bench.purger.counts().failed > 2)
    t.not(await bench.left('lamp'), '')
    mend()
    await until(() => bench.purger.fault() === null && bench.purger.counts().waiting === 0)
    t.equal(await bench.left('lamp'), '')
    t.same(bench.purger.purged(), { epoch: 'e1', position: 12 })
    t.ok(bench.heard.changes > 2)
    t.equal(await (await bench.again()).left('lamp'), '', 'on the disk as well')
  }
})

t.test('what the disk refused before a restart is done at the start', async (t) => {
  const bench = await benchOf(t)
  await bench.snapshot(registry, 10)
  await bench.leave('lamp')
  const mend = bench.breakDisk('sessions')
  bench.stream(11, hold('h', { purgeRetained: true }), hold('h', { state: 'ended' }))
  await bench.purger.rest()
  mend()
  await bench.close()
  t.equal(await (await bench.again()).left('lamp'), '')
})

t.test(
  'a client that was connected when its hold was over keeps its session, also once it has left',
  async (t) => {
    for (const scope of [
      { kind: 'device', id: 'lamp' },
      { kind: 'fleet', id: 'default' },
    ] as const) {
      const bench = await benchOf(t)
      await bench.snapshot(registry, 10)
      for (const id of ['lamp', 'door']) await bench.leave(id)
      bench.connect('lamp')
      const mend = bench.breakDisk('sessions')
      bench.stream(11, hold('h', { scope }), hold('h', { scope, state: 'ended' }))
      await bench.purger.rest()
      bench.disconnect('lamp')
      mend()
      await until(() => bench.purger.counts().waiting === 0)
      t.equal(await bench.left('lamp'), 'swr')
      t.equal(await bench.left('door'), scope.kind === 'fleet' ? 'r' : 'swr')
    }
  },
)

t.test('a crash at any step of a purge leaves it to be done, or done, at the next start', async (t) => {
  const bench = await benchOf(t)
  const ids = Array.from({ length: 60 }, (_, index) => `d${index}`)
  await bench.snapshot(smallRegistry([...ids, 'lamp']), 10)
  await bench.purger.rest()
  for (const id of [...ids, 'lamp']) await bench.leave(id)
  const copies: string[] = []
  const copy = () => {
    const to = mkdtempSync(join(bench.directory, '..', 'crashed-'))
    for (const name of readdirSync(bench.directory)) {
      if (!name.endsWith('-shm')) copyFileSync(join(bench.directory, name), join(to, name))
    }
    copies.push(to)
  }
  const { group } = bench.store
  const flush = group.flush.bind(group)
  group.flush = () => {
    flush()
    copy()
  }
  bench.stream(
    11,
    { kind: 'members', hold: 'p', devices: ids },
    {
      kind: 'hold',
      hold: { id: 'p', scope: { kind: 'plan', id: 'p' }, state: 'active', purgeRetained: true },
    },
    holdChange('p', { kind: 'plan', id: 'p' }, 'ended'),
  )
  copy()
  await bench.purger.rest()
  group.flush = flush
  t.ok(copies.length > 5)
  for (const directory of copies) {
    const after = await benchOf(t, directory)
    after.purger.ordered()
    await after.purger.rest()
    const left = await Promise.all(ids.map(after.left))
    if (!t.strictSame(new Set(left), new Set(['']))) return
    t.equal(await after.left('lamp'), 'swr')
    t.same(after.purger.purged(), { epoch: 'e1', position: 13 })
    await after.close()
  }
})

t.test(
  'a device that comes back before its purge is done gets nothing of what was to be forgotten',
  async (t) => {
    const bench = await benchOf(t)
    await bench.snapshot(registry, 10)
    await bench.leave('lamp')
    const mend = bench.breakDisk('sessions')
    bench.stream(11, hold('h'), hold('h', { state: 'ended' }))
    await bench.purger.rest()
    t.ok(bench.purger.isOwed('lamp', 'lamp'), 'and its will is not to be published')
    t.notOk(bench.purger.isOwed('door', 'door'))
    bench.purger.claim('lamp', 'lamp')
    bench.store.group.flush()
    await until(() => bench.store.sessions.get('lamp') !== undefined)
    t.equal(await bench.left('lamp'), 'swr', 'it is refused, as its session cannot be taken away')
    mend()
    bench.purger.claim('lamp', 'lamp')
    t.equal(bench.store.sessions.get('lamp'), undefined)
    t.notOk(bench.purger.isOwed('lamp', 'lamp'))
    await bench.leave('lamp', 'new')
    await until(() => bench.purger.counts().waiting === 0)
    t.equal(await bench.left('lamp'), 'swr', 'what it has now is its own')
  },
)

t.test('an order on a batch, a fleet or a list finds its devices among all that is stored', async (t) => {
  const bench = await benchOf(t)
  await bench.snapshot(registry, 10)
  for (const id of devices) await bench.leave(id)
  await bench.leave('stranger')
  bench.stream(
    11,
    { kind: 'members', hold: 'p', devices: ['door', 'stranger'] },
    holdChange('p', { kind: 'plan', id: 'p' }),
    holdChange('p', { kind: 'plan', id: 'p' }, 'ended'),
  )
  await bench.purger.rest()
  t.same(await Promise.all([...devices, 'stranger'].map(bench.left)), ['swr', 'r', 'swr', 'r'])
  bench.stream(14, hold('f', { scope: { kind: 'fleet', id: 'default' }, purgeRetained: true }))
  await bench.purger.rest()
  t.same(await Promise.all([...devices, 'stranger'].map(bench.left)), ['', '', '', 'r'])
})

t.test(
  'identities that have ended without an order are forgotten, also by a disk that refused at first',
  async (t) => {
    const bench = await benchOf(t)
    await bench.snapshot(registry, 10)
    await bench.leave('lamp')
    const mend = bench.breakDisk('sessions')
    await bench.purger.forget(['lamp', 'nobody'])
    t.ok(bench.purger.fault())
    t.same(bench.purger.purged(), { epoch: 'e1', position: 10 })
    mend()
    await until(() => bench.purger.counts().waiting === 0)
    t.equal(await bench.left('lamp'), 'r', 'what it has retained stays: nobody said otherwise')
  },
)

t.test(
  'what a hold takes is known when it is in force, and when it is over before it is heard of',
  async (t) => {
    const feed = await feedOf(t, smallRegistry(['lamp', 'door']))
    const bench = await followerOf(t, feed)
    await bench.follower.complete()
    const { orders } = bench.replica
    const first = feed.commit(hold('purges', { purgeRetained: true }))
    await bench.applied('purges')
    const taken = { epoch: 'epoch-1', position: first, retained: true }
    t.same(orders.on('lamp'), [taken])
    await bench.reached(feed.commit(hold('purges', { state: 'ended' })))
    t.same(orders.on('lamp'), [taken], 'its end takes nothing back')
    t.same(bench.ordered.at(-1), { 'epoch-1': first })
    // What comes in one tick with its end counts all the same.
    const client = bench.connect('door')
    const lifted = { kind: 'device', id: 'door' } as const
    const at = feed.position() + 1
    await bench.reached(feed.commit(holdChange('lifted', lifted), holdChange('lifted', lifted, 'ended')))
    t.same(orders.on('door'), [{ epoch: 'epoch-1', position: at, retained: false }])
    await bench.follower.stop()
    t.equal(client.refused, null)
  },
)

t.test('a snapshot says what was ordered while the broker was cut off, in force or over', async (t) => {
  const feed = await feedOf(t, smallRegistry(['lamp', 'door', 'gate']))
  const bench = await followerOf(t, feed)
  await bench.follower.complete()
  const order = { epoch: 'epoch-1', at: 1, retained: true }
  const purge = (record: PurgeRecord): Change => ({ kind: 'purge', purge: record })
  feed.restore('epoch-2', [
    ...smallRegistry(['lamp', 'door', 'gate']),
    purge({ ...order, scope: { kind: 'device', id: 'lamp' }, position: 7 }),
    purge({ ...order, scope: { kind: 'plan', id: 'p' }, devices: ['door', 'lamp'], position: 5 }),
    holdChange('h', { kind: 'device', id: 'gate' }),
  ])
  await bench.applied('h')
  const { orders } = bench.replica
  t.same(orders.on('lamp'), [{ epoch: 'epoch-1', position: 7, retained: true }], 'the newest counts')
  t.same(orders.on('door'), [{ epoch: 'epoch-1', position: 5, retained: true }])
  t.same(orders.on('gate'), [{ epoch: 'epoch-2', position: 0, retained: false }])
  t.same(bench.ordered.at(-1), { 'epoch-1': 7, 'epoch-2': 0 })
  t.same(orders.due(new Map([['epoch-1', 6]]), 9), [
    { kind: 'device', id: 'lamp' },
    { kind: 'device', id: 'gate' },
  ])
  t.equal(orders.due(new Map(), 2), null)
})

/** Orders wait behind what the disk does not let go of another device: `door` has a will, and nobody else. */
async function busyBench(t: Test) {
  const bench = await benchOf(t)
  await bench.snapshot(registry, 10)
  await bench.purger.rest()
  for (const id of devices) await bench.leave(id)
  for (const id of ['lamp', 'gate']) await bench.store.delWill({ id })
  const mend = bench.breakDisk('wills')
  bench.stream(11, hold('first', { scope: { kind: 'device', id: 'door' } }))
  await bench.purger.rest()
  t.ok(bench.purger.fault())
  const done = async () => {
    mend()
    await until(() => bench.purger.counts().waiting === 0)
  }
  return { ...bench, done }
}

t.test(
  'a client that was connected when its hold was over keeps its session, also while an earlier order waits',
  async (t) => {
    const bench = await busyBench(t)
    bench.connect('lamp')
    bench.stream(12, hold('h'), hold('h', { state: 'ended' }))
    bench.disconnect('lamp')
    t.notOk(bench.purger.isOwed('lamp', 'lamp'), 'and its will may be published')
    bench.purger.claim('lamp', 'lamp')
    bench.store.group.flush()
    t.ok(bench.store.sessions.get('lamp'), 'it takes its session up again')
    await bench.done()
    t.equal(await bench.left('lamp'), 'sr')
    t.equal(await bench.left('door'), 'r')
  },
)

t.test('of orders that wait together each takes what was there when it came', async (t) => {
  const bench = await busyBench(t)
  const gate = { kind: 'device', id: 'gate' } as const
  bench.connect('lamp')
  bench.stream(12, hold('h1', { purgeRetained: true }), hold('h1', { state: 'ended' }))
  await bench.retain('lamp', 'after the hold')
  bench.stream(14, hold('h2', { scope: gate, purgeRetained: true }))
  await bench.done()
  t.equal(await bench.left('lamp'), 'sr')
  t.ok(bench.store.retained.isKept('lamp/state', 'after the hold'))
  t.equal(await bench.left('gate'), '')
})

t.test(
  'a client that kept its session at one order loses it by the next, when it is away by then',
  async (t) => {
    const bench = await busyBench(t)
    bench.connect('lamp')
    bench.stream(12, hold('h1'), hold('h1', { state: 'ended' }))
    bench.disconnect('lamp')
    bench.stream(14, hold('h2'), hold('h2', { state: 'ended' }))
    await bench.done()
    t.equal(await bench.left('lamp'), 'r')
  },
)

t.test('nobody reads what a hold takes while the disk refuses something else', async (t) => {
  const held = async (bench: Awaited<ReturnType<typeof busyBench>>) => {
    bench.stream(12, hold('h', { purgeRetained: true }))
    await until(() => ![...bench.store.retained.matching(['lamp/#'])].length)
    t.same([...bench.store.retained.matching(['#'])].length, 2)
  }
  await held(await busyBench(t))
  const bench = await busyBench(t)
  await bench.purger.forget(['door'])
  await held(bench)
})

t.test('a restore that is undone by another repeats no order', async (t) => {
  const bench = await benchOf(t)
  await bench.snapshot(registry, 10)
  bench.stream(11, hold('h'), hold('h', { state: 'ended' }))
  await bench.purger.rest()
  await bench.leave('lamp')
  const [gate, door] = ['gate', 'door'].map((id) => ({ scope: { kind: 'device', id } }) as const)
  await bench.snapshot([...registry, order(5, gate), order(6, { epoch: 'e2', ...door })], 6, 'e2')
  await bench.purger.rest()
  await bench.snapshot([...registry, order(11)], 12, 'e3')
  await bench.purger.rest()
  t.equal(await bench.left('lamp'), 'swr')
})

t.test('a store without a mark owes nothing of what was ordered before it gets its first', async (t) => {
  const bench = await benchOf(t)
  for (const id of ['lamp', 'door']) await bench.leave(id)
  await bench.store.delWill({ id: 'lamp' })
  const mend = bench.breakDisk('wills')
  await bench.purger.forget(['door'])
  await bench.snapshot(registry, 20)
  await bench.snapshot([...registry, order(12)], 21)
  mend()
  await until(() => bench.purger.counts().waiting === 0)
  t.equal(await bench.left('lamp'), 'sr')
})

t.test('what is retained anew is read only when it is on disk, and what it replaces is not', async (t) => {
  const bench = await busyBench(t)
  bench.stream(12, hold('h', { purgeRetained: true }), hold('h', { state: 'ended' }))
  await until(() => ![...bench.store.retained.matching(['lamp/#'])].length)
  const since = bench.retain('lamp', 'new')
  t.same([...bench.store.retained.matching(['lamp/#'])], [])
  await bench.done()
  await since
  t.match([...bench.store.retained.matching(['lamp/#'])], [{ payload: Buffer.from('new') }])
})

t.test('orders that cannot be read are not said to be carried out', async (t) => {
  const bench = await benchOf(t)
  await bench.snapshot(registry, 10)
  await bench.purger.rest()
  const { orders } = bench.replica
  const { newest } = orders
  orders.newest = () => {
    throw new Error('disk I/O error')
  }
  bench.stream(11, hold('h'))
  t.same(bench.purger.purged(), { epoch: 'e1', position: 10 })
  orders.newest = newest
  bench.stream(12, hold('h', { state: 'ended' }))
  await bench.purger.rest()
  t.same(bench.purger.purged(), { epoch: 'e1', position: 12 })
})

t.test('what is to be forgotten just as a purge ends is forgotten as well', async (t) => {
  const bench = await benchOf(t)
  await bench.snapshot(registry, 10)
  await bench.leave('door')
  let second = Promise.resolve()
  bench.heard.listener = () => {
    bench.heard.listener = () => {}
    queueMicrotask(() => {
      second = bench.purger.forget(['door']) // before anybody hears that it has ended
    })
  }
  await bench.purger.forget(['lamp'])
  await second
  t.equal(await bench.left('door'), 'r')
})
