/** Every door of the broker leads through the same gate: what is refused at one is refused at all. */
import { once } from 'node:events'
import { request } from 'node:https'
import { connectAsync, type IClientOptions } from 'mqtt'
import mqttPacket from 'mqtt-packet'
import t from 'tap'
import { refusalCode } from '#shared/refusals'
import { until } from '../support/broker.ts'
import { brokersOf } from '../support/broker-opener.ts'
import { connectDevice, connectPacket, openRaw } from '../support/mqtt-clients.ts'
import { testAuthority } from '../support/pki.ts'
import { HOSTILE, type HostileName, hostileIdentity } from '../support/pki-hostile.ts'
import { DOORS, type DoorClient, openWebSocket, tlsOf } from '../support/web-socket.ts'

const authority = await testAuthority()
t.teardown(() => authority.remove())

const open = brokersOf(authority)

const connectAs = (clientId: string) => mqttPacket.generate(connectPacket({ clientId }))
const ACCEPTED = '20020000'
const REFUSED = '20020005'

/** What the client hears to its CONNECT. */
async function answer(client: DoorClient, clientId: string): Promise<string> {
  client.send(connectAs(clientId))
  await Promise.race([client.closed, until(() => client.octets().length >= 4)])
  return client.octets().toString('hex')
}

/** Octets that no client sends before it is let in. */
const BEFORE_CONNECT = {
  'another first packet': Buffer.from('c000', 'hex'),
  'CONNECT of 4 097 octets': Buffer.from('108120', 'hex'),
  'CONNECT of 256 MB': Buffer.from('10ffffff7f', 'hex'),
  'five octets of length': Buffer.from('10ffffffff01', 'hex'),
  'half a CONNECT': Buffer.from('100d00044d5154', 'hex'),
  nothing: Buffer.alloc(0),
}

