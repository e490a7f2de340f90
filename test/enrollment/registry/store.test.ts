import { once } from 'node:events'
import { type AddressInfo, connect, createServer, type Socket } from 'node:net'
import { join } from 'node:path'
import t, { type Test } from 'tap'
import type { DeviceId } from '#shared/identity/device'
import { openSqlite } from '#shared/sqlite'
import { openRegistry } from '../../../enrollment/registry/open.ts'
import { MIGRATIONS } from '../../../enrollment/registry/schema.ts'
import { PURGE_ORDERS } from '../../../enrollment/registry/schema-purge-orders.ts'
import { Store } from '../../../enrollment/registry/store.ts'
import { BEGIN, planeOf } from '../../support/registry-plane.ts'
import { snapshotOf } from '../../support/registry-replica.ts'

const options = { trustDomain: 'plane.test', epoch: 'epoch-1', now: BEGIN }
const act = { now: BEGIN, by: 'operator:test' }
const change = (device: string) => ({ kind: 'forgotten', device }) as const

/** A store that does not wait within SQLite, and a second connection to its file. */
function storeAndRival(t: Test) {
  const path = join(t.testdir({}), 'registry.db')
  const open = () => openSqlite(path, { busyTimeoutMs: 0, migrations: MIGRATIONS })
  const db = open()
  const rival = open()
  t.teardown(() => rival.close())
  const store = new Store(db)
  const devices = () =>
    rival.prepare<[], { change: string }>('SELECT change FROM changes ORDER BY position').all()
  const write = (device: string) =>
    store.write(act, (log) => {
      log.change(change(device))
      log.audit({ action: 'test', subject: device })
      return device
    })
  return { db, rival, store, write, devices: () => devices().map((row) => JSON.parse(row.change).device) }
}

t.test('intents of one turn share a commit, and each may fail alone', async (t) => {
  const { db, store, write, devices } = storeAndRival(t)
  let commits = 0
  db.function('count_commit', () => ++commits)
  const failing = store.write(act, (log) => {
    log.change(change('never'))
    log.audit({ action: 'test', subject: 'never' })
    throw new RangeError('refused')
  })
  const results = await Promise.allSettled([write('a'), failing, write('b')])
  t.strictSame(
    results.map(({ status }) => status),
    ['fulfilled', 'rejected', 'fulfilled'],
  )
  t.strictSame(devices(), ['a', 'b'])
  await store.close()
})

t.test('a listener hears once of all that was committed together', async (t) => {
  const { store, write } = storeAndRival(t)
  const heard: number[] = []
  store.onCommit((position) => heard.push(position))
  await Promise.all([write('a'), write('b'), write('c')])
  t.strictSame(heard, [3])
  await store.close()
})

t.test('an intent that makes changes must say so in the audit log, once', async (t) => {
  const { store, devices } = storeAndRival(t)
  const entry = { action: 'test', subject: 'x' }
  await t.rejects(
    store.write(act, (log) => log.change(change('x'))),
    /without an audit entry/,
  )
  const twice = store.write(act, (log) => {
    log.audit(entry)
    log.audit(entry)
  })
  await t.rejects(twice, /one audit entry/)
  t.strictSame(devices(), [])
  await store.close()
})

t.test('a writer waits for another one, then gives up and says that it may be tried again', async (t) => {
  const { rival, store, write, devices } = storeAndRival(t)
  rival.exec('BEGIN IMMEDIATE')
  const waiting = write('patient')
  await new Promise(setImmediate)
  rival.exec('COMMIT')
  t.equal(await waiting, 'patient')
  rival.exec('BEGIN IMMEDIATE')
  await t.rejects(write('late'), { code: 'unavailable', cause: { code: 'SQLITE_BUSY' } })
  t.strictSame(await store.read(() => 'reads go on'), 'reads go on')
  rival.exec('COMMIT')
  t.equal(await write('again'), 'again')
  t.strictSame(devices(), ['patient', 'again'])
  await store.close()
})

