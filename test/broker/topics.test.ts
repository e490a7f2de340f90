import mqttPacket from 'mqtt-packet'
import t from 'tap'
import { SERVICE_POLICY } from '../support/broker.ts'
import { brokersOf } from '../support/broker-opener.ts'
import { connectPacket, enter, openRaw, publish, type RawClient, subscribe } from '../support/mqtt-clients.ts'
import { testAuthority } from '../support/pki.ts'

const authority = await testAuthority()
t.teardown(() => authority.remove())

const open = brokersOf(authority)

t.test('a device may not subscribe beyond its own tree, and is told filter by filter', async (t) => {
  const broker = await open(t)
  const raw = await enter(broker, await broker.enroll('A'))
  const denied = [
    '#',
    '+/#',
    'devices/#',
    'devices/+/#',
    '+/A/#',
    '/devices/A',
    'devices//A',
    '$SYS/#',
    '$share/g/#',
  ]
  t.same(
    await subscribe(raw, denied),
    denied.map(() => 128),
  )
  t.same(await subscribe(raw, ['devices/A/#', 'fleets/default/broadcast/#']), [1, 1])
  await raw.ping()
  t.same(
    broker.refusals('R-POLICY-SUB').map(({ evidence }) => evidence.filter),
    denied,
  )
  raw.socket.destroy()
})

t.test('a SUBSCRIBE that names filters more than once has one return code for each, in order', async (t) => {
  const broker = await open(t)
  const a = await broker.enroll('A')
  const [own, other, denied] = ['devices/A/x', 'devices/A/y', 'devices/B/x']
  const cases: [string, number][][] = [
    [
      [own, 1],
      [own, 1],
    ],
    [
      [own, 2],
      [other, 1],
      [own, 0],
    ],
    [
      [denied, 1],
      [own, 1],
      [denied, 0],
      [other, 2],
      [denied, 2],
      [own, 2],
    ],
    [
      [denied, 0],
      [denied, 1],
    ],
    Array.from({ length: 300 }, (_, n) => [n % 3 === 0 ? denied : own, n % 3] as [string, number]),
  ]
  for (const clean of [true, false]) {
    const raw = await enter(broker, a, clean)
    let last = 0
    for (const [at, pairs] of cases.entries()) {
      const subscriptions = pairs.map(([topic, qos]) => ({ topic, qos: qos as 0 | 1 | 2 })) // as listed
      raw.send({ cmd: 'subscribe', messageId: 700 + at, subscriptions })
      const suback = await raw.next('suback')
      t.match(suback, { messageId: 700 + at })
      const expected = pairs.map(([topic, qos]) => (topic === denied ? 128 : qos))
      t.same(suback.cmd === 'suback' && suback.granted, expected)
      await raw.ping()
      t.same(raw.received, [], 'and nothing else is said')
      last = pairs.findLast(([topic]) => topic === own)?.[1] ?? last
      raw.send(publish(own, 'x', 2))
      t.match(await raw.next('publish'), { qos: last }, 'the last pair of a filter counts')
      await raw.next('pubrec')
    }
    raw.socket.destroy()
    await raw.closed
  }
})

t.test(
  'a client that goes on being denied fills no log: 20 refusals of a connection are reported',
  async (t) => {
    const broker = await open(t)
    const raw = await enter(broker, await broker.enroll('A'))
    for (let n = 0; n < 3; n++)
      await subscribe(
        raw,
        Array.from({ length: 10 }, (_, m) => `devices/B/${n}/${m}`),
      )
    t.equal(broker.refusals('R-POLICY-SUB').length, 20)
    raw.socket.destroy()
  },
)

t.test(
  'the denied one of [allowed, denied] is never delivered nor stored, also after a reconnect',
  async (t) => {
    const broker = await open(t)
    const [a, backend] = [await broker.enroll('A'), await broker.enroll('backend', { kind: 'service' })]
    const service = await enter(broker, backend)
    const first = await enter(broker, a, false)
    t.same(await subscribe(first, ['devices/A/commands/#', 'devices/B/commands/#']), [1, 128])
    t.same(await broker.store.subscriptionsByClient({ id: 'A' }), [{ topic: 'devices/A/commands/#', qos: 1 }])
    first.socket.destroy()
    await first.closed
    service.send(publish('devices/B/commands/x', 'for B'), publish('devices/A/commands/x', 'for A'))
    await service.next('puback')
    await service.next('puback')
    const again = await enter(broker, a, false)
    t.match(await again.next('publish'), { topic: 'devices/A/commands/x' })
    await again.ping()
    t.notOk(again.octets.includes('for B'))
    again.socket.destroy()
    service.socket.destroy()
  },
)

