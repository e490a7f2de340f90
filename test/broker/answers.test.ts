/** PUBACK, PUBREC, PUBREL and PUBCOMP: what they cost when there are thousands of them, and what they do once. */
import { join } from 'node:path'
import type { IPublishPacket, Packet } from 'mqtt-packet'
import t, { type Test } from 'tap'
import type { Limits } from '../../broker/limits.ts'
import { until } from '../support/broker.ts'
import { cut, type DurableBroker, openDurableBroker } from '../support/durable-broker.ts'
import { enter, openRaw, publish, type RawClient, subscribe } from '../support/mqtt-clients.ts'
import { type TestIdentity, testAuthority } from '../support/pki.ts'

const authority = await testAuthority()
t.teardown(() => authority.remove())

const [PUBACK, PUBREC, PUBREL, PUBCOMP] = [0x40, 0x50, 0x62, 0x70] as const
/** As many as there are in the largest piece that is read at once: 16 KiB. */
const MANY = 4_096
const everything = { publish: ['devices/#'], subscribe: ['devices/#'] }

async function open(t: Test, limits: Partial<Limits> = {}) {
  const path = join(t.testdir(), 'sessions.db')
  const broker = await openDurableBroker(t, { authority, path, limits: { publishPerSecond: 0, ...limits } })
  const lamp = await broker.enroll('lamp', { policy: everything })
  const writer = await enter(broker, await broker.enroll('writer', { policy: everything }))
  return { broker, lamp, writer }
}
/** One message to the lamp, whole on the writer's side. */
async function order(writer: RawClient, qos: 1 | 2): Promise<void> {
  const packet = publish('devices/lamp/x', 'x', qos)
  const isIts = ({ messageId }: { messageId?: number }) => messageId === packet.messageId
  writer.send(packet)
  await writer.next(qos === 1 ? 'puback' : 'pubrec', isIts)
  if (qos === 1) return
  writer.send({ cmd: 'pubrel', messageId: packet.messageId })
  await writer.next('pubcomp', isIts)
}
async function nextId(raw: RawClient): Promise<number> {
  return ((await raw.next('publish')) as IPublishPacket).messageId ?? 0 // by its cmd
}
const packet = (type: number, id: number) => Buffer.of(type, 2, id >> 8, id & 0xff)
const many = (type: number, idOf: (n: number) => number) =>
  Buffer.concat(Array.from({ length: MANY }, (_, n) => packet(type, idOf(n))))
const count = (raw: RawClient, cmd: Packet['cmd'], id?: number) =>
  raw.received.filter((one) => one.cmd === cmd && (id === undefined || one.messageId === id)).length

/** Counts what Aedes is asked of the client, and what the disk is. */
function watch(broker: DurableBroker, device: string) {
  const [connection] = broker.sessions.select({ kind: 'device', id: device })
  if (connection === undefined) throw new TypeError('not connected')
  const { client } = connection.socket as unknown as { client: { _parser: NodeJS.EventEmitter } } // as Aedes sets it
  const seen = { parsed: 0, written: 0 }
  client._parser.on('packet', () => seen.parsed++)
  const { group } = broker.store
  const push = group.push.bind(group)
  group.push = (write, settle) => {
    if (write !== null) seen.written++
    push(write, settle)
  }
  return seen
}

