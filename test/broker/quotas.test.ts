import { join } from 'node:path'
import t, { type Test } from 'tap'
import { PublishRate } from '../../broker/judge/publish-rate.ts'
import type { Limits } from '../../broker/limits.ts'
import { LAST_QUEUE_ID } from '../../broker/store/queue-entry.ts'
import { until } from '../support/broker.ts'
import { cut, type DurableBroker, openDurableBroker } from '../support/durable-broker.ts'
import { enter, openRaw, publish, type RawClient, subscribe } from '../support/mqtt-clients.ts'
import { testAuthority } from '../support/pki.ts'
import fc from '../support/properties.ts'

const authority = await testAuthority()
t.teardown(() => authority.remove())

function open(t: Test, limits: Partial<Limits> = {}): Promise<DurableBroker> {
  return openDurableBroker(t, { authority, path: join(t.testdir(), 'sessions.db'), limits })
}
async function acknowledged(
  raw: RawClient,
  topic: string,
  payload: string | Buffer,
  retain = false,
): Promise<void> {
  raw.send(publish(topic, payload, 1, retain))
  await raw.next('puback')
}
async function payloads(raw: RawClient, count: number): Promise<string[]> {
  const got: string[] = []
  while (got.length < count) {
    const packet = await raw.next('publish')
    if (packet.cmd !== 'publish') continue
    got.push(String(packet.payload))
    if (packet.qos === 1) raw.send({ cmd: 'puback', messageId: packet.messageId ?? 0 })
  }
  await raw.ping()
  return got
}
const isPublish = ({ cmd }: { cmd: string }) => cmd === 'publish'

t.test('a queue that is full keeps what it has; what comes then is dropped, and said once', async (t) => {
  for (const [limits, limit] of [
    [{ queueMessages: 5 }, 'queueMessages'],
    [{ queueBytes: 5 * ('devices/A/commands/x'.length + 1) }, 'queueBytes'],
    [{ queueTotalMessages: 5 }, 'queueTotalMessages'],
    [{ queueTotalBytes: 5 * ('devices/A/commands/x'.length + 1) }, 'queueTotalBytes'],
  ] as const) {
    const broker = await open(t, limits)
    const [a, backend] = [await broker.enroll('A'), await broker.enroll('backend', { kind: 'service' })]
    const first = await enter(broker, a, false)
    await subscribe(first, 'devices/A/commands/#')
    await cut(first)
    const service = await enter(broker, backend)
    for (let n = 0; n < 9; n++) await acknowledged(service, 'devices/A/commands/x', `${n}`)
    t.match(broker.refusals(), [{ code: 'R-QUOTA', device: 'A', evidence: { limit } }], 'once, of four')
    t.equal(broker.store.sessions.queues.totals().dropped, 4)
    const back = await enter(await broker.restart(), a, false)
    t.same(await payloads(back, 5), ['0', '1', '2', '3', '4'])
    t.notOk(back.received.some(isPublish))
    await cut(back)
  }
})

t.test('a client that does not answer has no more under way than it may', async (t) => {
  const broker = await open(t, { inflightOutbound: 3, queueResidentBytes: 0 })
  const [a, backend] = [await broker.enroll('A'), await broker.enroll('backend', { kind: 'service' })]
  const raw = await enter(broker, a, false)
  await subscribe(raw, 'devices/A/commands/#')
  const service = await enter(broker, backend)
  for (let n = 0; n < 8; n++) await acknowledged(service, 'devices/A/commands/x', `${n}`)
  await raw.ping()
  t.equal(raw.received.filter(isPublish).length, 3)
  t.equal(broker.store.sessions.queues.totals().residentBytes, 0, 'payloads are read when they are sent')
  // Answers for what was never sent change nothing.
  for (const messageId of [7, 8, 30_000, 65_535])
    raw.send({ cmd: 'puback', messageId }, { cmd: 'pubcomp', messageId })
  t.same(await payloads(raw, 8), ['0', '1', '2', '3', '4', '5', '6', '7'])
  await until(() => broker.store.sessions.queues.totals().messages === 0)
})

