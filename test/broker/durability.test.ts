import { join } from 'node:path'
import type { IPublishPacket } from 'mqtt-packet'
import t, { type Test } from 'tap'
import type { Limits } from '../../broker/limits.ts'
import { forgetRetained } from '../../broker/store/purge.ts'
import { until } from '../support/broker.ts'
import { cut, type DurableBroker, openDurableBroker } from '../support/durable-broker.ts'
import { connectPacket, enter, openRaw, publish, type RawClient, subscribe } from '../support/mqtt-clients.ts'
import { testAuthority } from '../support/pki.ts'

const authority = await testAuthority()
t.teardown(() => authority.remove())

const everything = { publish: ['devices/#'], subscribe: ['devices/#'] }
const UNPACED = { publishPerSecond: 0 }

function open(t: Test, limits: Partial<Limits> = {}): Promise<DurableBroker> {
  return openDurableBroker(t, { authority, path: join(t.testdir(), 'sessions.db'), limits })
}

/** A device with a session, subscribed to its commands, that is away; and a service that is there. */
async function away(t: Test, limits: Partial<Limits> = {}) {
  const broker = await open(t, limits)
  const a = await broker.enroll('A')
  const service = await broker.enroll('backend', { kind: 'service' })
  const first = await enter(broker, a, false)
  await subscribe(first, 'devices/A/commands/#', 2)
  await cut(first)
  return { broker, a, service }
}
async function order(raw: RawClient, payload: string, qos: 1 | 2 = 1): Promise<void> {
  const packet = publish('devices/A/commands/x', payload, qos)
  raw.send(packet)
  await raw.next(qos === 1 ? 'puback' : 'pubrec', ({ messageId }) => messageId === packet.messageId)
}
async function returns(broker: DurableBroker, who: Parameters<typeof openRaw>[1]) {
  const raw = await openRaw(broker, who)
  const connack = await raw.connect({ clientId: who.id ?? '', clean: false })
  return { raw, connack }
}
async function nextPublish(raw: RawClient): Promise<IPublishPacket> {
  return (await raw.next('publish')) as IPublishPacket // by its cmd
}
const isPublish = ({ cmd }: { cmd: string }) => cmd === 'publish'

t.test('what is queued for a device that is away survives a restart, in its order', async (t) => {
  const { broker, a, service } = await away(t)
  const raw = await enter(broker, service)
  for (let n = 0; n < 40; n++) await order(raw, `order ${n}`, n % 2 === 0 ? 1 : 2)
  const again = await broker.restart()
  const { raw: back, connack } = await returns(again, a)
  t.equal(connack.sessionPresent, true)
  const got: string[] = []
  while (got.length < 40) {
    const { payload, qos, messageId = 0, dup } = await nextPublish(back)
    got.push(String(payload))
    t.ok(dup, 'it may have been sent by the broker before')
    if (qos === 1) back.send({ cmd: 'puback', messageId })
    else {
      back.send({ cmd: 'pubrec', messageId })
      await back.next('pubrel')
      back.send({ cmd: 'pubcomp', messageId })
    }
  }
  t.same(
    got,
    Array.from({ length: 40 }, (_, n) => `order ${n}`),
  )
  await back.ping()
  const once = await again.restart()
  const { raw: last } = await returns(once, a)
  await last.ping()
  t.notOk(last.received.some(isPublish), 'what was answered for is not sent again')
  t.same(once.database().prepare('SELECT count(*) AS n FROM messages').get(), { n: 0 }, 'nor kept')
})

t.test(
  'what was under way is sent again with its identifier; PUBREL only, once the message was received',
  async (t) => {
    const { broker, a, service } = await away(t)
    const raw = await enter(broker, service)
    const { raw: first } = await returns(broker, a)
    await order(raw, 'one', 1)
    await order(raw, 'two', 2)
    await order(raw, 'three', 2)
    const sent = [await nextPublish(first), await nextPublish(first), await nextPublish(first)]
    t.same(
      sent.map(({ dup }) => dup),
      [false, false, false],
    )
    first.send({ cmd: 'pubrec', messageId: sent[2]?.messageId ?? 0 })
    await first.next('pubrel')
    await cut(first)
    for (const live of [() => broker, () => broker.restart()]) {
      const { raw: back } = await returns(await live(), a)
      const repeated = [await nextPublish(back), await nextPublish(back)]
      t.same(
        repeated.map(({ messageId, dup, payload }) => ({ messageId, dup, payload: String(payload) })),
        [
          { messageId: sent[0]?.messageId, dup: true, payload: 'one' },
          { messageId: sent[1]?.messageId, dup: true, payload: 'two' },
        ],
      )
      t.match(await back.next('pubrel'), { messageId: sent[2]?.messageId })
      await back.ping()
      t.notOk(back.received.some(isPublish))
      await cut(back)
    }
  },
)