for (const clean of [true, false]) {
  const whose = clean ? 'a clean session' : 'a session that is kept'
  t.test(`thousands of answers of ${whose} cost one look each, whatever they answer for`, async (t) => {
    const { broker, lamp, writer } = await open(t)
    const raw = await openRaw(broker, lamp)
    await raw.connect({ clientId: 'lamp', clean })
    await subscribe(raw, 'devices/lamp/#', 2)
    const half = publish('devices/other/x', 'x', 2)
    raw.send(half)
    await raw.next('pubrec')
    await order(writer, 2)
    const held = await nextId(raw)
    await order(writer, 1)
    const single = await nextId(raw)
    const seen = watch(broker, 'lamp')
    const unknown = (n: number) => 40_000 + n
    const floods: [string, Buffer, Partial<Record<'pubrel' | 'pubcomp', number>>][] = [
      ['PUBACK of nothing', many(PUBACK, unknown), {}],
      ['PUBREC of nothing', many(PUBREC, unknown), { pubrel: MANY }],
      ['PUBREL of nothing', many(PUBREL, unknown), { pubcomp: MANY }],
      ['PUBCOMP of nothing', many(PUBCOMP, unknown), {}],
      ['PUBACK of one message', many(PUBACK, () => single), {}],
      ['PUBREC of one message', many(PUBREC, () => held), { pubrel: 1 }],
      ['PUBREC of what was released', many(PUBREC, () => held), { pubrel: 1 }],
      ['PUBCOMP of one message', many(PUBCOMP, () => held), {}],
      ['PUBREL of one message', many(PUBREL, () => half.messageId), { pubcomp: 1 }],
      ['PUBREL of what is complete', many(PUBREL, () => half.messageId), { pubcomp: 1 }],
    ]
    for (const [name, octets, owed] of floods) {
      raw.received.splice(0)
      raw.octets = Buffer.alloc(0)
      raw.send(octets)
      await raw.ping()
      await until(() => broker.store.group.isIdle)
      await raw.ping()
      for (const cmd of ['pubrel', 'pubcomp'] as const) {
        const [least, got] = [owed[cmd] ?? 0, count(raw, cmd)]
        t.ok(least === 0 ? got === 0 : got >= least && got <= MANY, `${name}: ${got} ${cmd}`)
      }
    }
    // Those that are cut in two, where a piece ends, are put together by the parser.
    t.ok(seen.parsed <= 64, `${seen.parsed} of ${MANY * floods.length} were parsed`)
    t.ok(seen.written <= 8, `${seen.written} were written`)
    t.equal(broker.store.sessions.queues.totals().messages, 0)
    t.same(broker.refusals(), [])
  })
}

t.test(
  'PUBREL of a message that is still on its way is taken once, and answered when it is there',
  async (t) => {
    for (const clean of [true, false]) {
      const { broker, lamp, writer } = await open(t)
      await subscribe(writer, 'devices/other/#', 0)
      const raw = await openRaw(broker, lamp)
      await raw.connect({ clientId: 'lamp', clean })
      const seen = watch(broker, 'lamp')
      const sent = publish('devices/other/x', 'x', 2)
      raw.send(
        sent,
        many(PUBREL, () => sent.messageId),
      )
      await raw.next('pubrec')
      await raw.next('pubcomp')
      await raw.ping()
      await writer.next('publish')
      await writer.ping()
      t.equal(count(writer, 'publish'), 0, 'it was routed once')
      t.ok(seen.parsed < 64, `${seen.parsed} were parsed`)
      t.notOk(broker.store.sessions.incoming.hasAny('lamp'))
      await cut(raw)
      await broker.close()
    }
  },
)

t.test('PUBREL comes in the order of PUBREC, also of messages that are in no queue', async (t) => {
  const { broker, lamp, writer } = await open(t)
  const raw = await enter(broker, lamp, false)
  await subscribe(raw, 'devices/lamp/#', 2)
  const ids: number[] = []
  for (let n = 0; n < 10; n++) {
    await order(writer, 2)
    ids.push(await nextId(raw), 50_000 + n)
  }
  raw.send(Buffer.concat(ids.map((id) => packet(PUBREC, id))))
  const order2: number[] = []
  while (order2.length < ids.length) {
    const { messageId = 0 } = await raw.next('pubrel')
    order2.push(messageId)
  }
  t.same(order2, ids)
})

