/** A CONNECT that is answered in one turn leaves what the long way would leave. */
import t from 'tap'
import { openTestBroker, until } from '../support/broker.ts'
import { brokersOf } from '../support/broker-opener.ts'
import { connectPacket, openRaw } from '../support/mqtt-clients.ts'
import { testAuthority } from '../support/pki.ts'

const authority = await testAuthority()
t.teardown(() => authority.remove())

const open = brokersOf(authority)

const FILTER = { topic: 'devices/dev-1/#', qos: 1 as const }

t.test('a clean session ends the one that is kept under its client id', async (t) => {
  const broker = await open(t)
  const device = await broker.enroll('dev-1')
  const come = async (clean: boolean) => {
    const raw = await openRaw(broker, device)
    const { sessionPresent } = await raw.connect({ clientId: 'dev-1', clean })
    return { raw, sessionPresent }
  }
  const first = await come(false)
  first.raw.send({ cmd: 'subscribe', messageId: 1, subscriptions: [FILTER] })
  await first.raw.next('suback')
  first.raw.socket.destroy()
  await until(() => broker.sessions.count() === 0)
  const second = await come(false)
  t.equal(second.sessionPresent, true)
  second.raw.socket.destroy()
  await until(() => broker.sessions.count() === 0)
  const clean = await come(true)
  t.equal(clean.sessionPresent, false)
  clean.raw.socket.destroy()
  await until(() => broker.sessions.count() === 0)
  const last = await come(false)
  t.equal(last.sessionPresent, false)
  last.raw.socket.destroy()
})

t.test('what comes in the same octets as CONNECT is taken after it, in order', async (t) => {
  const broker = await open(t)
  const raw = await openRaw(broker, await broker.enroll('dev-1'))
  raw.send(
    connectPacket({ clientId: 'dev-1' }),
    { cmd: 'subscribe', messageId: 7, subscriptions: [FILTER] },
    { cmd: 'publish', topic: 'devices/dev-1/a', payload: 'x', qos: 0, dup: false, retain: false },
    { cmd: 'pingreq' },
  )
  await until(() => raw.received.length === 4)
  const kinds = raw.received.map(({ cmd }) => cmd)
  t.equal(kinds[0], 'connack')
  t.strictSame(kinds.toSorted(), ['connack', 'pingresp', 'publish', 'suback'])
  raw.socket.destroy()
})

t.test('much may come behind CONNECT, whichever way it takes', async (t) => {
  const broker = await openTestBroker({ authority, limits: { publishPerSecond: 0 } })
  t.teardown(() => broker.close())
  const device = await broker.enroll('dev-1')
  for (const clean of [true, false]) {
    const raw = await openRaw(broker, device)
    const messages = Array.from({ length: 300 }, (_, n) => ({
      ...({ cmd: 'publish', topic: 'devices/dev-1/a', payload: `${n}`, qos: 1, dup: false } as const),
      ...{ retain: false, messageId: n + 1 },
    }))
    raw.send(connectPacket({ clientId: 'dev-1', clean }), ...messages)
    await until(() => raw.received.length === 301)
    t.strictSame(
      raw.received.map(({ messageId = 0 }) => messageId),
      Array.from({ length: 301 }, (_, n) => n),
      'CONNACK, and a PUBACK for each in its order',
    )
    raw.socket.destroy()
    await until(() => broker.sessions.count() === 0)
  }
})

t.test(
  'the newer of two clean sessions of one client id stays, and a second CONNECT ends its own',
  async (t) => {
    const broker = await open(t)
    const device = await broker.enroll('dev-1')
    const [older, newer] = [await openRaw(broker, device), await openRaw(broker, device)]
    t.equal((await older.connect({ clientId: 'dev-1' })).returnCode, 0)
    t.equal((await newer.connect({ clientId: 'dev-1' })).returnCode, 0)
    await older.closed
    t.strictSame(broker.mqtt.registered(), { ids: ['dev-1'], counted: 1 })
    newer.send(connectPacket({ clientId: 'dev-1' }))
    await newer.closed
    await until(() => broker.mqtt.registered().counted === 0)
    t.strictSame(broker.mqtt.registered(), { ids: [], counted: 0 })
  },
)

t.test(
  'a client that says nothing more is disconnected after one and a half of its keep-alive',
  async (t) => {
    const broker = await open(t)
    const raw = await openRaw(broker, await broker.enroll('dev-1'))
    t.equal((await raw.connect({ clientId: 'dev-1', keepalive: 1 })).returnCode, 0)
    await raw.closed
    t.match(await broker.report('disconnected'), { reason: 'keepalive' })
  },
)
