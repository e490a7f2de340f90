import t from 'tap'
import { until } from '../support/broker.ts'
import { brokersOf } from '../support/broker-opener.ts'
import { connectDevice, connectPacket, openRaw, refusalOf } from '../support/mqtt-clients.ts'
import { testAuthority, testIdentity } from '../support/pki.ts'

const authority = await testAuthority()
t.teardown(() => authority.remove())

const open = brokersOf(authority)

t.test('a device with another device’s client id is refused, and that one is undisturbed', async (t) => {
  const broker = await open(t)
  const [a, m] = [await broker.enroll('A'), await broker.enroll('M')]
  const client = await connectDevice(broker, a)
  let closes = 0
  client.on('close', () => closes++)
  t.equal(refusalOf(await connectDevice(broker, m, { clientId: 'A' }).catch((error) => error)), 5)
  t.match(broker.refusals(), [
    {
      code: 'R-IDMISMATCH',
      device: 'M',
      evidence: { clientId: 'A', expected: 'M' },
      fingerprint: m.fingerprint,
    },
  ])
  await client.publishAsync('devices/A/up', 'here', { qos: 1 })
  t.equal(closes, 0)
  await client.endAsync()
})

t.test(
  'a stranger with the client id of an offline device gets neither its session nor its messages',
  async (t) => {
    const broker = await open(t)
    const [a, m] = [await broker.enroll('A'), await broker.enroll('M')]
    const service = await connectDevice(broker, await broker.enroll('backend', { kind: 'service' }))
    const first = await connectDevice(broker, a, { clean: false })
    await first.subscribeAsync('devices/A/commands/#', { qos: 1 })
    await first.endAsync()
    await service.publishAsync('devices/A/commands/open', 'secret', { qos: 1 })
    for (const clean of [false, true]) {
      t.equal(refusalOf(await connectDevice(broker, m, { clientId: 'A', clean }).catch((error) => error)), 5)
    }
    const raw = await openRaw(broker, a)
    t.equal((await raw.connect({ clientId: 'A', clean: false })).sessionPresent, true)
    t.match(await raw.next('publish'), { topic: 'devices/A/commands/open' })
    raw.socket.destroy()
    await service.endAsync()
  },
)

t.test('hostile client ids are refused and the process lives', async (t) => {
  const broker = await open(t)
  const m = await broker.enroll('M')
  const hostile = [
    '+',
    '#',
    '$SYS',
    '../A',
    'M\u0000',
    '\ufeffM',
    '__proto__',
    'constructor',
    'toString',
    'M\ud800',
  ]
  for (const clientId of [...hostile, 'x'.repeat(2000), 'M:x']) {
    const raw = await openRaw(broker, m)
    t.equal((await raw.connect({ clientId })).returnCode, 5, JSON.stringify(clientId.slice(0, 20)))
    raw.socket.destroy()
  }
  t.ok(broker.refusals().every(({ code }) => code === 'R-IDMISMATCH'))
  const empty = await openRaw(broker, m)
  t.equal((await empty.connect({ clientId: '', clean: true })).returnCode, 5)
  const longest = await openRaw(broker, m)
  longest.send(connectPacket({ clientId: 'x'.repeat(65_535) }))
  await longest.closed
  t.equal(longest.octets.length, 0)
  t.equal(broker.refusals('R-PACKET').length, 1)
  t.same(broker.mqtt.registered(), { ids: [], counted: 0 })
  await (await connectDevice(broker, m)).endAsync()
})

t.test('user name and password change nothing: the certificate is the identity', async (t) => {
  const broker = await open(t)
  const a = await broker.enroll('A')
  await broker.enroll('B')
  const client = await connectDevice(broker, a, { username: 'B', password: 'secret of B' })
  t.match(await broker.report('connected'), { device: 'A' })
  const closed = new Promise<void>((resolve) => client.once('close', () => resolve()))
  client.publish('devices/B/up', 'as B')
  await closed
  t.match(broker.refusals(), [{ code: 'R-POLICY-PUB', device: 'A' }])
})

t.test('of 50 simultaneous connects with one identity exactly one stays, and all counts agree', async (t) => {
  const broker = await open(t)
  const a = await broker.enroll('A')
  const clients = await Promise.all(Array.from({ length: 50 }, () => openRaw(broker, a)))
  // Subscriptions make the client before slow to close, which is when two newcomers can both be let in.
  const filters = Array.from({ length: 10 }, (_, n) => ({ topic: `devices/A/${n}`, qos: 1 as const }))
  for (const [n, raw] of clients.entries()) {
    raw.send(connectPacket({ clientId: 'A', clean: n % 2 === 0 }))
    raw.send({ cmd: 'subscribe', messageId: 1, subscriptions: filters })
  }
  await until(() => clients.filter(({ socket }) => socket.destroyed).length === 49)
  const [survivor] = clients.filter(({ socket }) => !socket.destroyed)
  await survivor?.ping()
  t.same(broker.mqtt.registered(), { ids: ['A'], counted: 1 })
  t.equal(broker.sessions.count(), 1)
  survivor?.socket.destroy()
  await broker.report('disconnected', ({ reason }) => reason === 'lost')
  t.same(broker.mqtt.registered(), { ids: [], counted: 0 })
  t.equal(broker.sessions.count(), 0)
})