t.test(
  'however often a client says it, each message is sent once more at most, and then no more',
  async (t) => {
    const { broker, lamp, writer } = await open(t)
    const raw = await enter(broker, lamp, false)
    await subscribe(raw, 'devices/lamp/#', 2)
    for (let n = 0; n < 30; n++) {
      await order(writer, n % 3 === 0 ? 1 : 2)
      const id = await nextId(raw)
      const times = (type: number) => Array.from({ length: 1 + (n % 4) }, () => packet(type, id))
      if (n % 3 === 0) raw.send(Buffer.concat(times(PUBACK)))
      else if (n % 3 === 1) {
        raw.send(Buffer.concat(times(PUBREC)))
        await raw.next('pubrel', ({ messageId }) => messageId === id)
        raw.send(Buffer.concat(times(PUBCOMP)))
      } else raw.send(Buffer.concat([...times(PUBREC), ...times(PUBCOMP)])) // it does not wait for PUBREL
    }
    await raw.ping()
    await until(() => broker.store.group.isIdle)
    t.equal(broker.store.sessions.queues.totals().messages, 0)
    await cut(raw)
    const again = await broker.restart()
    const back = await enter(again, lamp, false)
    await back.ping()
    t.same(back.received, [])
    const db = again.database()
    t.same(db.prepare('SELECT count(*) AS n FROM queue').get(), { n: 0 })
    t.same(db.prepare('SELECT count(*) AS n FROM messages').get(), { n: 0 })
    db.close()
  },
)

t.test(
  'an answer that cannot be written is none: the client is cut off, and answers when it is back',
  async (t) => {
    const { broker, lamp, writer } = await open(t)
    const broken = async (what: string, use: () => Promise<RawClient>): Promise<void> => {
      const db = broker.database()
      db.exec(`CREATE TRIGGER broken BEFORE ${what} BEGIN SELECT RAISE(ABORT, 'disk full'); END`)
      const raw = await use()
      await raw.closed
      t.notOk(count(raw, 'pubrel') + count(raw, 'pubcomp'), `${what}: nothing was answered`)
      db.exec('DROP TRIGGER broken')
      db.close()
    }
    let raw = await enter(broker, lamp, false)
    await subscribe(raw, 'devices/lamp/#', 2)
    const answer = (type: number, id: number) => async () => {
      raw.received.splice(0)
      raw.send(packet(type, id))
      return raw
    }
    const comesBack = async (who: TestIdentity) => {
      await until(() => !broker.mqtt.registered().ids.includes('lamp'))
      raw = await enter(broker, who, false)
    }
    await order(writer, 2)
    const id = await nextId(raw)
    await broken('UPDATE ON queue', answer(PUBREC, id))
    await comesBack(lamp)
    t.match(await raw.next('publish'), { messageId: id, dup: true }, 'its PUBREC has not come')
    raw.send(packet(PUBREC, id))
    await raw.next('pubrel')
    await broken('DELETE ON queue', answer(PUBCOMP, id))
    await comesBack(lamp)
    t.match(await raw.next('pubrel'), { messageId: id }, 'nor its PUBCOMP')
    raw.send(packet(PUBCOMP, id))
    await order(writer, 1)
    const next = await nextId(raw)
    await broken('DELETE ON queue', answer(PUBACK, next))
    await comesBack(lamp)
    t.match(await raw.next('publish'), { messageId: next, dup: true })
    raw.send(packet(PUBACK, next))
    const half = publish('devices/lamp/y', 'x', 2)
    raw.send(half)
    await raw.next('pubrec')
    await broken('DELETE ON incoming', answer(PUBREL, half.messageId))
    await comesBack(lamp)
    raw.send(packet(PUBREL, half.messageId))
    await raw.next('pubcomp', ({ messageId }) => messageId === half.messageId)
    t.notOk(broker.store.sessions.incoming.hasAny('lamp'))
    const piecemeal = publish('devices/lamp/y', 'x', 2)
    raw.send(piecemeal)
    await raw.next('pubrec')
    const { messageId: its } = piecemeal
    await broken('DELETE ON incoming', async () => {
      raw.received.splice(0)
      raw.send(Buffer.of(PUBREL, 0x82, 0, its >> 8, its & 0xff)) // a length that is longer than it has to be
      return raw
    })
    t.ok(broker.store.sessions.incoming.has('lamp', its), 'nor is it forgotten that it has come')
    const reasons = broker.reports.flatMap((one) => (one.type === 'disconnected' ? [one.reason] : []))
    t.same(reasons, ['store', 'store', 'store', 'store', 'store'])
  },
)