t.test('a denied publish closes the connection, and the message is nowhere', async (t) => {
  const broker = await open(t)
  const [a, b] = [await broker.enroll('A'), await broker.enroll('B')]
  const reader = await enter(broker, b)
  await subscribe(reader, ['devices/B/#'])
  const topics = [
    'devices/B/up',
    'fleets/default/broadcast/x',
    '$SYS/x/new/clients',
    '$share/x',
    'devices',
    '/devices/A/x',
  ]
  for (const qos of [0, 1, 2] as const) {
    for (const topic of topics) {
      const raw = await enter(broker, a)
      raw.send(publish(topic, 'denied', qos, true))
      await raw.closed
    }
  }
  await reader.ping()
  t.notOk(reader.octets.includes('denied'))
  t.equal(broker.refusals('R-POLICY-PUB').length, 3 * topics.length)
  t.same(await broker.store.createRetainedStreamCombi(['#', '$SYS/#', '$share/#']).toArray(), [])
  reader.socket.destroy()
})

t.test('nobody reads or writes $SYS: a victim’s id on new/clients kicks nobody', async (t) => {
  const broker = await open(t)
  const wide = { publish: ['#', '$SYS/#'], subscribe: ['#', '$SYS/#', '+/+/new/clients'] }
  const [a, m] = [await broker.enroll('A'), await broker.enroll('M', { fleet: 'wide', policy: wide })]
  const victim = await enter(broker, a)
  const attacker = await enter(broker, m)
  t.same(await subscribe(attacker, ['$SYS/#', '#']), [128, 1])
  attacker.send(publish('$SYS/other/new/clients', 'A'))
  await attacker.closed
  await victim.ping()
  t.notOk(attacker.octets.includes('$SYS'))
  victim.socket.destroy()
})

t.test('a policy that was narrowed counts at once: live, retained and queued messages', async (t) => {
  const broker = await open(t)
  const wide = { publish: ['devices/#'], subscribe: ['devices/#'] }
  const [a, w] = [
    await broker.enroll('A', { fleet: 'f', policy: wide }),
    await broker.enroll('W', { fleet: 'writers', policy: wide }),
  ]
  const writer = await enter(broker, w)
  const reader = await enter(broker, a, false)
  t.same(await subscribe(reader, ['devices/#']), [1])
  writer.send(publish('devices/B/1', 'before'))
  await reader.next('publish')
  reader.send({ cmd: 'puback', messageId: 1 })
  const policy = { publish: [], subscribe: ['devices/A/#'] }
  const narrow = () => {
    broker.sessions.setPolicy({ id: 'f', policy, policyEpoch: 2 })
    const record = broker.replica.records.get(a.fingerprint)
    if (record !== undefined) broker.replica.put({ ...record, fleet: { id: 'f', policy, policyEpoch: 2 } })
  }
  narrow()
  writer.send(publish('devices/B/2', 'narrowed live'), publish('devices/B/2', 'narrowed retained', 1, true))
  writer.send(publish('devices/A/2', 'own'))
  t.match(await reader.next('publish', (packet) => 'topic' in packet && packet.topic === 'devices/A/2'), {})
  reader.socket.destroy()
  await reader.closed
  writer.send(publish('devices/B/3', 'narrowed queued'))
  await writer.ping()
  const again = await enter(broker, a, false)
  t.same(await subscribe(again, ['devices/#', 'devices/A/#']), [128, 1])
  await again.ping()
  t.notOk(Buffer.concat([reader.octets, again.octets]).includes('narrowed'))
  t.same(
    (await broker.store.subscriptionsByClient({ id: 'A' })).map(({ topic }) => topic),
    ['devices/A/#'],
  )
  again.socket.destroy()
  writer.socket.destroy()
})

t.test('retained messages reach only those who may read them', async (t) => {
  const broker = await open(t)
  const [a, b] = [await broker.enroll('A'), await broker.enroll('B')]
  const writer = await enter(broker, a)
  writer.send(publish('devices/A/state', 'of A', 1, true))
  await writer.next('puback')
  await subscribe(writer, ['devices/A/#'])
  t.match(await writer.next('publish'), { topic: 'devices/A/state', retain: true })
  const other = await enter(broker, b)
  t.same(await subscribe(other, ['devices/A/state', 'devices/+/state', 'devices/B/#']), [128, 128, 1])
  await other.ping()
  t.notOk(other.octets.includes('of A'))
  writer.socket.destroy()
  other.socket.destroy()
})