t.test(
  'a half-received QoS 2 message is routed once, however often it is sent, also after a restart',
  async (t) => {
    const broker = await open(t)
    const [a, service] = [await broker.enroll('A'), await broker.enroll('backend', { kind: 'service' })]
    const reader = await enter(broker, service, false)
    await subscribe(reader, 'devices/#', 2)
    const first = await enter(broker, a, false)
    const message = publish('devices/A/up', 'once', 2)
    first.send(message)
    await first.next('pubrec')
    const { messageId = 0 } = await nextPublish(reader)
    reader.send({ cmd: 'pubrec', messageId })
    await reader.next('pubrel')
    reader.send({ cmd: 'pubcomp', messageId })
    await reader.ping()
    const again = await broker.restart()
    const { raw, connack } = await returns(again, a)
    t.equal(connack.sessionPresent, true, 'there is a session, although it has no subscription')
    raw.send({ ...message, dup: true })
    await raw.next('pubrec')
    raw.send({ cmd: 'pubrel', messageId: message.messageId })
    await raw.next('pubcomp')
    raw.send({ ...message, payload: 'another' })
    await raw.next('pubrec')
    const back = await returns(again, service)
    t.equal(String((await nextPublish(back.raw)).payload), 'another')
    await back.raw.ping()
    t.notOk(back.raw.received.some(isPublish))
  },
)

t.test('retained messages survive a restart, also their deletion', async (t) => {
  const broker = await open(t)
  const a = await broker.enroll('A')
  const raw = await enter(broker, a)
  raw.send(publish('devices/A/1', 'one', 0, true), publish('devices/A/2', 'two', 1, true))
  raw.send(publish('devices/A/3', 'three', 2, true), publish('devices/A/1', '', 1, true))
  await raw.next('puback')
  await raw.next('pubrec')
  await raw.next('puback')
  const again = await broker.restart()
  const back = await enter(again, a)
  await subscribe(back, 'devices/A/+', 2)
  const got = [await nextPublish(back), await nextPublish(back)]
  t.same(got.map(({ topic, payload, retain, qos }) => [topic, String(payload), retain, qos]).toSorted(), [
    ['devices/A/2', 'two', true, 1],
    ['devices/A/3', 'three', true, 2],
  ])
})

t.test(
  'the will of a broker that is gone is published by the next one, unless its device was revoked',
  async (t) => {
    const path = join(t.testdir(), 'sessions.db')
    const broker = await openDurableBroker(t, { authority, path, heartbeatMs: 20 })
    const ids = await Promise.all(['good', 'bad'].map((id) => broker.enroll(id)))
    for (const { id, fingerprint } of ids) {
      const will = {
        topic: `devices/${id}/gone`,
        payload: Buffer.from(id),
        qos: 1 as const,
        retain: false,
        fingerprint,
      }
      await broker.store.putWill({ id }, will)
    }
    const service = await broker.enroll('backend', { kind: 'service' })
    const reader = await enter(broker, service, false)
    await subscribe(reader, 'devices/#')
    const bad = ids.find(({ id }) => id === 'bad')
    if (bad === undefined) return t.fail('enrolled above')
    await broker.revoke(bad)
    const again = await broker.restart()
    const { raw } = await returns(again, service)
    t.equal(String((await nextPublish(raw)).payload), 'good')
    await until(async () => (await again.store.getWill({ id: 'bad' })) === undefined)
    await raw.ping()
    t.notOk(raw.octets.includes('bad'))
  },
)