t.test('what a narrower policy takes from a queue takes no room from what is under way', async (t) => {
  const broker = await open(t, { inflightOutbound: 2 })
  const [a, backend] = [await broker.enroll('A'), await broker.enroll('backend', { kind: 'service' })]
  const raw = await enter(broker, a, false)
  await subscribe(raw, 'devices/A/commands/#')
  const service = await enter(broker, backend)
  for (let n = 0; n < 4; n++) await acknowledged(service, 'devices/A/commands/old', `old ${n}`)
  const sent = [await raw.next('publish'), await raw.next('publish')]
  const policy = { publish: [], subscribe: ['devices/${device.id}/commands/new'] }
  await broker.change(a, (record) => ({ ...record, fleet: { ...record.fleet, policy } }))
  const record = broker.replica.record(a.fingerprint)
  if (record === null) return t.fail('enrolled')
  broker.sessions.setDevice(record)
  await broker.mqtt.review('default')
  await subscribe(raw, 'devices/A/commands/new')
  for (const { messageId } of sent) raw.send({ cmd: 'puback', messageId: messageId ?? 0 })
  for (let n = 0; n < 4; n++) await acknowledged(service, 'devices/A/commands/new', `new ${n}`)
  t.same(await payloads(raw, 4), ['new 0', 'new 1', 'new 2', 'new 3'])
  await until(() => broker.store.sessions.queues.totals().messages === 0)
})

t.test('an answer to what Aedes sends by itself is none to what is queued', async (t) => {
  const broker = await open(t)
  const [a, backend] = [await broker.enroll('A'), await broker.enroll('backend', { kind: 'service' })]
  const service = await enter(broker, backend)
  for (let n = 0; n < 20; n++) await acknowledged(service, `devices/A/commands/${n}`, 'retained', true)
  const raw = await enter(broker, a, false)
  await subscribe(raw, 'devices/A/commands/#')
  await acknowledged(service, 'devices/A/commands/x', 'queued')
  const packets = []
  for (let n = 0; n < 21; n++) packets.push(await raw.next('publish'))
  t.equal(new Set(packets.map((packet) => (packet.cmd === 'publish' ? packet.messageId : 0))).size, 21)
  for (const packet of packets) {
    if (packet.cmd === 'publish' && packet.retain)
      raw.send({ cmd: 'puback', messageId: packet.messageId ?? 0 })
  }
  await raw.ping()
  t.equal(broker.store.sessions.queues.entries('A').length, 1)
  // Aedes begins anywhere with each connection: once in sixteen thousand times all of these would be above by chance.
  for (let n = 0; n < 14; n++) {
    const again = await enter(broker, a, false)
    await subscribe(again, 'devices/A/commands/#')
    const replayed = await again.next('publish', (packet) => packet.cmd === 'publish' && packet.retain)
    t.ok(replayed.cmd === 'publish' && (replayed.messageId ?? 0) > LAST_QUEUE_ID)
  }
})

t.test('a client may retain so many messages and so much of them, and is refused beyond that', async (t) => {
  const broker = await open(t, { retainedMessages: 3, retainedBytes: 4_000 })
  const a = await broker.enroll('A')
  const raw = await enter(broker, a)
  for (const n of [1, 2, 3, 1, 2, 3]) await acknowledged(raw, `devices/A/${n}`, 'again and again', true)
  await acknowledged(raw, 'devices/A/4', 'not retained')
  raw.send(publish('devices/A/4', 'one too many', 1, true))
  await raw.closed
  t.match(broker.refusals(), [
    { code: 'R-QUOTA', device: 'A', evidence: { limit: 'retainedMessages', allowed: 3 } },
  ])
  const again = await broker.restart()
  const back = await enter(again, a)
  await acknowledged(back, 'devices/A/1', '', true)
  await acknowledged(back, 'devices/A/4', 'in its place', true)
  back.send(publish('devices/A/5', 'one too many, after a restart', 0, true))
  await back.closed
  const third = await enter(again, a)
  third.send(publish('devices/A/4', Buffer.alloc(4_000), 2, true))
  await third.closed
  t.match(again.refusals(), [
    { evidence: { limit: 'retainedMessages' } },
    { evidence: { limit: 'retainedBytes' } },
  ])
  t.match(again.store.retained.totals(), { messages: 3 })
})

t.test(
  'all clients together retain no more than the broker has room for; the broker itself always may',
  async (t) => {
    const broker = await open(t, { retainedTotalBytes: 1_000 })
    for (const id of ['A', 'B']) {
      const raw = await enter(broker, await broker.enroll(id))
      raw.send(publish(`devices/${id}/1`, Buffer.alloc(400), 1, true))
      if (id === 'A') await raw.next('puback')
      else await raw.closed
    }
    t.match(broker.refusals(), [{ device: 'B', evidence: { limit: 'retainedTotalBytes', allowed: 1_000 } }])
    await broker.store.storeRetained({
      cmd: 'publish',
      topic: 'x',
      payload: Buffer.alloc(400),
      qos: 1,
      retain: true,
    })
    t.match(broker.store.retained.totals(), { messages: 2 })
  },
)