t.test('malformed filters, topics and packet identifiers close the socket', async (t) => {
  const broker = await open(t)
  const a = await broker.enroll('A')
  const own = 'devices/A'
  const filters = [
    'a#',
    'a+',
    'a/+b',
    '+a',
    '++',
    '#/a',
    'a/#/b',
    '',
    'x\u0000',
    'x\u0007',
    'x\uffff',
    '\ud800',
  ]
  const subscriptions = (topic: string) => [{ topic, qos: 0 as const }]
  const hostile = new Map<string, Buffer | Parameters<RawClient['send']>[0]>([
    ...filters.map(
      (f) => [`SUBSCRIBE ${JSON.stringify(f)}`, rawSubscribe(`${f === '' ? '' : `${own}/`}${f}`)] as const,
    ),
    ...filters.map(
      (f) =>
        [`UNSUBSCRIBE ${JSON.stringify(f)}`, rawUnsubscribe(`${f === '' ? '' : `${own}/`}${f}`)] as const,
    ),
    ...['\u0000', '\u0001', '\u0085', '\uffff', '\ufdd0', '+', '#'].map(
      (bad) => [`PUBLISH ${JSON.stringify(bad)}`, rawPublish(Buffer.from(`${own}/x${bad}`))] as const,
    ),
    ['PUBLISH surrogate', rawPublish(Buffer.concat([Buffer.from(`${own}/`), Buffer.from('eda080', 'hex')]))],
    ['PUBLISH overlong', rawPublish(Buffer.concat([Buffer.from(`${own}/`), Buffer.from('c0af', 'hex')]))],
    ['PUBLISH to nothing', rawPublish(Buffer.alloc(0))],
    ['PUBLISH with identifier 0', Buffer.from(`320d0009${Buffer.from(own).toString('hex')}0000`, 'hex')],
    ['SUBSCRIBE with identifier 0', Buffer.from('82060000000161' + '00', 'hex')],
    ['SUBSCRIBE to nothing', Buffer.from('82020001', 'hex')],
    ['SUBSCRIBE with QoS 3', Buffer.from('8206000100016103', 'hex')],
    ['SUBSCRIBE with flags', { cmd: 'subscribe', messageId: 1, subscriptions: subscriptions('a') }],
    ['PUBLISH with QoS 3', Buffer.from('360500016100010000'.slice(0, 14), 'hex')],
    ['PUBREL with identifier 0', Buffer.from('62020000', 'hex')],
    ['CONNACK from a client', Buffer.from('20020000', 'hex')],
    ['type 0', Buffer.from('0000', 'hex')],
    ['type 15', Buffer.from('f000', 'hex')],
    ['five octets of length', Buffer.from('30ffffffff01', 'hex')],
    ['64 MB declared', Buffer.from('3080808020', 'hex')],
    ['256 KiB and one octet', Buffer.from('30818010', 'hex')],
  ])
  hostile.delete('SUBSCRIBE with flags')
  for (const [name, octets] of hostile) {
    const raw = await enter(broker, a)
    raw.send(octets)
    await raw.closed
    t.notOk(
      raw.received.some(({ cmd }) => cmd === 'suback' || cmd === 'puback'),
      name,
    )
  }
  t.same(broker.mqtt.registered(), { ids: [], counted: 0 })
  t.ok(broker.refusals('R-PACKET').length >= hostile.size - 3)
  const raw = await enter(broker, a)
  raw.send(publish(`${own}/${'x'.repeat(100)}`, 'y'.repeat(262_000), 1))
  await raw.next('puback')
  raw.socket.destroy()
})

function body(type: number, content: Buffer): Buffer {
  return Buffer.concat([Buffer.from([type, content.length]), content])
}
function text(octets: Buffer): Buffer {
  const length = Buffer.alloc(2)
  length.writeUInt16BE(octets.length)
  return Buffer.concat([length, octets])
}
function utf8(filter: string): Buffer {
  return filter.endsWith('\ud800')
    ? Buffer.concat([Buffer.from(filter.slice(0, -1)), Buffer.from('eda080', 'hex')])
    : Buffer.from(filter)
}
function rawSubscribe(filter: string): Buffer {
  return body(0x82, Buffer.concat([Buffer.from([0, 1]), text(utf8(filter)), Buffer.from([0])]))
}
function rawUnsubscribe(filter: string): Buffer {
  return body(0xa2, Buffer.concat([Buffer.from([0, 1]), text(utf8(filter))]))
}
function rawPublish(topic: Buffer): Buffer {
  return body(0x30, Buffer.concat([text(topic), Buffer.from('x')]))
}