t.test(
  'messages reach a live subscriber in their order and once, those that are stored and those that are not',
  async (t) => {
    const broker = await open(t, UNPACED)
    const [a, w] = [
      await broker.enroll('A', { policy: everything, fleet: 'f' }),
      await broker.enroll('W', { policy: everything, fleet: 'f' }),
    ]
    const stored = await enter(broker, a, false)
    const live = await enter(broker, await broker.enroll('L', { policy: everything, fleet: 'f' }))
    await subscribe(live, 'devices/x/#', 1)
    await subscribe(stored, 'devices/x/even', 1)
    await subscribe(stored, 'devices/x/#', 0)
    stored.socket.on('data', () => {
      for (const packet of stored.received)
        if (packet.cmd === 'publish' && packet.qos === 1)
          stored.send({ cmd: 'puback', messageId: packet.messageId ?? 0 })
      all.push(...stored.received.splice(0))
    })
    const all: { cmd: string }[] = []
    const writer = await enter(broker, w)
    const packets = Array.from({ length: 480 }, (_, n) => {
      const topic = n % 2 === 0 ? 'devices/x/even' : 'devices/x/odd'
      return publish(topic, `${n}`, n % 3 === 0 ? 0 : 1, n % 7 === 0)
    })
    for (let at = 0; at < packets.length; at += 48) writer.send(...packets.slice(at, at + 48))
    await writer.ping()
    const order = (list: readonly { cmd: string }[]) =>
      list.filter(isPublish).map((packet) => String((packet as IPublishPacket).payload)) // by its cmd
    await until(() => order(live.received).length >= 480)
    t.same(
      order(live.received),
      packets.map(({ payload }) => payload),
    )
    await until(() => order(all).length >= 480)
    // What is queued waits for its answers, so that the order is that of each QoS [MQTT-4.6.0-6].
    for (const isQueued of [true, false]) {
      const expected = packets.filter(({ topic, qos }) => (topic.endsWith('even') && qos === 1) === isQueued)
      const got = all.filter((packet) => ((packet as IPublishPacket).qos === 1) === isQueued) // of its cmd
      t.same(
        order(got),
        expected.map(({ payload }) => payload),
      )
    }
  },
)

t.test(
  'what could not be stored is not acknowledged: the connection closes, and nothing of it is left',
  async (t) => {
    const { broker, a, service } = await away(t)
    const [raw, watcher] = [await enter(broker, service), await enter(broker, a)]
    await cut(watcher)
    const { raw: kept } = await returns(broker, a)
    t.ok(kept, 'the clean session has ended the one before it')
    await subscribe(kept, 'devices/A/commands/#', 2)
    await cut(kept)
    const mend = broker.breakDisk('queue')
    for (const qos of [1, 2] as const) {
      const writer = await enter(broker, service)
      const packet = publish('devices/A/commands/x', 'lost', qos)
      writer.send(packet)
      await writer.closed
      t.notOk(writer.received.some(({ cmd }) => cmd === 'puback' || cmd === 'pubrec'))
      t.match(
        broker.reports.findLast(({ type }) => type === 'disconnected'),
        { device: 'backend' },
      )
    }
    mend()
    await raw.closed
    const writer = await enter(broker, service, false)
    const message = publish('devices/A/commands/x', 'twice sent', 2)
    writer.send(message)
    await writer.next('pubrec')
    writer.send({ ...message, dup: true })
    await writer.next('pubrec')
    const { raw: back } = await returns(broker, a)
    t.equal(String((await nextPublish(back)).payload), 'twice sent', 'without a restart')
    await back.ping()
    t.notOk(back.received.some(isPublish), 'and once')
  },
)

t.test('a QoS 2 message whose routing failed is routed when it is sent again', async (t) => {
  const { broker, a, service } = await away(t)
  const mend = broker.breakDisk('queue')
  const first = await enter(broker, service, false)
  const message = publish('devices/A/commands/x', 'once', 2)
  first.send(message)
  await first.closed
  mend()
  const again = await enter(broker, service, false)
  again.send({ ...message, dup: true })
  await again.next('pubrec')
  const { raw: back } = await returns(broker, a)
  t.equal(String((await nextPublish(back)).payload), 'once')
})

t.test(
  'a message that cannot be read any more costs its reader the connection, not the process',
  async (t) => {
    const { broker, a, service } = await away(t, { queueResidentBytes: 0 })
    await order(await enter(broker, service), 'gone')
    const db = broker.database()
    db.exec('DELETE FROM messages')
    db.close()
    const { raw } = await returns(broker, a)
    await raw.closed
    const other = await enter(broker, service)
    await other.ping()
    t.notOk(raw.received.some(isPublish))
  },
)