t.test('a will that would be retained beyond the limit is published and not retained', async (t) => {
  const broker = await open(t, { retainedMessages: 0 })
  const [a, backend] = [await broker.enroll('A'), await broker.enroll('backend', { kind: 'service' })]
  const service = await enter(broker, backend)
  await subscribe(service, 'devices/#')
  const raw = await openRaw(broker, a)
  await raw.connect({
    clientId: 'A',
    will: { topic: 'devices/A/gone', payload: Buffer.from('x'), qos: 1, retain: true },
  })
  await cut(raw)
  t.match(await service.next('publish'), { topic: 'devices/A/gone' })
  t.match(broker.store.retained.totals(), { messages: 0 })
})

t.test(
  'an identity has so many sessions; a client more is refused, one that comes back is not',
  async (t) => {
    const broker = await open(t, { sessions: 2 })
    const backend = await broker.enroll('backend', { kind: 'service' })
    for (const [name, expected] of [
      ['backend:1', 0],
      ['backend:2', 0],
      ['backend:3', 5],
      ['backend:1', 0],
    ] as const) {
      const raw = await openRaw(broker, backend)
      t.match(await raw.connect({ clientId: name, clean: false }), { returnCode: expected })
      await cut(raw)
    }
    const clean = await openRaw(broker, backend)
    t.match(await clean.connect({ clientId: 'backend:3' }), { returnCode: 0 }, 'a clean session is none')
    t.match(broker.refusals(), [{ code: 'R-QUOTA', evidence: { limit: 'sessions', allowed: 2 } }])
  },
)

t.test(
  'a client that publishes faster than it may is read more slowly, not refused, and loses nothing',
  async (t) => {
    const broker = await open(t, { publishBurst: 10, publishPerSecond: 500 })
    const [a, backend] = [await broker.enroll('A'), await broker.enroll('backend', { kind: 'service' })]
    const service = await enter(broker, backend)
    await subscribe(service, 'devices/#', 0)
    const raw = await enter(broker, a)
    for (let n = 0; n < 10; n++) {
      raw.send(
        ...Array.from({ length: 20 }, (_, m) =>
          publish('devices/A/up', `${n * 20 + m}`, m % 2 === 0 ? 0 : 1),
        ),
      )
      await raw.ping()
    }
    t.same(
      await payloads(service, 200),
      Array.from({ length: 200 }, (_, n) => `${n}`),
    )
    t.match(broker.refusals(), [
      { code: 'R-QUOTA', device: 'A', evidence: { limit: 'publishPerSecond', allowed: 500 } },
    ])
  },
)

t.test('neither one large piece nor connecting again gets a client past its rate', async (t) => {
  const broker = await open(t, { publishBurst: 5, publishPerSecond: 1 })
  const [a, backend] = [await broker.enroll('A'), await broker.enroll('backend', { kind: 'service' })]
  const service = await enter(broker, backend)
  await subscribe(service, 'devices/#', 0)
  const flood = Array.from({ length: 200 }, (_, n) => publish('devices/A/up', `${n}`, n % 2 === 0 ? 0 : 1))
  const began = Date.now()
  for (const clean of [true, false, true]) {
    const raw = await enter(broker, a, clean)
    raw.send(...flood)
    for (let n = 0; n < 20; n++) await service.ping()
    await cut(raw)
  }
  const came = service.received.filter(isPublish).length
  const atMost = 6 + (Date.now() - began) / 1000
  t.ok(came >= 5 && came <= atMost, `${came} messages came, ${atMost} may`)
})

t.test('filters count one by one, and a packet with very many of them ends the connection', async (t) => {
  const broker = await open(t, { publishBurst: 10, publishPerSecond: 500, subscriptions: 2_000 })
  const filters = (count: number) => Array.from({ length: count }, (_, n) => `devices/A/${n}`)
  const a = await broker.enroll('A')
  const raw = await enter(broker, a)
  await subscribe(raw, 'devices/A/up', 0)
  raw.send({ cmd: 'unsubscribe', messageId: 6, unsubscriptions: filters(1_000) })
  await raw.next('unsuback')
  t.match(broker.refusals(), [{ code: 'R-QUOTA', evidence: { limit: 'publishPerSecond', allowed: 500 } }])
  raw.socket.destroy()
  const subscriptions = filters(1_001).map((topic) => ({ topic, qos: 0 as const }))
  for (const packet of [
    { cmd: 'subscribe', messageId: 7, subscriptions },
    { cmd: 'unsubscribe', messageId: 7, unsubscriptions: filters(1_001) },
  ] as const) {
    const other = await enter(broker, a)
    other.send(packet)
    await other.closed
    t.match(broker.refusals('R-PACKET').at(-1)?.evidence, {
      violation: '1001 topic filters, 1000 allowed',
    })
  }
})

