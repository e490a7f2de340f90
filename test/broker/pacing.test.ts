import { type Socket, connect as tcpConnect } from 'node:net'
import t, { type Test } from 'tap'
import { addressGroup } from '../../broker/door/address-group.ts'
import { Budgets } from '../../broker/door/budgets.ts'
import { type Arrival, Pacer, type PacerDeps } from '../../broker/door/pacing.ts'
import { TokenBuckets } from '../../broker/door/token-buckets.ts'
import { LIMITS } from '../../broker/limits.ts'
import { openTestBroker, type TestBroker, type TestBrokerOptions, until } from '../support/broker.ts'
import { connectPacket, enter, openRaw, type Presented } from '../support/mqtt-clients.ts'
import { testAuthority } from '../support/pki.ts'
import fc from '../support/properties.ts'

const authority = await testAuthority()
t.teardown(() => authority.remove())

async function open(t: Test, limits: TestBrokerOptions['limits'] = {}): Promise<TestBroker> {
  const broker = await openTestBroker({ authority, limits })
  t.teardown(() => broker.close())
  return broker
}

/** A pacer whose clock is turned by hand, and what became of who arrived. */
function pacerOf(limits: Partial<PacerDeps['limits']> = {}) {
  let now = 0
  let due: { readonly at: number; readonly work: () => void } | null = null
  const entered: string[] = []
  const dropped: string[] = []
  const state = { isClosing: false, banned: new Set<string>() }
  const pacer = new Pacer({
    limits: { ...LIMITS, handshakesPerSecond: 1_000, handshakeBurst: 2, ...limits },
    clock: () => now,
    later(work, ms) {
      due = { at: now + ms, work }
      return () => {
        due = null
      }
    },
    bannedMs: (group) => (state.banned.has(group) ? 1_000 : 0),
    isClosing: () => state.isClosing,
  })
  return {
    ...{ pacer, entered, dropped, state },
    isIdle: () => due === null,
    arrive(group: string, name = group): Arrival {
      const arrival: Arrival = {
        group,
        enter: () => void entered.push(name),
        drop: (why) => void dropped.push(`${name} ${why}`),
      }
      pacer.arrive(arrival)
      return arrival
    },
    /** Runs the timer that is due next, so much too late. */
    turn(lagMs = 0): void {
      if (due === null) return
      const { at, work } = due
      due = null
      now = at + lagMs
      work()
    },
  }
}

t.test('a burst begins at once, and the others address by address, each one’s oldest first', async (t) => {
  const { arrive, entered, dropped, turn, isIdle } = pacerOf()
  for (const name of ['a1', 'a2', 'a3', 'a4', 'a5', 'a6']) arrive('a', name)
  for (const name of ['b1', 'c1', 'b2']) arrive(name.slice(0, 1), name)
  t.same(entered, ['a1', 'a2'])
  turn()
  t.same(entered, ['a1', 'a2', 'a3', 'b1'], 'no more than a burst in one turn')
  for (let turns = 0; turns < 3; turns++) turn()
  t.same(entered.slice(4), ['c1', 'a4', 'b2', 'a5', 'a6'])
  t.same(dropped, [])
  t.ok(isIdle(), 'nothing ticks while nobody waits')
})

t.test('handshakes become fewer while the event loop is late, and more when it is not', async (t) => {
  const { pacer, arrive, turn } = pacerOf({ handshakesPerSecondLeast: 10, waitingMs: 3_600_000 })
  for (let n = 0; n < 4_000; n++) arrive('a')
  for (let turns = 0; turns < 30; turns++) turn(LIMITS.loopLagMs + 1)
  t.equal(pacer.rate, 10)
  turn(LIMITS.loopLagMs)
  t.equal(pacer.rate, 30)
  for (let turns = 0; turns < 60; turns++) turn()
  t.equal(pacer.rate, 1_000)
})