t.test('a newcomer with the same identity takes over, and both addresses are reported', async (t) => {
  const broker = await open(t)
  const a = await broker.enroll('A')
  const [first, second] = [await openRaw(broker, a), await openRaw(broker, a)]
  await first.connect({ clientId: 'A' })
  t.equal((await second.connect({ clientId: 'A' })).returnCode, 0)
  await first.closed
  const evidence = { address: '127.0.0.1', otherAddress: '127.0.0.1' }
  t.match(await broker.report('refused'), { code: 'R-DUPLICATE', device: 'A', evidence })
  t.match(await broker.report('disconnected'), { device: 'A', reason: 'duplicate' })
  await second.ping()
  second.socket.destroy()
})

t.test(
  'a rotated device takes over from itself, and the old certificate’s end does not touch it',
  async (t) => {
    const broker = await open(t)
    const [old, renewed] = [await broker.enroll('A'), await broker.enroll('A')]
    const first = await openRaw(broker, old)
    await first.connect({ clientId: 'A' })
    const second = await openRaw(broker, renewed)
    await second.connect({ clientId: 'A' })
    await first.closed
    await broker.report('disconnected', ({ reason }) => reason === 'rotated')
    t.same(broker.refusals(), [], 'it is no duplicate of itself')
    t.equal((await broker.revoke(old)).closed, 0)
    await second.ping()
    t.equal(broker.sessions.select({ kind: 'certificate', id: renewed.fingerprint }).length, 1)
    second.socket.destroy()
  },
)

t.test(
  'an old certificate that takes over from its successor is a duplicate, for the key may be in two places',
  async (t) => {
    const broker = await open(t)
    const [old, renewed] = [await broker.enroll('A'), await broker.enroll('A')]
    const supersededFrom = Date.now() + 3_600_000
    await broker.change(old, (record) => ({
      ...record,
      certificate: { ...record.certificate, supersededFrom },
    }))
    const first = await openRaw(broker, renewed)
    await first.connect({ clientId: 'A' })
    const second = await openRaw(broker, old)
    await second.connect({ clientId: 'A' })
    await first.closed
    t.match(await broker.report('refused'), { code: 'R-DUPLICATE', fingerprint: renewed.fingerprint })
    second.socket.destroy()
  },
)

t.test('a service may have several clients, each under a name of its own', async (t) => {
  const broker = await open(t)
  const service = await broker.enroll('backend', { kind: 'service' })
  const clients = await Promise.all(
    ['backend', 'backend:a', 'backend:b'].map((clientId) => connectDevice(broker, service, { clientId })),
  )
  t.same(broker.mqtt.registered().ids.sort(), ['backend', 'backend:a', 'backend:b'])
  t.equal(refusalOf(await connectDevice(broker, service, { clientId: 'other:a' }).catch((error) => error)), 5)
  await Promise.all(clients.map((client) => client.endAsync()))
})

t.test('a device whose registry row names another identity is refused', async (t) => {
  const broker = await open(t)
  const [a, forged] = [await broker.enroll('A'), await testIdentity(authority, 'A')]
  const record = broker.replica.records.get(a.fingerprint)
  if (record === undefined) return t.fail('not enrolled')
  const { certificate } = record
  broker.replica.put({
    ...record,
    certificate: { ...certificate, fingerprint: forged.fingerprint, device: 'B' },
    device: { ...record.device, id: 'B' },
  })
  t.equal(refusalOf(await connectDevice(broker, forged, { clientId: 'B' }).catch((error) => error)), 5)
  t.match(broker.refusals(), [{ code: 'R-PROFILE' }])
})

t.test('keepalive 0, or a longer one than allowed, is held to the longest allowed', async (t) => {
  const broker = await open(t, { limits: { keepaliveMs: 1000 } })
  const ids = ['A', 'B'] as const
  const clients = await Promise.all(
    ids.map(async (id) => ({ id, raw: await openRaw(broker, await broker.enroll(id)) })),
  )
  await clients[0]?.raw.connect({ clientId: 'A', keepalive: 0 })
  await clients[1]?.raw.connect({ clientId: 'B', keepalive: 65_535 })
  await Promise.all(clients.map(({ raw }) => raw.closed))
  for (const id of ids) {
    t.match(await broker.report('disconnected', ({ device }) => device === id), { reason: 'keepalive' })
  }
})

t.test('a second CONNECT and anything before the first end the connection', async (t) => {
  const broker = await open(t)
  const a = await broker.enroll('A')
  const raw = await openRaw(broker, a)
  await raw.connect({ clientId: 'A' })
  raw.send(connectPacket({ clientId: 'A' }))
  await raw.closed
  t.same(broker.mqtt.registered(), { ids: [], counted: 0 })
})

t.test('an MQTT 5 client is told that its version is not spoken, and so is the operator', async (t) => {
  const broker = await open(t)
  const raw = await openRaw(broker, await broker.enroll('A'))
  raw.send(connectPacket({ clientId: 'A', protocolVersion: 5 }))
  t.match(await raw.next('connack'), { returnCode: 1 })
  await raw.closed
  t.match(broker.refusals(), [{ code: 'R-PACKET', device: 'A', evidence: { violation: /^MQTT 5/ } }])
})