for (const [door, enter] of Object.entries(DOORS)) {
  t.test(
    `${door}: certificates that are not as they should be are refused with their own codes`,
    async (t) => {
      const broker = await open(t)
      const names: HostileName[] = Object.keys(HOSTILE).filter((name) => !WEAK.has(name)) as HostileName[] // its keys
      for (const name of names) {
        const presented = await hostileIdentity(authority, name)
        const client = await enter(broker, presented)
        t.equal(await answer(client, 'dev-1'), REFUSED, name)
        const { fingerprint } = presented
        const report = await broker.report('refused', (refused) => refused.fingerprint === fingerprint)
        t.equal(report.code, refusalCode(HOSTILE[name][0]), name)
        client.destroy()
      }
      t.equal(await answer(await enter(broker, {}), 'dev-1'), REFUSED)
      t.equal(broker.refusals('R-NOCERT').length, 1)
      t.equal(broker.sessions.count(), 0)
    },
  )

  t.test(`${door}: octets before CONNECT are few and soon over, from strangers too`, async (t) => {
    const broker = await open(t, { limits: { connectMs: 300 } })
    const device = await broker.enroll('dev-1')
    for (const presented of [device, {}]) {
      for (const [name, octets] of Object.entries(BEFORE_CONNECT)) {
        const client = await enter(broker, presented)
        client.send(octets)
        await client.closed
        t.equal(client.octets().length, 0, name)
      }
    }
    t.equal(broker.refusals('R-PACKET').length, Object.keys(BEFORE_CONNECT).length)
    t.equal(broker.refusals('R-NOCERT').length, Object.keys(BEFORE_CONNECT).length)
    t.equal(broker.sessions.count(), 0)
  })

  t.test(`${door}: a client is who its certificate says, and leaves when that is revoked`, async (t) => {
    const broker = await open(t)
    const [device, other] = [await broker.enroll('dev-1'), await broker.enroll('dev-2')]
    t.equal(await answer(await enter(broker, device), 'dev-2'), REFUSED)
    t.match(broker.refusals(), [{ code: 'R-IDMISMATCH', device: 'dev-1' }])
    const client = await enter(broker, device)
    t.equal(await answer(client, 'dev-1'), ACCEPTED)
    const peer = await enter(broker, other)
    t.equal(await answer(peer, 'dev-2'), ACCEPTED)
    t.same((await broker.revoke(device)).survivors, [])
    await client.closed
    t.equal(await answer(await enter(broker, device), 'dev-1'), REFUSED)
    t.match(broker.refusals('R-REVOKED').at(-1), { device: 'dev-1' })
    t.equal(broker.sessions.count(), 1)
    peer.destroy()
  })

  t.test(
    `${door}: a packet that is too long is over with its header, and a topic of another is denied`,
    async (t) => {
      const broker = await open(t)
      const device = await broker.enroll('dev-1')
      const hostile = {
        'a PUBLISH of 64 MB': Buffer.from('308080801e', 'hex'),
        'a PUBLISH into the tree of another': mqttPacket.generate({
          ...{ cmd: 'publish', topic: 'devices/dev-2/up', payload: 'x', qos: 0, dup: false, retain: false },
        }),
        'a NUL in a topic': Buffer.from('3005000361006200', 'hex'),
      }
      for (const [name, octets] of Object.entries(hostile)) {
        const client = await enter(broker, device)
        t.equal(await answer(client, 'dev-1'), ACCEPTED)
        client.send(octets)
        await client.closed
        t.pass(name)
      }
      await until(() => broker.sessions.count() === 0)
    },
  )

  t.test(`${door}: a client that does not read loses its connection, nobody else waits`, async (t) => {
    const broker = await open(t, { limits: { writeBufferBytes: 65_536, publishPerSecond: 0 } })
    const device = await broker.enroll('dev-1')
    const client = await enter(broker, device)
    t.equal(await answer(client, 'dev-1'), ACCEPTED)
    const subscription = { topic: 'devices/dev-1/#', qos: 0 } as const
    client.send(mqttPacket.generate({ cmd: 'subscribe', messageId: 1, subscriptions: [subscription] }))
    await until(() => client.octets().length >= 9)
    const [connection] = broker.sessions.select({ kind: 'device', id: 'dev-1' })
    t.ok(connection)
    // Nothing is sent while the socket is corked, as when the network takes nothing.
    const big = Buffer.alloc(100_000)
    for (let i = 0; i < 40 && connection?.socket.destroyed === false; i++) connection.socket.write(big)
    await client.closed
    t.match(await broker.report('refused'), { code: 'R-PACKET', evidence: { violation: /does not read/ } })
  })
}

/** Certificates that a TLS client of today does not even present without lowering its security level. */
const WEAK = new Set<string>(
  Object.keys(HOSTILE).filter((name) => /SHA-1|RSA|1024|v1|version 1|sha1/i.test(name)),
)

t.test('mqtt.js publishes and subscribes over WebSocket, and TLS sessions are resumed there', async (t) => {
  const broker = await open(t)
  const device = await broker.enroll('dev-1')
  const settings: object = {
    ...{ protocol: 'wss', port: broker.listener.webSocketPort, path: '/mqtt', host: 'localhost' },
    wsOptions: { ca: authority.rootPem, key: device.keyPem, cert: device.chainPem },
  }
  const client = await connectAsync({ ...settings, clientId: 'dev-1', reconnectPeriod: 0 } as IClientOptions) // `wsOptions` is any
  const received = new Promise<[string, Buffer]>((resolve) =>
    client.once('message', (topic, payload) => resolve([topic, payload])),
  )
  await client.subscribeAsync('devices/dev-1/#', { qos: 1 })
  await client.publishAsync('devices/dev-1/up', Buffer.alloc(100_000, 1), { qos: 1 })
  const [topic, payload] = await received
  t.equal(topic, 'devices/dev-1/up')
  t.equal(payload.length, 100_000)
  await client.endAsync()
  t.match(await broker.report('disconnected'), { device: 'dev-1', reason: 'client' })

  const first = await openWebSocket(broker, device)
  const session = tlsOf(first).getSession() // tickets came before the answer to the upgrade
  t.ok(session)
  first.terminate()
  const second = await openWebSocket(broker, device, session === undefined ? {} : { session })
  t.ok(tlsOf(second).isSessionReused())
  second.send(connectAs('dev-1'))
  await broker.report('connected', ({ resumed }) => resumed)
  second.terminate()
})