t.test('nobody enters while sessions are being closed', async (t) => {
  const { arrive, entered, state, turn } = pacerOf()
  state.isClosing = true
  arrive('a')
  turn()
  t.same(entered, [])
  state.isClosing = false
  turn()
  t.same(entered, ['a'])
})

t.test('an address that is over its budget waits, and nobody else with it', async (t) => {
  const { arrive, entered, dropped, state, turn } = pacerOf({ waitingMs: 100 })
  state.banned.add('bad')
  arrive('bad', 'bad1')
  arrive('good')
  turn()
  t.same(entered, ['good'])
  for (let turns = 0; turns < 10; turns++) turn()
  t.same(dropped, ['bad1 waitingMs'])
  arrive('bad', 'bad2')
  state.banned.clear()
  turn()
  t.same(entered, ['good', 'bad2'])
})

t.test('who has most waiting makes room for others, and who has closed is not waited for', async (t) => {
  const { arrive, entered, dropped, pacer, turn } = pacerOf({ waitingConnections: 4 })
  const [, , a1] = [arrive('a'), arrive('a'), arrive('a', 'a1')]
  for (const name of ['a2', 'a3', 'a4']) arrive('a', name)
  arrive('b', 'b1')
  t.same(dropped, ['a4 waitingConnections'], 'the newest of the greedy one')
  arrive('a', 'a5')
  t.same(dropped, ['a4 waitingConnections', 'a5 waitingConnections'], 'which gets no place of another')
  pacer.leave(a1)
  pacer.leave(a1)
  t.equal(pacer.waiting, 3)
  for (let turns = 0; turns < 5; turns++) turn()
  t.same(entered, ['a', 'a', 'a2', 'b1', 'a3'])
})

t.test('whatever comes, leaves and lags: everybody enters, is dropped or left, once', async (t) => {
  const step = fc.oneof(
    fc.record({ kind: fc.constant('arrive'), group: fc.nat(4) }),
    fc.record({ kind: fc.constant('leave'), which: fc.nat(50) }),
    fc.record({ kind: fc.constant('turn'), lag: fc.nat(300) }),
    fc.record({ kind: fc.constant('ban'), group: fc.nat(4) }),
    fc.record({ kind: fc.constant('unban') }),
  )
  fc.assert(
    fc.property(fc.array(step, { maxLength: 120 }), (steps) => {
      const { pacer, arrive, entered, dropped, state, turn } = pacerOf({ waitingConnections: 6 })
      const arrivals: Arrival[] = []
      let left = 0
      for (const step of steps) {
        if ('group' in step && step.kind === 'arrive') arrivals.push(arrive(`g${step.group}`))
        else if ('group' in step) state.banned.add(`g${step.group}`)
        else if ('lag' in step) turn(step.lag)
        else if ('which' in step) {
          const one = arrivals[step.which]
          const before = pacer.waiting
          if (one !== undefined) pacer.leave(one)
          left += before - pacer.waiting
        } else state.banned.clear()
        if (pacer.waiting > 6) return false
      }
      pacer.stop()
      return entered.length + dropped.length + left === arrivals.length
    }),
  )
  t.pass()
})

t.test('addresses count for themselves, and those of IPv6 for their /64', async (t) => {
  for (const [address, group] of [
    ['192.0.2.7', '192.0.2.7'],
    ['::ffff:192.0.2.7', '192.0.2.7'],
    ['2001:db8:1:2:3:4:5:6', '2001:db8:1:2::/64'],
    ['2001:db8:1:2::1', '2001:db8:1:2::/64'],
    ['2001:0DB8:0001:0002:ffff::', '2001:db8:1:2::/64'],
    ['2001:db8::9', '2001:db8:0:0::/64'],
    ['fe80::1%eth0', 'fe80:0:0:0::/64'],
    ['::1', '0:0:0:0::/64'],
    ['::', '0:0:0:0::/64'],
    ['64:ff9b::192.0.2.7', '64:ff9b:0:0::/64'],
    ['', ''],
  ] as const) {
    t.equal(addressGroup(address), group, address)
  }
  fc.assert(
    fc.property(fc.ipV6(), (address) => {
      const group = addressGroup(address)
      return /^([0-9a-f]{1,4}:){4}:\/64$/.test(group) || group === address.replace(/^::ffff:/i, '')
    }),
  )
})

