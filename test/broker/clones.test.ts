import { once } from 'node:events'
import { connect as tcpConnect } from 'node:net'
import { duplexPair } from 'node:stream'
import { connect as tlsConnect } from 'node:tls'
import mqttPacket from 'mqtt-packet'
import t from 'tap'
import { farewell, guardSocket, holdReading } from '../../broker/door/guarded-socket.ts'
import { CloneWatch, type Takeover } from '../../broker/judge/clone-watch.ts'
import { LIMITS } from '../../broker/limits.ts'
import { PATIENCE_MS, type TestBroker, until } from '../support/broker.ts'
import { brokersOf } from '../support/broker-opener.ts'
import { connectPacket, openRaw, type Presented, RawClient } from '../support/mqtt-clients.ts'
import { Piped } from '../support/piped.ts'
import { testAuthority } from '../support/pki.ts'
import { openWebSocket, tlsOf } from '../support/web-socket.ts'

const authority = await testAuthority()
t.teardown(() => authority.remove())

const open = brokersOf(authority)

const HERE = '127.0.0.7'
const THERE = '127.0.0.8'

/** A client of this address; tls.connect passes it on, but does not declare it. */
async function join(broker: TestBroker, device: Presented, localAddress: string): Promise<RawClient> {
  const raw = await openRaw(broker, device, { localAddress } as object)
  raw.send(connectPacket({ clientId: device.id ?? '' }))
  await raw.next('connack')
  return raw
}

/** The same over a network that is cut when it is told to: from then on neither side hears of the other. */
async function joinOverNetwork(broker: TestBroker, device: Presented, localAddress: string) {
  const { id = '', keyPem = '', chainPem = '' } = device
  const tcp = tcpConnect({ port: broker.port, host: '127.0.0.1', localAddress, allowHalfOpen: true })
  const socket = tlsConnect({
    socket: tcp,
    ca: authority.rootPem,
    servername: 'localhost',
    key: keyPem,
    cert: chainPem,
  })
  const raw = new RawClient(socket)
  raw.send(connectPacket({ clientId: id }))
  await raw.next('connack')
  return { raw, cut: () => tcp.pause(), end: () => tcp.destroy() }
}

t.test('two that take one identity from each other are an alarm at the third time', async (t) => {
  const broker = await open(t)
  const a = await broker.enroll('A')
  let clients = [await join(broker, a, HERE)]
  for (const address of [THERE, HERE, THERE, HERE]) {
    const next = await join(broker, a, address)
    await clients[0]?.closed
    clients = [next]
  }
  t.match(await broker.report('refused', ({ code }) => code === 'R-CLONE'), {
    device: 'A',
    evidence: { address: HERE, otherAddress: THERE, takeovers: 3, withinS: 60 },
  })
  await until(() => broker.sessions.count() === 1)
  t.equal(broker.refusals('R-CLONE').length, 1, 'once a minute')
  t.match(broker.logged(), /clone alarm/)
  await clients[0]?.ping()
  clients[0]?.socket.destroy()
})

t.test('a device whose network is lost again and again, at one address or another, is none', async (t) => {
  const broker = await open(t)
  const a = await broker.enroll('A')
  const networks = []
  for (const address of [HERE, THERE, HERE, THERE, HERE]) {
    const network = await joinOverNetwork(broker, a, address)
    network.cut()
    networks.push(network)
  }
  await until(() => broker.sessions.count() === 1)
  t.equal(broker.refusals('R-DUPLICATE').length, 4)
  t.same(broker.refusals('R-CLONE'), [])
  for (const { end } of networks) end()
})

t.test('nor is one that comes by WebSocket', async (t) => {
  const broker = await open(t)
  const a = await broker.enroll('A')
  const sockets = []
  for (const localAddress of [HERE, THERE, HERE, THERE, HERE]) {
    const socket = await openWebSocket(broker, a, { localAddress })
    socket.send(mqttPacket.generate(connectPacket({ clientId: 'A' })))
    await once(socket, 'message', { signal: AbortSignal.timeout(PATIENCE_MS) })
    tlsOf(socket).pause() // it hears no more of the broker
    sockets.push(socket)
  }
  await until(() => broker.sessions.count() === 1)
  t.equal(broker.refusals('R-DUPLICATE').length, 4)
  t.same(broker.refusals('R-CLONE'), [])
  for (const socket of sockets) socket.terminate()
})