t.test(
  'a device that is held or revoked while it is away loses what waits for it, by the review',
  async (t) => {
    const { broker, a, service } = await away(t)
    const raw = await enter(broker, service)
    await order(raw, 'secret')
    await broker.hold(a)
    await broker.mqtt.review()
    t.same(broker.store.sessions.all(), [])
    t.same(broker.store.sessions.queues.totals(), { messages: 0, bytes: 0, residentBytes: 0, dropped: 0 })
    await broker.change(a, (record) => ({ ...record, hold: null }))
    const { raw: back, connack } = await returns(broker, a)
    t.equal(connack.sessionPresent, false)
    await back.ping()
    t.notOk(back.octets.includes('secret'))
    for (const table of ['sessions', 'subscriptions', 'queue', 'messages', 'incoming', 'wills']) {
      const rows = broker.database().prepare(`SELECT count(*) AS n FROM ${table}`).get()
      t.match(rows, { n: table === 'sessions' ? 1 : 0 }, table)
    }
  },
)

t.test(
  'a new device under the id of a revoked one gets none of its messages, even when nobody purged them',
  async (t) => {
    const { broker, a, service } = await away(t)
    await order(await enter(broker, service), 'secret')
    const again = await broker.restart()
    // The purge did not happen: the broker was away when the device was revoked and its id enrolled anew.
    const record = again.replica.records.get(a.fingerprint)
    if (record === undefined) return t.fail('enrolled')
    again.replica.put({ ...record, certificate: { ...record.certificate, state: 'revoked' } })
    const heir = await again.enroll('A')
    const { raw, connack } = await returns(again, heir)
    t.equal(connack.sessionPresent, false)
    await subscribe(raw, 'devices/A/#', 2)
    await raw.ping()
    t.notOk(raw.octets.includes('secret'))
    await until(() => again.store.sessions.queues.totals().messages === 0)
  },
)

t.test(
  'a policy that was narrowed takes subscriptions and queued messages away from who is there, and who is not',
  async (t) => {
    const { broker, a, service } = await away(t)
    const b = await broker.enroll('B')
    const there = await enter(broker, b, false)
    await subscribe(there, 'devices/B/commands/#')
    await subscribe(there, 'devices/B/other')
    const raw = await enter(broker, service)
    await order(raw, 'before')
    for (const device of [a, b]) {
      await broker.change(device, (record) => ({
        ...record,
        fleet: { ...record.fleet, policy: { publish: [], subscribe: ['devices/${device.id}/other'] } },
      }))
    }
    await broker.mqtt.review('default')
    const names = async (id: string) =>
      (await broker.store.subscriptionsByClient({ id })).map(({ topic }) => topic)
    t.same(broker.store.sessions.subscriptions.of('A'), [])
    t.same(await names('B'), ['devices/B/other'])
    t.equal(broker.store.sessions.queues.totals().messages, 0)
    await order(raw, 'after')
    raw.send(publish('devices/B/commands/x', 'after'), publish('devices/B/commands/x', 'after', 0))
    await raw.next('puback')
    t.equal(broker.store.sessions.queues.totals().messages, 0)
    const { raw: back } = await returns(broker, a)
    await back.ping()
    await there.ping()
    t.notOk(back.received.some(isPublish))
    t.notOk(there.received.some(isPublish))
  },
)

t.test(
  'retained messages are forgotten where a hold says so, those of its devices and of nobody else',
  async (t) => {
    const { broker, a, service } = await away(t)
    const [raw, other] = [await enter(broker, a), await enter(broker, await broker.enroll('B'))]
    raw.send(publish('devices/A/state', 'mine', 1, true))
    await raw.next('puback')
    other.send(publish('devices/B/state', 'theirs', 1, true))
    await other.next('puback')
    await cut(raw)
    await broker.mqtt.purge(['A'])
    t.equal(broker.store.retained.totals().messages, 2)
    const upTo = broker.store.retained.newest
    await forgetRetained(broker.store, new Map())
    t.equal(broker.store.retained.totals().messages, 2)
    await forgetRetained(broker.store, new Map([['A', upTo]]))
    const again = await broker.restart()
    const reader = await enter(again, service)
    await subscribe(reader, 'devices/#')
    t.match(await reader.next('publish'), { topic: 'devices/B/state' })
    await reader.ping()
    t.notOk(reader.received.some(isPublish))
  },
)

t.test(
  'what somebody else has retained on the topic of a held device meanwhile is theirs, and stays',
  async (t) => {
    const { broker } = await away(t)
    const { retained, group } = broker.store
    const retain = (index: number, owner: string) => {
      const [topic, payload] = [`shared/${index}`, Buffer.from(owner)]
      const { write, done } = retained.plan({ cmd: 'publish', topic, payload, qos: 0, retain: true }, owner)
      return group.commit(write, done)
    }
    await Promise.all(Array.from({ length: 401 }, (_, index) => retain(index, 'A')))
    const forgotten = forgetRetained(broker.store, new Map([['A', retained.newest]]))
    await Promise.all([retain(400, 'B'), retain(399, 'A')])
    await forgotten
    t.ok(retained.isKept('shared/400', 'B'))
    t.ok(retained.isKept('shared/399', 'A'), 'and what it has retained itself since')
    t.equal(retained.totals().messages, 2)
  },
)