t.test('a page may connect from an origin that was named, and from no other', async (t) => {
  const broker = await open(t, { origins: ['https://console.example'] })
  const device = await broker.enroll('dev-1')
  const good = await openWebSocket(broker, device, { origin: 'https://console.example' })
  t.equal(good.protocol, 'mqtt')
  t.equal(good.extensions, '', 'nothing is compressed')
  good.terminate()
  for (const origin of [
    'https://evil.example',
    'null',
    'https://console.example.evil',
    'http://console.example',
  ]) {
    await t.rejects(openWebSocket(broker, device, { origin }), /403/, origin)
  }
  t.equal(broker.refusals('R-PACKET').length, 4)
  t.match(broker.refusals('R-PACKET')[0]?.evidence, { violation: /origin https:\/\/evil.example/ })
  t.equal(broker.sessions.count(), 0)
})

t.test('another path, another protocol and plain HTTP get their answer and are closed', async (t) => {
  const broker = await open(t)
  const device = await broker.enroll('dev-1')
  await t.rejects(openWebSocket(broker, device, { path: '/' }), /404/)
  await t.rejects(openWebSocket(broker, device, { protocols: ['soap'] }), /400/)
  await t.rejects(openWebSocket(broker, device, { protocols: [] }), /400/)
  const port = broker.listener.webSocketPort
  const asked = request({ host: 'localhost', port, path: '/mqtt', ca: authority.rootPem, agent: false }).end()
  const [response] = await once(asked, 'response')
  t.equal(response.statusCode, 426)
  response.setEncoding('utf8')
  t.match((await response.toArray()).join(''), /at \/mqtt, with the subprotocol mqtt/, 'and says where')
  t.equal(broker.sessions.count(), 0)
})

t.test('frames that break a rule of WebSocket or of MQTT over it end the connection', async (t) => {
  const broker = await open(t)
  const device = await broker.enroll('dev-1')
  const hostile: Record<string, (socket: Awaited<ReturnType<typeof openWebSocket>>) => void> = {
    'a frame of text': (socket) => socket.send('hello'),
    'a message above the largest packet': (socket) => socket.send(Buffer.alloc(262_150, 0x10)),
    'fragments that never end': (socket) => {
      for (let i = 0; i < 400; i++) socket.send(Buffer.alloc(1, 0x10), { fin: false })
    },
    'octets that wait to be a CONNECT': (socket) => {
      for (let i = 0; i < 100; i++) socket.send(Buffer.alloc(1_000, 0x10), { fin: false })
    },
    'a frame without a mask': (socket) => tlsOf(socket).write(Buffer.from('820110', 'hex')),
    'a reserved opcode': (socket) => tlsOf(socket).write(Buffer.from('838000000000', 'hex')),
  }
  for (const presented of [device, {}]) {
    for (const [name, send] of Object.entries(hostile)) {
      const socket = await openWebSocket(broker, presented)
      const closed = once(socket, 'close')
      send(socket)
      await closed
      t.pass(name)
    }
  }
  t.equal(broker.sessions.count(), 0)
  const violations = broker.refusals('R-PACKET').map(({ evidence }) => `${evidence.violation}`)
  t.equal(violations.length, Object.keys(hostile).length)
  t.match(violations, [/text/, /payload/i, /fragments/i, /octets before CONNECT/, /MASK/, /opcode|RSV/i])
})

