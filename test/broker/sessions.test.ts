import { PassThrough } from 'node:stream'
import t from 'tap'
import { openLog } from '#shared/log'
import { Enforcement } from '../../broker/enforcement.ts'
import { compilePolicy } from '../../broker/judge/topic-policy.ts'
import type { Replica } from '../../broker/replica/replica.ts'
import { type Connection, openConnection, Sessions } from '../../broker/sessions.ts'
import { DEVICE_POLICY } from '../support/broker.ts'

let connections = 0
function connection(device: string, change: Partial<Connection> = {}): Connection {
  return openConnection({
    id: `c${++connections}`,
    socket: new PassThrough(),
    fingerprint: `f-${device}`,
    serial: '01',
    device,
    kind: 'device',
    batch: 'b1',
    fleet: 'default',
    issuer: 'ca-1',
    address: '127.0.0.1',
    openedAt: 0,
    policy: compilePolicy(DEVICE_POLICY, { id: device, fleet: 'default' }),
    ...change,
  })
}
const ids = (list: readonly Connection[]) => list.map(({ device }) => device).sort()
const revoked = { judge: () => 'revoked' as const, since: 0 }

t.test(
  'connections are found by certificate, device, batch, fleet, issuer, list and altogether',
  async (t) => {
    const sessions = new Sessions({ now: () => 0 })
    const a = connection('a')
    const b = connection('b', { batch: 'b2', issuer: 'ca-2' })
    const c = connection('c', { batch: null, fleet: 'other' })
    for (const one of [a, b, c]) sessions.add(one)
    t.equal(sessions.count(), 3)
    t.same(ids(sessions.select({ kind: 'all' })), ['a', 'b', 'c'])
    t.same(ids(sessions.select({ kind: 'certificate', id: 'f-a' })), ['a'])
    t.same(ids(sessions.select({ kind: 'device', id: 'b' })), ['b'])
    t.same(ids(sessions.select({ kind: 'batch', id: 'b1' })), ['a'])
    t.same(ids(sessions.select({ kind: 'fleet', id: 'default' })), ['a', 'b'])
    t.same(ids(sessions.select({ kind: 'issuer', id: 'ca-1' })), ['a', 'c'])
    t.same(ids(sessions.select({ kind: 'devices', ids: new Set(['a', 'c', 'x']) })), ['a', 'c'])
    t.same(ids(sessions.select({ kind: 'devices', ids: new Set(['a', 'x', 'y', 'z', 'zz']) })), ['a'])
    t.same(sessions.select({ kind: 'batch', id: '__proto__' }), [])
    t.throws(() => sessions.select({ kind: 'plan', id: 'p' }), RangeError)
    sessions.remove(a)
    sessions.remove(a)
    t.equal(sessions.count(), 2)
    t.same(sessions.select({ kind: 'certificate', id: 'f-a' }), [])
  },
)

t.test('two sockets of one device are both found, and one leaves without the other', async (t) => {
  const sessions = new Sessions({ now: () => 0 })
  const [first, second] = [connection('a'), connection('a')]
  sessions.add(first)
  sessions.add(second)
  t.equal(sessions.select({ kind: 'device', id: 'a' }).length, 2)
  sessions.remove(first)
  t.same(sessions.select({ kind: 'device', id: 'a' }), [second])
})

t.test('close marks all in the tick of the call, and spares whom the judge spares', async (t) => {
  const sessions = new Sessions({ now: () => 70, sliceSize: 2 })
  const all = ['a', 'b', 'c', 'd', 'e'].map((id) => connection(id))
  for (const one of all) {
    sessions.add(one)
    one.socket.once('close', () => sessions.remove(one))
  }
  const judge = ({ device }: Connection) => (device === 'c' ? null : ('held' as const))
  const closing = sessions.close({ kind: 'fleet', id: 'default' }, { judge, since: 50 })
  t.same(
    all.map(({ refused }) => refused),
    ['held', 'held', null, 'held', 'held'],
  )
  t.equal(all.filter(({ socket }) => socket.destroyed).length, 2, 'sockets follow slice by slice')
  t.same(await closing, { closed: 4, closeMs: [20, 20, 20, 20], survivors: [] })
  t.equal(sessions.count(), 1)
})

t.test(
  'a second decision about the same sockets waits for them too, and the first reason stays',
  async (t) => {
    const sessions = new Sessions({ now: () => 0 })
    const a = connection('a')
    sessions.add(a)
    const first = sessions.close({ kind: 'all' }, { judge: () => 'held', since: 0 })
    const second = sessions.close({ kind: 'device', id: 'a' }, revoked)
    t.equal(a.refused, 'held')
    t.equal((await first).closed, 1)
    t.equal((await second).closed, 1)
    t.same(await sessions.close({ kind: 'device', id: 'x' }, revoked), {
      closed: 0,
      closeMs: [],
      survivors: [],
    })
  },
)

t.test('a socket that does not close is a survivor by name after the deadline', async (t) => {
  const sessions = new Sessions({ now: () => 0, deadlineMs: 20 })
  const stuck = new PassThrough({ destroy: () => {} })
  sessions.add(connection('stuck', { socket: stuck }))
  sessions.add(connection('b'))
  t.match(await sessions.close({ kind: 'all' }, revoked), { closed: 1, survivors: ['stuck'] })
})

t.test('closing one of 10 000 sessions looks at one', async (t) => {
  const sessions = new Sessions({ now: () => 0 })
  for (let n = 0; n < 10_000; n++) sessions.add(connection(`d${n}`, { socket: new PassThrough() }))
  let looked = 0
  const judge = () => {
    looked++
    return null
  }
  await sessions.close({ kind: 'device', id: 'd77' }, { judge, since: 0 })
  t.equal(looked, 1)
})

t.test('a new policy of the fleet reaches every session of it at once', async (t) => {
  const sessions = new Sessions({ now: () => 0 })
  const live = (id: string, fleet: string) => {
    const device = { id, kind: 'device', fleet, batch: null, state: 'active' } as const
    const record = { device, fleet: { id: fleet, policy: DEVICE_POLICY, policyEpoch: 1 } }
    return connection(id, { fleet, policy: sessions.policyFor(record, '127.0.0.1') })
  }
  const [a, other] = [live('a', 'default'), live('b', 'other')]
  sessions.add(a)
  sessions.add(other)
  t.ok(a.policy.mayReceive('devices/a/x'))
  sessions.setPolicy({ id: 'default', policy: { publish: [], subscribe: [] }, policyEpoch: 2 })
  t.notOk(a.policy.mayReceive('devices/a/x'))
  t.ok(other.policy.mayReceive('devices/b/x'))
})

t.test('a device that is back while others are purged keeps what it has now', async (t) => {
  const sessions = new Sessions({ now: () => 0 })
  const purged: string[] = []
  const enforcement = new Enforcement({
    ...{ replica: {} as Replica, sessions, report() {}, trustChanged() {}, now: () => 0 }, // it is not asked about devices that are away
    async purge(devices) {
      if (purged.length === 0) sessions.add(connection('d59'))
      purged.push(...devices)
    },
    log: openLog('test', 'silent', new PassThrough().resume()),
  })
  const devices = Array.from({ length: 60 }, (_, index) => `d${index}`)
  enforcement.changed(
    devices.map((device, at) => ({
      ...{ type: 'change', position: at + 1, at: 0 },
      change: { kind: 'forgotten', device },
    })),
  )
  await enforcement.settled()
  t.same(purged, devices.slice(0, -1))
})