t.test(
  'a message whose author is refused before it is stored is neither stored, routed nor acknowledged',
  async (t) => {
    const { broker, a, service } = await away(t)
    const reader = await enter(broker, await broker.enroll('R', { policy: everything, fleet: 'f' }))
    await subscribe(reader, 'devices/#', 2)
    const { group } = broker.store
    const push = group.push.bind(group)
    for (const qos of [1, 2] as const) {
      const raw = await enter(broker, service)
      const [connection] = broker.sessions.select({ kind: 'device', id: 'backend' })
      if (connection === undefined) return t.fail('not indexed')
      // The decision falls between the judging of the message and the commit of its turn.
      group.push = (write, settle) => {
        push(write, settle)
        connection.refused = 'held'
      }
      raw.send(publish('devices/A/commands/x', 'evil', qos, true))
      await raw.closed
      group.push = push
      t.notOk(raw.received.some(({ cmd }) => cmd === 'puback' || cmd === 'pubrec'))
    }
    await reader.ping()
    t.notOk(reader.received.some(isPublish))
    t.match(broker.store.retained.totals(), { messages: 0 })
    const { raw: back } = await returns(broker, a)
    await back.ping()
    t.notOk(back.received.some(isPublish))
  },
)

t.test('a client that never releases what it sends is remembered so far, and not without end', async (t) => {
  const broker = await open(t)
  const a = await broker.enroll('A')
  const first = await enter(broker, a, false)
  await cut(first)
  const { sessions } = broker.store
  for (let messageId = 1; messageId <= 1_000; messageId++) {
    sessions.receive('A', { messageId })
    sessions.incoming.settle('A', messageId, null)
  }
  const { raw } = await returns(broker, a)
  const packet = { ...publish('devices/A/up', 'one more', 2), messageId: 1_001 }
  raw.send(packet)
  await raw.next('pubrec')
  await until(() => sessions.incoming.count('A') === 1_000)
  t.equal(sessions.incoming.oldest('A'), 2)
})

t.test('a client that another one has taken over leaves no subscription behind', async (t) => {
  const { broker, a } = await away(t)
  const { raw: first } = await returns(broker, a)
  const taken = broker.sessions.select({ kind: 'device', id: 'A' })
  const newcomer = await openRaw(broker, a)
  newcomer.send(connectPacket({ clientId: 'A', clean: true }))
  await until(() => broker.store.sessions.get('A') === undefined)
  first.send({ cmd: 'subscribe', messageId: 9, subscriptions: [{ topic: 'devices/A/late', qos: 1 }] })
  await newcomer.next('connack')
  await first.closed
  t.equal(taken.length, 1)
  t.same(broker.store.sessions.subscriptions.of('A'), [])
})

t.test('a service with a name after its id loses its will in a purge', async (t) => {
  const { broker } = await away(t)
  const will = { topic: 'devices/A/commands/x', payload: Buffer.from('last words'), qos: 1, retain: false }
  await broker.store.putWill({ id: 'backend:1' }, will)
  await broker.mqtt.purge(['back', 'backend'])
  t.equal(await broker.store.getWill({ id: 'backend:1' }), undefined)
})

t.test('a reader that is slow is written to as fast as it reads, and gets all of it', async (t) => {
  const { broker, a, service } = await away(t, {
    inflightOutbound: 1_000,
    replayBufferBytes: 4_096,
    queueBytes: 16_777_216,
  })
  const raw = await enter(broker, service)
  for (let n = 0; n < 150; n++) await order(raw, `${n}`.padStart(16_000))
  const { raw: back } = await returns(broker, a)
  const [connection] = broker.sessions.select({ kind: 'device', id: 'A' })
  let most = 0
  let seen = 0
  while (seen < 150) {
    const { payload, messageId = 0 } = await nextPublish(back)
    t.equal(Number(String(payload)), seen++)
    most = Math.max(most, connection?.socket.listenerCount('drain') ?? 0)
    back.octets = Buffer.alloc(0)
    back.send({ cmd: 'puback', messageId })
  }
  t.ok(most <= 2, `${most} of the delivery wait for the socket`)
})