t.test('a WebSocket that gives no sign of life is cut off; one that answers stays', async (t) => {
  const broker = await open(t, { limits: { webSocketPingMs: 100 } })
  const [dead, alive] = [await broker.enroll('dev-1'), await broker.enroll('dev-2')]
  const live = await openWebSocket(broker, alive)
  live.send(connectAs('dev-2'))
  await broker.report('connected', ({ device }) => device === 'dev-2')
  const silent = await openWebSocket(broker, dead, { autoPong: false })
  silent.send(connectAs('dev-1'))
  await once(silent, 'close')
  t.match(await broker.report('refused'), {
    device: 'dev-1',
    evidence: { violation: /no answer to a WebSocket ping/ },
  })
  t.equal(live.readyState, live.OPEN)
  live.terminate()
})

t.test(
  'who stays silent after the handshake, or asks nothing whole, is cut off at the deadline',
  async (t) => {
    const broker = await open(t, { limits: { connectMs: 200 } })
    const { webSocketPort } = broker.listener
    const at = { port: webSocketPort ?? 0, authority }
    for (const octets of [
      '',
      'GET /mqtt HTTP/1.1\r\nHost: x\r\n',
      'GET / HTTP/9.9\r\n\r\n',
      'x'.repeat(20_000),
    ]) {
      const raw = await openRaw(at, {}, { ALPNProtocols: ['http/1.1'] })
      raw.send(Buffer.from(octets))
      await raw.closed
      t.pass(octets.slice(0, 20))
    }
  },
)

t.test('a handshake that comes to nothing is one refusal of its address, whatever was asked', async (t) => {
  const broker = await open(t, { limits: { refusedPerMinute: 3, waitingMs: 100 } })
  const at = { port: broker.listener.webSocketPort ?? 0, authority }
  const asked = ['', 'GET / HTTP/1.1\r\nHost: x\r\n\r\n'.repeat(100), 'GET / HTTP/9.9\r\n\r\n']
  for (const octets of asked) {
    const raw = await openRaw(at, {}, { ALPNProtocols: ['http/1.1'] })
    raw.send(Buffer.from(octets))
    if (octets === '') raw.socket.end()
    await raw.closed
    await until(() => broker.listener.open() === 0)
  }
  t.match(broker.refusals(), [{ evidence: { violation: 'HTTP without WebSocket' } }])
  t.equal(broker.refusals().length, 1, 'reported once a connection')
  await t.rejects(openRaw(at, {}, { ALPNProtocols: ['http/1.1'] }), 'no more handshakes now')
  t.match(broker.refusals('R-RATE'), [{ evidence: { limit: 'waitingMs' } }])
})

t.test('ALPN: MQTT is spoken under both names and without one, and nothing under another', async (t) => {
  const broker = await open(t, { isAlpnSpoken: true })
  const device = await broker.enroll('dev-1')
  for (const [offered, agreed] of [
    [['mqtt'], 'mqtt'],
    [['x-amzn-mqtt-ca'], 'x-amzn-mqtt-ca'],
    [['http/1.1', 'x-amzn-mqtt-ca'], 'x-amzn-mqtt-ca'],
    [undefined, false],
  ] as const) {
    const raw = await openRaw(broker, device, offered === undefined ? {} : { ALPNProtocols: [...offered] })
    t.equal(raw.socket.alpnProtocol, agreed)
    t.equal((await raw.connect({ clientId: 'dev-1' })).returnCode, 0)
    raw.socket.destroy()
    await raw.closed
    const stranger = await openRaw(broker, {}, offered === undefined ? {} : { ALPNProtocols: [...offered] })
    t.equal((await stranger.connect({ clientId: 'dev-1' })).returnCode, 5, 'the same gate')
    stranger.socket.destroy()
  }
  await t.rejects(openRaw(broker, device, { ALPNProtocols: ['http/1.1'] }))
  await t.rejects(openRaw(broker, device, { ALPNProtocols: ['x-amzn-http-ca'] }))
})

t.test('without ALPN of the broker a client may offer what it likes', async (t) => {
  const broker = await open(t)
  const device = await broker.enroll('dev-1')
  const client = await connectDevice(broker, device, { ALPNProtocols: ['x-amzn-mqtt-ca'] } as object)
  await client.endAsync()
  t.equal(broker.refusals().length, 0)
})
