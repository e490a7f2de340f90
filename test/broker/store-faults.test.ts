/** What the store holds when operations meet in one turn of the event loop, and when the disk refuses them. */
import { join } from 'node:path'
import { PassThrough } from 'node:stream'
import t, { type Test } from 'tap'
import { openLog } from '#shared/log'
import { openSqlite } from '#shared/sqlite'
import { LIMITS, type Limits } from '../../broker/limits.ts'
import type { MqttClient } from '../../broker/mqtt/mqtt-client.ts'
import { forgetRetained } from '../../broker/store/purge.ts'
import type { SessionStore } from '../../broker/store/session-store.ts'
import { openSessionStore } from '../../broker/store/store-open.ts'
import { STORE_MIGRATIONS } from '../../broker/store/store-schema.ts'

const log = openLog('test', 'silent', new PassThrough().resume())

interface Bench {
  readonly store: SessionStore
  readonly path: string
  /** Opens the same file, after what is open has been closed. */
  again(): Promise<SessionStore>
  /** From now on every commit with this change of a table fails; returns how to mend that. */
  breakDisk(change: 'INSERT' | 'DELETE', table: string): () => void
}

function benchOf(t: Test, limits: Partial<Limits> = {}): Bench {
  const path = join(t.testdir(), 'sessions.db')
  const open = () => openSessionStore(path, { durability: 'kill', limits: { ...LIMITS, ...limits }, log })
  let store = open()
  t.teardown(() => store.destroy())
  return {
    store,
    path,
    async again() {
      await store.destroy()
      store = open()
      return store
    },
    breakDisk(change, table) {
      const db = openSqlite(path, { busyTimeoutMs: 1_000, migrations: STORE_MIGRATIONS })
      db.exec(
        `CREATE TRIGGER broken BEFORE ${change} ON ${table} BEGIN SELECT RAISE(ABORT, 'disk full'); END`,
      )
      return () => {
        db.exec('DROP TRIGGER broken')
        db.close()
      }
    },
  }
}

/** As much of a client as a session is opened with. */
function client(id: string, fingerprint = `certificate of ${id}`): MqttClient {
  const connection = { device: id, kind: 'device', fleet: 'f', fingerprint }
  return { id, req: { connection } } as unknown as MqttClient // `open` reads nothing else
}

async function sessionOf({ sessions }: SessionStore, id: string, filter = 'x'): Promise<void> {
  sessions.open(client(id))
  await sessions.opened(id)
  await sessions.subscribe(id, [{ topic: filter, qos: 1 }])
}

/** Queues a message as its route does; resolves when it is on disk. */
function enqueue({ sessions, group }: SessionStore, topic: string): Promise<void> {
  const { queues, subscriptions } = sessions
  const payload = Buffer.from('text')
  const targets = subscriptions.targets(topic, 1) ?? new Map()
  const plan = queues.plan({ topic, payload, qos: 1 }, targets, () => {})
  if (plan === null) return Promise.resolve()
  return group.commit(
    () => queues.write(plan, payload),
    () => queues.keep(plan),
  )
}

t.test('a session that ends in the turn in which it subscribes leaves no subscription behind', async (t) => {
  const { store } = benchOf(t)
  const { sessions } = store
  await sessionOf(store, 'A')
  const subscribed = sessions.subscribe('A', [{ topic: 'late', qos: 1 }])
  await Promise.all([subscribed, store.discard('A')])
  t.same(sessions.subscriptions.of('A'), [])
  t.equal(sessions.subscriptions.targets('late', 1), null, 'and nothing is queued for it')
})

t.test('what was on its way to a session that ends is not for the next one of that client', async (t) => {
  const { store, path, again } = benchOf(t)
  const { sessions } = store
  await sessionOf(store, 'A')
  const routed = enqueue(store, 'x')
  const ended = store.discard('A')
  sessions.open(client('A', 'another certificate'))
  const subscribed = sessions.subscribe('A', [{ topic: 'x', qos: 1 }])
  const own = subscribed.then(() => enqueue(store, 'x'))
  store.group.flush()
  // The process may die here: what the commit has left is what the next run finds.
  const db = openSqlite(path, { busyTimeoutMs: 1_000, migrations: STORE_MIGRATIONS })
  t.match(db.prepare('SELECT count(*) AS n FROM queue').get(), { n: 0 })
  db.close()
  await Promise.all([routed, ended, own])
  t.equal(sessions.queues.entries('A').length, 1, 'only what came for the new one')
  t.match(sessions.queues.totals(), { messages: 1 })
  t.match((await again()).sessions.queues.totals(), { messages: 1 })
})