t.test('places come back however sockets come and go', async (t) => {
  const act = fc.record({ what: fc.constantFrom('take', 'admit', 'free'), which: fc.nat(20) })
  fc.assert(
    fc.property(fc.array(act, { maxLength: 200 }), (acts) => {
      const limits = { ...LIMITS, connections: 9, connectionsPerAddress: 4, halfOpenPerAddress: 2 }
      const budgets = new Budgets(limits)
      const held: Exclude<ReturnType<Budgets['take']>, string>[] = []
      for (const { what, which } of acts) {
        const place = held[which]
        if (what === 'take') {
          const taken = budgets.take(`192.0.2.${which % 5}`)
          if (typeof taken !== 'string') held.push(taken)
        } else if (place !== undefined && what === 'admit') budgets.admitted(place)
        else if (place !== undefined) budgets.free(...(held.splice(which, 1) as [typeof place])) // it is there
        const ofGroup = (group: string) => held.filter((one) => one.group === group)
        for (const { group } of held) {
          const own = ofGroup(group)
          if (own.length > 4 || own.filter((one) => one.isHalfOpen).length > 2) return false
          if (budgets.open(group) !== own.length) return false
        }
        if (held.length > 9 || budgets.open() !== held.length) return false
      }
      return true
    }),
  )
  t.pass()
})

t.test('an emptied bucket fills with time, and costs no more than one burst of waiting', async (t) => {
  const buckets = new TokenBuckets({ burst: 2, perSecond: 1 })
  t.same(
    [1, 2, 3].map(() => buckets.take('a', { now: 0 })),
    [true, true, false],
  )
  for (let n = 0; n < 100; n++) buckets.take('a', { now: 0, cost: 10 })
  t.equal(buckets.waitMs('a', 0), 3_000)
  t.equal(buckets.waitMs('a', -5_000), 3_000, 'a clock that is set back')
  t.equal(buckets.waitMs('a', 3_000), 0)
  t.equal(buckets.waitMs('b', 0), 0)
  for (let n = 0; n < 10_000; n++) buckets.take(`k${n}`, { now: 4_000 })
  t.ok(buckets.take('a', { now: 4_000 }))
})

/** Opens TCP and says nothing. */
function silent(broker: TestBroker, localAddress = '127.0.0.1'): Socket {
  const socket = tcpConnect({ port: broker.port, host: '127.0.0.1', localAddress })
  return socket.on('error', () => {}).resume()
}
/** Another address of this machine; tls.connect passes it on, but does not declare it. */
const from = (localAddress: string): object => ({ localAddress })
const closed = (socket: Socket) => new Promise<void>((resolve) => socket.once('close', () => resolve()))

t.test('strangers who say nothing are gone soon, and a device connects all the while', async (t) => {
  const broker = await open(t, { handshakeMs: 1_000, waitingMs: 1_000, halfOpenPerAddress: 100 })
  const device = await broker.enroll('A')
  const crowd = Array.from({ length: 300 }, (_, n) => silent(broker, `127.0.1.${1 + (n % 2)}`))
  const gone = Promise.all(crowd.map(closed))
  const raw = await enter(broker, device)
  await gone
  await raw.ping()
  t.match(await broker.report('refused'), {
    code: 'R-RATE',
    device: null,
    address: /127.0.1/,
    evidence: { limit: 'halfOpenPerAddress', retryAfterS: 1 },
  })
  t.equal(broker.refusals('R-RATE').length, 2, 'once for each address')
  t.equal(broker.listener.open(), 1)
  raw.socket.destroy()
  await until(() => broker.listener.open() === 0)
})