t.test(
  'a will on a denied, wildcard, malformed or $ topic, or with QoS 3, refuses the CONNECT',
  async (t) => {
    const broker = await open(t)
    const a = await broker.enroll('A')
    const topics = [
      'devices/B/gone',
      '#',
      'devices/A/#',
      'devices/A/+',
      '$SYS/x',
      'devices/A/x\u0000',
      'devices/#',
    ]
    for (const topic of topics) {
      const raw = await openRaw(broker, a)
      const will = { topic, payload: Buffer.from('gone'), qos: 1, retain: true } as const
      t.equal((await raw.connect({ clientId: 'A', will })).returnCode, 5, topic)
      raw.socket.destroy()
    }
    const qos3 = await openRaw(broker, a)
    const will = { topic: 'devices/A/gone', payload: Buffer.from('gone'), qos: 1, retain: false } as const
    const octets = Buffer.concat([...mqttOctets({ clientId: 'A', will })])
    octets[9] = (octets[9] ?? 0) | 0x18
    qos3.send(octets)
    t.match(await qos3.next('connack'), { returnCode: 5 })
    t.same(
      broker.refusals().map(({ code }) => code),
      [...topics, ''].map(() => 'R-WILL'),
    )
    t.same(broker.mqtt.registered(), { ids: [], counted: 0 })
  },
)

function mqttOctets(options: Parameters<typeof connectPacket>[0]): Buffer[] {
  return [mqttPacket.generate(connectPacket(options))]
}

t.test('a hook that fails denies: connecting, subscribing, publishing and receiving', async (t) => {
  const broker = await open(t)
  const [a, b] = [await broker.enroll('A'), await broker.enroll('B')]
  broker.replica.failure = new Error('disk I/O error')
  broker.replica.readsLeft = 1 // that of the gate
  const refused = await openRaw(broker, a)
  t.equal((await refused.connect({ clientId: 'A' })).returnCode, 5)
  broker.replica.failure = null
  const [reader, raw] = [await enter(broker, b), await enter(broker, a)]
  await subscribe(reader, ['devices/B/#'])
  const broken = () => {
    throw new Error('broken policy')
  }
  for (const connection of broker.sessions.select({ kind: 'all' })) {
    const { allowance, hasRates } = connection.policy
    const asked = { mayPublish: broken, mayReceive: broken, maySubscribe: broken }
    const why = {
      publishQos: broken,
      publishRule: broken,
      subscribeQos: broken,
      whyPublish: broken,
      whySubscribe: broken,
    }
    connection.policy = { allowance, hasRates, rules: () => [], ...asked, ...why }
  }
  t.same(await subscribe(raw, ['devices/A/#']), [128])
  raw.send(publish('devices/A/up', 'x'))
  await raw.closed
  const service = await enter(
    broker,
    await broker.enroll('backend', { kind: 'service', policy: SERVICE_POLICY }),
  )
  service.send(publish('devices/B/commands/x', 'unseen'))
  await service.next('puback')
  await reader.ping()
  t.notOk(reader.octets.includes('unseen'))
  reader.socket.destroy()
  service.socket.destroy()
})

t.test('a client has 100 subscriptions of 10 levels, and room again when it gives some up', async (t) => {
  const broker = await open(t)
  const raw = await enter(broker, await broker.enroll('A'), false)
  const deep = ['devices/A/1/2/3/4/5/6/7/8', 'devices/A/1/2/3/4/5/6/7/8/9', 'devices/A/1/2/3/4/5/6/7/8/#']
  t.same(await subscribe(raw, deep), [1, 128, 128])
  raw.send({ cmd: 'unsubscribe', messageId: 8, unsubscriptions: deep.slice(0, 1) })
  await raw.next('unsuback')
  const hundred = Array.from({ length: 100 }, (_, n) => `devices/A/${n}`)
  t.same(await subscribe(raw, [...hundred, 'devices/A/more']), [...hundred.map(() => 1), 128])
  t.same(await subscribe(raw, ['devices/A/0']), [1], 'the same filter again is not one more')
  raw.send({ cmd: 'unsubscribe', messageId: 9, unsubscriptions: ['devices/A/0'] })
  await raw.next('unsuback')
  t.same(
    await subscribe(raw, ['devices/A/1/2/3/4/5/6/7/8', 'devices/A/1/2/3/4/5/6/7/8/9', 'devices/A/more']),
    [1, 128, 128],
  )
  t.equal((await broker.store.subscriptionsByClient({ id: 'A' })).length, 100)
  raw.socket.destroy()
})