t.test(
  'a queue with as many messages as there are identifiers, some of them leaving, stays in its limit',
  async (t) => {
    const { store } = benchOf(t, { queueMessages: 40_000, queueBytes: 1 << 30 })
    const { sessions } = store
    await sessionOf(store, 'A')
    const full = Array.from({ length: 32_766 }, () => enqueue(store, 'x'))
    await Promise.all(full)
    const leaving = sessions.drop('A', sessions.queues.entries('A').slice(0, 3))
    const more = [1, 2, 3].map(() => enqueue(store, 'x'))
    await Promise.all([leaving, ...more])
    const ids = sessions.queues.entries('A').map(({ messageId }) => messageId)
    t.equal(new Set(ids).size, ids.length)
    await enqueue(store, 'x')
    t.equal(sessions.queues.entries('A').length, ids.length + 1, 'once they have left there is room')
  },
)

t.test('a session that cannot be taken up with a newer certificate is still there as it was', async (t) => {
  const { store, breakDisk } = benchOf(t)
  const { sessions } = store
  await sessionOf(store, 'A')
  const mend = breakDisk('INSERT', 'sessions')
  sessions.open(client('A', 'the newer certificate'))
  await t.rejects(sessions.opened('A'))
  mend()
  t.match(sessions.get('A'), { fingerprint: 'certificate of A' })
  t.same(sessions.clientsOf('A'), ['A'], 'so that a purge finds it')
  t.equal(sessions.isResumed('A'), true)
})

/** Retains a message as its route does. */
async function retain({ retained, group }: SessionStore, topic: string, of: { text: string; owner: string }) {
  const packet = { cmd: 'publish', topic, payload: Buffer.from(of.text), qos: 1, retain: true } as const
  const { write, done, undone } = retained.plan(packet, of.owner)
  return group.commit(write, done).catch(undone)
}
t.test(
  'a retained message that could not be replaced or taken away is still of whoever published it',
  async (t) => {
    const { store, breakDisk } = benchOf(t)
    const { retained } = store
    await retain(store, 'one', { text: 'of A', owner: 'A' })
    await retain(store, 'two', { text: 'of A', owner: 'A' })
    const before = retained.totals()
    const mend = [breakDisk('INSERT', 'retained')]
    await Promise.all([
      retain(store, 'one', { text: 'of B, and longer', owner: 'B' }),
      retain(store, 'two', { text: '', owner: 'B' }),
    ])
    for (const end of mend) end()
    t.same(retained.totals(), before)
    t.same(retained.owners(), ['A'])
    t.same(retained.topicsOf(new Map([['A', retained.newest]])), ['one', 'two'])
    // What is planned while another plan fails is booked once it is kept.
    const again = breakDisk('INSERT', 'retained')
    const failed = retain(store, 'one', { text: 'again of B', owner: 'B' })
    const behind = new Promise((resolve) => {
      store.group.push(null, () => resolve(retain(store, 'three', { text: 'of A', owner: 'A' })))
      setImmediate(again)
    })
    await Promise.all([failed, behind])
    t.same(retained.topicsOf(new Map([['A', retained.newest]])).toSorted(), ['one', 'three', 'two'])
    t.equal(retained.totals().messages, 3)
  },
)

t.test(
  'what could not be taken from a disk that was full is still there, and can be taken later',
  async (t) => {
    const { store, breakDisk, again } = benchOf(t)
    const of = new Map([['A', 1]])
    await retain(store, 'one', { text: 'of A', owner: 'A' })
    await store.putWill({ id: 'A' }, { topic: 'will', payload: 'x', qos: 0, retain: false } as never)
    const mends = [breakDisk('DELETE', 'retained')]
    await t.rejects(forgetRetained(store, of))
    for (const mend of mends) mend()
    const mend = breakDisk('DELETE', 'wills')
    await t.rejects(store.delWill({ id: 'A' }))
    mend()
    t.equal(store.retained.totals().messages, 1)
    t.ok(await store.getWill({ id: 'A' }), 'in memory as on the disk')
    await Promise.all([forgetRetained(store, of), store.delWill({ id: 'A' })])
    const after = await again()
    t.equal(after.retained.totals().messages, 0)
    t.equal(await after.getWill({ id: 'A' }), undefined)
  },
)