t.test('a full disk refuses whole intents, and needs no restart', async (t) => {
  const { db, store, write, devices } = storeAndRival(t)
  const pages = Number(db.pragma('page_count', { simple: true }))
  db.pragma(`max_page_count = ${pages}`)
  const names = Array.from({ length: 300 }, (_, i) => `device-${i}-${'x'.repeat(200)}`)
  const results = await Promise.allSettled(names.map(write))
  const codes = results.flatMap((one) => (one.status === 'rejected' ? [one.reason.code] : []))
  t.strictSame(new Set(codes), new Set(['unavailable']))
  const kept = results.flatMap((one) => (one.status === 'fulfilled' ? [one.value] : []))
  t.strictSame(devices(), kept, 'what was acknowledged is there, and nothing else')
  db.pragma('max_page_count = 100000')
  t.equal(await write('after'), 'after')
  await store.close()
})

t.test('an event loop that always has something to do holds no intent up', async (t) => {
  const { store, write } = storeAndRival(t)
  const echo = (socket: Socket) => {
    socket.on('data', (octets) => socket.write(octets))
    socket.on('error', () => {}) // at the end it is cut off while it writes
  }
  const server = createServer(echo)
  await once(server.listen(0, '127.0.0.1'), 'listening')
  const { port } = server.address() as AddressInfo // a TCP server has a port
  const sockets = Array.from({ length: 8 }, () => connect(port, '127.0.0.1'))
  for (const socket of sockets) {
    await once(socket, 'connect')
    echo(socket)
    socket.write('to and fro')
  }
  t.strictSame(await Promise.all([write('a'), write('b')]), ['a', 'b'])
  for (const socket of sockets) socket.destroy()
  server.close()
  await store.close()
})

t.test('closing commits what is waiting', async (t) => {
  const { store, write, devices } = storeAndRival(t)
  const writing = Promise.all([write('a'), write('b')])
  await store.close()
  t.strictSame(await writing, ['a', 'b'])
  t.strictSame(devices(), ['a', 'b'])
})

t.test('a registry keeps its epoch and its content, and refuses another trust domain', async (t) => {
  const path = join(t.testdir({}), 'registry.db')
  const first = await openRegistry(path, options)
  await planeOf(first).enroll('d1')
  const cursor = await first.cursor()
  t.match(cursor, { epoch: 'epoch-1' })
  await first.close()
  const second = await openRegistry(path, { ...options, epoch: 'epoch-2', now: BEGIN + 1 })
  t.strictSame(await second.cursor(), cursor)
  t.equal(second.trustDomain, 'plane.test')
  t.match(await second.showDevice('d1', BEGIN), { state: 'active' })
  await second.close()
  const other = openRegistry(path, { ...options, trustDomain: 'other.test' })
  await t.rejects(other, { code: 'directory_unusable', message: /belongs to the trust domain plane\.test/ })
})

t.test(
  'a registry of an earlier version tells what its holds in force take, once they are over',
  async (t) => {
    const path = join(t.testdir({}), 'registry.db')
    const first = await openRegistry(path, options)
    const before = planeOf(first)
    for (const id of ['d1', 'd2', 'd3']) await before.enroll(id)
    await before.hold('p1', { scope: 'device', id: 'd1' }, { purgeRetained: true })
    await before.hold('p2', { scope: 'device', id: 'd2' })
    await first.undoPlan('p2', before.act())
    await before.hold('p3', { devices: ['d3' as DeviceId] })
    const { position } = await first.cursor()
    await first.close()
    const db = openSqlite(path, { busyTimeoutMs: 0, migrations: MIGRATIONS })
    db.exec('DROP TABLE purges; ALTER TABLE receipts DROP COLUMN purging')
    db.pragma(`user_version = ${MIGRATIONS.indexOf(PURGE_ORDERS)}`)
    db.close()

    const second = await openRegistry(path, options)
    const after = planeOf(second)
    for (const id of ['p1', 'p3']) await second.undoPlan(id, after.act())
    const { purges } = await snapshotOf(second, after.now())
    t.match(purges, [
      { scope: { kind: 'device', id: 'd1' }, epoch: 'epoch-1', position, retained: true },
      { scope: { kind: 'plan', id: 'p3' }, devices: ['d3'], epoch: 'epoch-1', position, retained: false },
    ])
    t.equal(purges.length, 2, 'of those that are over nothing is known')
    await second.close()
  },
)

t.test('a snapshot that is still open when the registry closes is closed with it', async (t) => {
  const path = join(t.testdir({}), 'registry.db')
  const registry = await openRegistry(path, options)
  const { changes } = await registry.snapshot(BEGIN)
  await registry.close()
  const reader = changes[Symbol.asyncIterator]()
  await t.rejects(reader.next(), /not open/)
})