t.test('one address has its share of the places, and others have theirs', async (t) => {
  const broker = await open(t, { connectionsPerAddress: 2 })
  const ids = ['A', 'B', 'C', 'D'] as const
  const [a, b, c, d] = await Promise.all(ids.map((id) => broker.enroll(id)))
  if (!a || !b || !c || !d) return t.fail()
  const [first, second] = [await enter(broker, a), await enter(broker, b)]
  await t.rejects(openRaw(broker, c))
  t.match(await broker.report('refused'), { code: 'R-RATE', evidence: { limit: 'connectionsPerAddress' } })
  const other = await openRaw(broker, d, from('127.0.0.9'))
  t.equal((await other.connect({ clientId: 'D' })).returnCode, 0)
  first.socket.destroy()
  await until(async () => (await openRaw(broker, c).catch(() => null))?.socket.destroy() !== undefined)
  second.socket.destroy()
  other.socket.destroy()
})

t.test(
  'clients that are let in take no half-open place: a factory behind one address comes in',
  async (t) => {
    const broker = await open(t, { halfOpenPerAddress: 2 })
    const devices = await Promise.all(['A', 'B', 'C', 'D', 'E'].map((id) => broker.enroll(id)))
    const clients = []
    for (const device of devices) clients.push(await enter(broker, device))
    t.equal(broker.sessions.count(), 5)
    for (const { socket } of clients) socket.destroy()
  },
)

t.test(
  'a certificate that connects too often is told to come later, reported once, and comes back',
  async (t) => {
    const clock = { offsetMs: 0 }
    const broker = await openTestBroker({
      authority,
      limits: { connectsPerMinute: 3 },
      now: () => Date.now() + clock.offsetMs,
    })
    t.teardown(() => broker.close())
    const [a, b] = [await broker.enroll('A'), await broker.enroll('B')]
    const codes: (number | undefined)[] = []
    for (let n = 0; n < 6; n++) codes.push(await returnCode(broker, a))
    t.same(codes.slice(0, 3), [0, 0, 0])
    t.same(codes.slice(4), [3, 3], 'not "not authorized": its credential is good')
    t.equal(broker.refusals('R-RATE').length, 1)
    t.match(broker.refusals('R-RATE'), [{ device: 'A', evidence: { address: '127.0.0.1', retryAfterS: 20 } }])
    t.equal(await returnCode(broker, b), 0, 'nobody else is concerned')
    clock.offsetMs = 3 * 60_000
    t.equal(await returnCode(broker, a), 0)
  },
)

async function returnCode(broker: TestBroker, presented: Presented): Promise<number | undefined> {
  const raw = await openRaw(broker, presented)
  raw.send(connectPacket({ clientId: presented.id ?? '' }))
  const packet = await raw.next('connack')
  raw.socket.destroy()
  return packet.cmd === 'connack' ? packet.returnCode : undefined
}

t.test('revoked devices that hammer wait before the handshake, and good ones elsewhere do not', async (t) => {
  const broker = await open(t, { refusedPerMinute: 12, connectsPerMinute: 4, waitingMs: 1_000 })
  const bad = await Promise.all(Array.from({ length: 6 }, (_, n) => broker.enroll(`bad-${n}`)))
  for (const device of bad) await broker.revoke(device)
  const good = await broker.enroll('good')
  let isOver = false
  const hammer = async (device: Presented) => {
    while (!isOver)
      await openRaw(broker, device).then(
        (raw) => raw.connect().catch(() => {}),
        () => {},
      )
  }
  const hammering = bad.map(hammer)
  await broker.report('refused', ({ code, evidence }) => code === 'R-RATE' && evidence.limit === 'waitingMs')
  const handshakes = broker.refusals().length
  for (let n = 0; n < 3; n++) {
    const raw = await openRaw(broker, good, from('127.0.0.9'))
    t.equal((await raw.connect({ clientId: 'good' })).returnCode, 0)
    raw.socket.destroy()
  }
  isOver = true
  await Promise.all(hammering)
  t.ok(handshakes <= 40, `${handshakes} handshakes were made for nothing`)
})