t.test('of a client that is let go in peace nothing is looked at but whether it closes', async (t) => {
  const violations: string[] = []
  const [theirs, socket] = duplexPair()
  guardSocket(socket, { limits: LIMITS, onViolation: (rule) => violations.push(rule), onSlow() {} })
  socket.push(Buffer.from('100c00044d51545404020000', 'hex'))
  holdReading(socket, PATIENCE_MS)
  const parted = Promise.withResolvers<boolean>()
  farewell(socket, { ms: PATIENCE_MS, done: parted.resolve })
  for (let n = 0; n < 3; n++) socket.push(Buffer.alloc(100, 0xff))
  theirs.resume().end()
  t.equal(await parted.promise, true, 'it has answered, although it was held')
  t.same(violations, [])
})

t.test('nothing reaches a client that was replaced, and a revocation closes it at once', async (t) => {
  const broker = await open(t)
  const a = await broker.enroll('A')
  const old = await joinOverNetwork(broker, a, HERE)
  old.raw.send({ cmd: 'subscribe', messageId: 1, subscriptions: [{ topic: 'devices/A/#', qos: 0 }] })
  await old.raw.next('suback')
  old.cut()
  const next = await join(broker, a, THERE)
  next.send({ cmd: 'subscribe', messageId: 1, subscriptions: [{ topic: 'devices/A/#', qos: 0 }] })
  await next.next('suback')
  next.send({ cmd: 'publish', topic: 'devices/A/x', payload: 'x', qos: 0, retain: false, dup: false })
  await next.next('publish')
  t.same(broker.mqtt.registered(), { ids: ['A'], counted: 1 })
  const connections = broker.sessions.select({ kind: 'device', id: 'A' })
  const revoked = broker.revoke(a)
  t.same(
    connections.map(({ socket }) => socket.destroyed),
    [true, true],
    'also the one that is being let go in peace',
  )
  const { survivors } = await revoked
  t.same(survivors, [])
  await next.closed
  t.equal(broker.sessions.count(), 0)
  t.same(old.raw.received, [])
  old.end()
})

t.test(
  'a client that says goodbye and is there again in the same turn was taken over by nobody',
  async (t) => {
    const broker = await open(t)
    await broker.enroll('A')
    const old = await (await new Piped(broker, 'A').enter()).subscribe({ topic: 'devices/A/#', qos: 0 })
    const next = new Piped(broker, 'A')
    old.writeAtOnce(mqttPacket.generate({ cmd: 'disconnect' }))
    next.writeAtOnce(mqttPacket.generate(connectPacket({ clientId: 'A' })))
    await next.has('connack')
    t.match(await broker.report('disconnected'), { reason: 'client' })
    t.same(broker.refusals(), [])
    t.notOk(next.isClosed)
    next.close()
  },
)

t.test('takeovers count when the addresses differ, somebody was there, and within a minute', async (t) => {
  const alarms = (...takeovers: Partial<Takeover>[]) => {
    const watch = new CloneWatch()
    const usual = { clientId: 'A', from: '192.0.2.1', to: '192.0.2.2', wasAlive: true, now: 0 }
    return takeovers.map((one) => watch.saw({ ...usual, ...one }))
  }
  t.same(alarms({}, {}, {}, {}), [null, null, 3, null])
  t.same(alarms({}, { wasAlive: false }, {}), [null, null, 3], 'the copy need not answer')
  t.same(alarms({}, { wasAlive: false }, { wasAlive: false }, { wasAlive: false }), [null, null, null, null])
  t.same(alarms({}, { clientId: 'B' }, {}, { clientId: 'B' }), [null, null, null, null])
  t.same(alarms({}, { now: 30_000 }, { now: 60_000 }, { now: 61_000 }), [null, null, null, 3])
  t.same(alarms({}, {}, {}, { now: 59_999 }, { now: 60_000 }, { now: 60_001 }), [
    null,
    null,
    3,
    null,
    null,
    3,
  ])
  const flapping = { from: '2001:db8::1', to: '2001:db8::2' }
  t.same(alarms(flapping, flapping, flapping), [null, null, null], 'one /64 is one place')
  const watch = new CloneWatch()
  for (let n = 0; n < 5_000; n++) {
    watch.saw({ clientId: `c${n}`, from: 'x', to: 'y', wasAlive: true, now: n * 1_000 })
  }
  let looked = 0
  const now = { [Symbol.toPrimitive]: () => ++looked && 10_000_000 } as unknown as number // counts who is looked at
  for (let n = 0; n < 5_000; n++) watch.saw({ clientId: `d${n}`, from: 'x', to: 'y', wasAlive: true, now })
  t.ok(looked < 100_000, `${looked} steps for a fleet that moves at once`)
})