t.test('each filter of a SUBSCRIBE is stored once, however many there are in it', async (t) => {
  const path = join(t.testdir(), 'sessions.db')
  const limits = { subscriptions: 1_000, publishPerSecond: 0 }
  const broker = await openDurableBroker(t, { authority, path, limits })
  const db = broker.database()
  db.exec(`CREATE TABLE stored (n INTEGER);
    CREATE TRIGGER counted AFTER INSERT ON subscriptions BEGIN INSERT INTO stored VALUES (1); END`)
  const raw = await enter(broker, await broker.enroll('A'), false)
  const filters = Array.from({ length: 1_000 }, (_, n) => (n % 4 === 3 ? 'denied' : `devices/A/${n}`))
  const granted = await subscribe(raw, filters)
  t.equal(granted.filter((code) => code === 1).length, 750)
  t.same(db.prepare('SELECT count(*) AS n FROM stored').get(), { n: 750 })
  t.same(db.prepare('SELECT count(*) AS n FROM subscriptions').get(), { n: 750 })
  db.close()
  raw.socket.destroy()
})

t.test('what a client sends while it is not read stays with the client', async (t) => {
  const broker = await open(t, { publishBurst: 1, publishPerSecond: 1 })
  const raw = await enter(broker, await broker.enroll('A'))
  const other = await enter(broker, await broker.enroll('B'))
  const [connection] = broker.sessions.select({ kind: 'device', id: 'A' })
  if (connection === undefined) return t.fail('not indexed')
  const flood = Array.from({ length: 500 }, () => publish('devices/A/up', Buffer.alloc(16_384), 0))
  for (const packet of flood) raw.send(packet)
  for (let n = 0; n < 300; n++) await other.ping()
  const taken = (connection.socket as unknown as { bytesRead: number }).bytesRead // of a TLSSocket
  t.ok(taken < 1_048_576, `${taken} octets of 8 MiB were taken`)
  t.notOk(raw.socket.destroyed, 'and it is not cut')
  raw.socket.destroy()
  other.socket.destroy()
})

t.test(
  'a bucket gives its burst, then its rate, whatever the clock and the order of clients do',
  async (t) => {
    const size = { burst: 20, perSecond: 50 }
    fc.assert(
      fc.property(
        fc.array(fc.tuple(fc.constantFrom('A', 'B'), fc.integer({ min: -50, max: 200 })), { maxLength: 400 }),
        (steps) => {
          const rate = new PublishRate()
          let [now, latest] = [1_000, 1_000]
          const free = new Map<string, number>()
          for (const [id, elapsedMs] of steps) {
            now += elapsedMs
            latest = Math.max(latest, now)
            if (rate.take(id, { now, ...size }) === 0) free.set(id, (free.get(id) ?? 0) + 1)
          }
          // A clock that goes back and forth gives its way forward again, and no more.
          const forward = steps.reduce((sum, [, elapsedMs]) => sum + Math.max(0, elapsedMs), 0)
          return [...free.values()].every((count) => count <= 20 + (forward / 1000) * 50 + 1)
        },
      ),
    )
    const rate = new PublishRate()
    for (let n = 0; n < 20; n++) t.equal(rate.take('A', { now: 0, ...size }), 0)
    t.equal(rate.take('A', { now: 0, ...size }), 20, 'the time of one request')
    t.equal(rate.take('A', { now: 0, ...size }), 40, 'and of what is owed already')
    t.equal(rate.take('B', { now: 0, ...size }), 0, 'of one identity')
    t.equal(rate.take('B', { now: 0, ...size, cost: 29 }), 200, 'each filter of a packet counts')
    for (let n = 0; n < 10_000; n++) rate.take(`x${n}`, { now: 0, ...size })
    t.equal(new PublishRate().take('A', { now: 0, burst: 1, perSecond: 0 }), 0, '0 is any')
    rate.hold('A', { now: 1_000, ms: 500 })
    rate.hold('A', { now: 1_100, ms: 50 })
    for (let n = 0; n < 10_000; n++) rate.hold(`x${n}`, { now: 0, ms: 10 })
    t.equal(rate.heldMs('A', 1_200), 300, 'of the longer one')
    t.equal(rate.heldMs('A', 0), 500, 'a clock that is set back adds nothing')
    t.same([rate.heldMs('A', 1_500), rate.heldMs('B', 0)], [0, 0])
  },
)
