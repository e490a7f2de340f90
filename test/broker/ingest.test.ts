import { isDeepStrictEqual } from 'node:util'
import { setFlagsFromString } from 'node:v8'
import { runInNewContext } from 'node:vm'
import mqttPacket, { type Packet } from 'mqtt-packet'
import t, { type Test } from 'tap'
import { Standing } from '../../broker/judge/decisions.ts'
import { compilePolicy } from '../../broker/judge/topic-policy.ts'
import { Exchange } from '../../broker/mqtt/exchange.ts'
import { Ingest, type IngestDeps } from '../../broker/mqtt/ingest.ts'
import type { MqttClient } from '../../broker/mqtt/mqtt-client.ts'
import { Outgoing } from '../../broker/mqtt/outgoing.ts'
import type { Routed } from '../../broker/mqtt/route.ts'
import { isTopicFilter } from '../../broker/topic-syntax.ts'
import { openTestBroker, type TestBroker, until } from '../support/broker.ts'
import { fakeClient } from '../support/fake-client.ts'
import { enter, type RawClient } from '../support/mqtt-clients.ts'
import { testAuthority } from '../support/pki.ts'
import fc from '../support/properties.ts'
import { everyTopic, oracle } from '../support/topic-oracle.ts'

const authority = await testAuthority()
t.teardown(() => authority.remove())

const FLEET = { publish: ['devices/#'], subscribe: ['devices/#'] }
const UNPACED = { publishPerSecond: 0 }
const standing = () => new Standing(compilePolicy(FLEET, { id: 'A', fleet: 'default' }))
async function open(t: Test): Promise<TestBroker> {
  const broker = await openTestBroker({ authority, limits: UNPACED })
  t.teardown(() => broker.close())
  return broker
}

interface Carried {
  readonly cmd: string
  readonly topic?: string
  readonly payload?: string
  readonly qos?: number
}
function essence(packet: Pick<Packet, 'cmd'> | Routed): Carried {
  if (packet.cmd !== 'publish') return { cmd: packet.cmd }
  const { topic, payload, qos } = packet as Routed // a PUBLISH has them
  return { cmd: 'publish', topic, payload: payload.toString(), qos }
}

/** A client whose messages are noted in the order in which they are dealt with, by whichever way. */
function recording() {
  const dealt: Carried[] = []
  const acknowledged: number[] = []
  const ways = { short: 0, long: 0 }
  const asked = { times: 0, isDenied: false }
  const matched = { times: 0 }
  const parser = mqttPacket.parser()
  parser.on('packet', (packet) => {
    ways.long++
    dealt.push(essence(packet))
  })
  parser.on('error', () => ways.long++)
  const connection = standing()
  const answers = mqttPacket.parser()
  const answered: string[] = []
  answers.on('packet', ({ cmd, messageId = 0 }) => {
    answered.push(`${cmd} ${messageId}`)
    if (cmd === 'puback') acknowledged.push(messageId)
  })
  const conn = { destroyed: false, cork() {}, uncork() {}, write: (octets: Buffer) => answers.parse(octets) }
  const client = { id: 'A', connected: true, closed: false, clean: true, conn, req: { connection } }
  const deps: IngestDeps = {
    exchange: {
      version: 1,
      matching() {
        matched.times++
        return []
      },
      deliver(_, message) {
        ways.short++
        dealt.push(essence(message.routed()))
      },
    },
    route: { isShort: () => true, numbering: () => ({ brokerId: 'b', brokerCounter: 1 }) },
    isGranted(_, { topic }) {
      asked.times++
      return topic !== 'devices/denied' && !asked.isDenied
    },
    published: () => {},
    answers: {
      done: () => {},
      received: () => 'now',
      released: (_, messageId) => (messageId === 8 ? 'long' : 'now'),
    },
  }
  const ingest = new Ingest(deps, {
    client: client as unknown as MqttClient, // the parts of it that are asked
    parse: (octets) => void parser.parse(octets),
  })
  return { ingest, dealt, acknowledged, answered, ways, connection, client, asked, matched }
}

const ONCE = { cmd: 'publish', topic: 'devices/A/x', payload: 'x', retain: false, dup: false } as const
const message = fc.record({
  cmd: fc.constant('publish' as const),
  topic: fc.constantFrom('devices/A/x', 'devices/A/temperature', 'ä/ö', 'devices/denied', 'a', 'b', 'c', 'd'),
  payload: fc.uint8Array({ maxLength: 300 }).map((octets) => Buffer.from(octets)),
  qos: fc.constantFrom(0 as const, 1 as const, 2 as const),
  retain: fc.boolean(),
  dup: fc.constant(false),
  messageId: fc.integer({ min: 1, max: 65_535 }),
})
const other = fc.constantFrom<Packet>(
  { cmd: 'pingreq' },
  { cmd: 'puback', messageId: 7 },
  { cmd: 'subscribe', messageId: 9, subscriptions: [{ topic: 'devices/A/#', qos: 1 }] },
)

t.test('what a client sends is dealt with whole and in order, wherever the stream is cut', async (t) => {
  fc.assert(
    fc.property(
      fc.array(fc.oneof({ weight: 4, arbitrary: message }, other), { maxLength: 12 }),
      fc.array(fc.nat(120), { maxLength: 60 }),
      (packets, cuts) => {
        const octets = Buffer.concat(packets.map((packet) => mqttPacket.generate(packet)))
        const { ingest, dealt, acknowledged, ways } = recording()
        let at = 0
        for (const cut of [...cuts, octets.length]) {
          ingest.take(octets.subarray(at, at + cut))
          at += cut
        }
        const isDealtWith = ({ cmd }: { cmd: string }) => cmd === 'publish' || cmd === 'subscribe'
        const expected = packets.filter(isDealtWith).map(essence)
        const found = dealt.filter(isDealtWith)
        return isDeepStrictEqual(found, expected) && acknowledged.length <= ways.short
      },
    ),
    { numRuns: 1_000 },
  )
  t.pass()
})

t.test('what comes in one piece takes the short way, unless there is something about it', async (t) => {
  const { ingest, acknowledged, ways, connection } = recording()
  const send = (fields: object) =>
    ingest.take(
      mqttPacket.generate({
        ...{
          cmd: 'publish',
          topic: 'devices/A/x',
          payload: 'x',
          qos: 1,
          messageId: 5,
          retain: false,
          dup: false,
        },
        ...fields,
      } as Packet),
    )
  send({})
  send({ qos: 0 })
  t.strictSame([ways, acknowledged], [{ short: 2, long: 0 }, [5]])
  for (const fields of [
    { retain: true },
    { dup: true },
    { qos: 2 },
    { topic: 'devices/denied' },
    { topic: 'a\u0001' },
  ])
    send(fields)
  ingest.take(Buffer.from('320600016100000078', 'hex').subarray(0, 8)) // packet identifier 0
  ingest.take(Buffer.from('3003ffff61', 'hex')) // a topic longer than its packet
  t.equal(ways.short, 2)
  connection.refused = 'held'
  send({})
  t.equal(ways.short, 2, 'after the decision nothing of it is looked at')
})

t.test('a client of which a topic is remembered keeps no more memory than that alive', async (t) => {
  setFlagsFromString('--expose-gc')
  const collect: () => void = runInNewContext('gc')
  const others = Array.from({ length: 200 }, recording)
  collect()
  const before = process.memoryUsage().arrayBuffers
  for (const { ingest } of others) {
    ingest.take(mqttPacket.generate({ ...ONCE, qos: 0 }))
    for (let n = 0; n < 4; n++) Buffer.allocUnsafe(20_000) // what happens in between
  }
  // Buffers are freed by another thread, some time after they were collected.
  await until(() => {
    collect()
    return process.memoryUsage().arrayBuffers - before < 200 * 4_096
  })
  t.equal(others.length, 200)
})

t.test('a client that only says that it is there does not remember to whom its messages go', async (t) => {
  const { ingest, matched } = recording()
  const ping = mqttPacket.generate({ cmd: 'pingreq' })
  const publish = mqttPacket.generate({ ...ONCE, qos: 0 })
  for (const octets of [publish, ping, publish, ping, publish]) ingest.take(octets)
  t.equal(matched.times, 1, 'while it publishes it is not asked again')
  for (const octets of [ping, ping, publish, publish]) ingest.take(octets)
  t.equal(matched.times, 2)
})

t.test('what nothing waits for is answered in order, and costs next to nothing', async (t) => {
  const { ingest, answered, ways } = recording()
  const packets = [
    ...([{ cmd: 'pingreq' }, { cmd: 'pubrel', messageId: 7 }, { cmd: 'puback', messageId: 4 }] as const),
    ...([{ cmd: 'pubrec', messageId: 9 }, { cmd: 'pingreq' }] as const),
  ]
  const octets = Buffer.concat(packets.map((packet) => mqttPacket.generate(packet)))
  ingest.take(octets)
  const expected = ['pingresp 0', 'pubcomp 7', 'pubrel 9', 'pingresp 0']
  t.strictSame([answered, ways.long], [expected, 0])
  ingest.take(mqttPacket.generate({ cmd: 'pubrel', messageId: 8 }))
  t.equal(ways.long, 1, 'of a message that waits for it')
  for (const hex of ['c100', 'c001', '6002', '62020000', '50020000', '620100']) {
    const other = recording()
    other.ingest.take(Buffer.from(hex, 'hex'))
    t.strictSame(other.answered, [], hex)
  }
})

t.test(
  'a message reaches whom an oracle says, each client once, with the most that it was granted',
  async (t) => {
    const level = fc.constantFrom('', 'a', 'b', 'other', '+')
    const filter = fc
      .tuple(fc.array(level, { minLength: 1, maxLength: 3 }), fc.boolean())
      .map(([levels, isOpen]) => [...levels, ...(isOpen ? ['#'] : [])].join('/'))
      .filter(isTopicFilter)
    const granted = fc.record({ client: fc.nat(3), filter, qos: fc.constantFrom(0 as const, 1 as const) })
    const topics = everyTopic(3)
    fc.assert(
      fc.property(fc.array(granted, { maxLength: 8 }), (all) => {
        const got: { client: number; qos: number }[] = []
        const exchange = new Exchange({ mayForward: () => true, traffic: { delivered: 0 } })
        const clients = [0, 1, 2, 3].map((client) =>
          fakeClient(exchange, { connection: standing(), got: (qos) => got.push({ client, qos }) }),
        )
        for (const { client, filter, qos } of all) clients[client]?.subscribe(filter, qos)
        for (const topic of topics) {
          got.length = 0
          const fields = { topic, payload: 'x', qos: 1, retain: false, clientId: undefined }
          const outgoing = new Outgoing(fields, () => ({ brokerId: 'b', brokerCounter: 1 }))
          exchange.deliver(exchange.matching(topic), outgoing, null)
          const expected = clients.flatMap((_, client) => {
            const own = last(all.filter((one) => one.client === client)).filter((one) =>
              oracle(one.filter, topic),
            )
            return own.length === 0 ? [] : [{ client, qos: Math.max(...own.map(({ qos }) => qos)) }]
          })
          const found = got.toSorted((a, b) => a.client - b.client)
          if (!isDeepStrictEqual(found, expected)) return false
        }
        return true
      }),
      { numRuns: 200 },
    )
    t.pass()
  },
)

/** Of several subscriptions to one filter the last one counts [MQTT-3.8.4-3]. */
function last<T extends { readonly filter: string }>(all: readonly T[]): T[] {
  return [...new Map(all.map((one) => [one.filter, one])).values()]
}

t.test(
  'a verdict is remembered until anything is decided, and for no message that asks for more',
  async (t) => {
    const { ingest, ways, connection, asked } = recording()
    const send = (octets: number, qos: 0 | 1) =>
      ingest.take(
        mqttPacket.generate({
          ...{ cmd: 'publish', topic: 'devices/A/x', payload: Buffer.alloc(octets) },
          ...{ qos, messageId: 5, retain: false, dup: false },
        }),
      )
    for (const [octets, qos] of [
      [10, 0],
      [10, 0],
      [9, 0],
      [11, 0],
      [1, 1],
      [1, 0],
    ] as const)
      send(octets, qos)
    t.strictSame([asked.times, ways], [3, { short: 6, long: 0 }])
    asked.isDenied = true
    connection.policy = standing().policy
    send(1, 0)
    t.strictSame([asked.times, ways], [4, { short: 6, long: 1 }], 'under another policy it is asked again')
    asked.isDenied = false
    for (const octets of [1, 1]) send(octets, 0)
    standing().refused = 'held'
    for (const octets of [1, 1]) send(octets, 0)
    t.strictSame(
      [asked.times, ways],
      [6, { short: 10, long: 1 }],
      'and when something was decided about others',
    )
  },
)

t.test('a reader gets what its policy permits now, and nothing after the decision against it', async (t) => {
  const got: number[] = []
  const permitted = { isIt: true, asked: 0 }
  const mayForward = () => {
    permitted.asked++
    return permitted.isIt
  }
  const exchange = new Exchange({ mayForward, traffic: { delivered: 0 } })
  const reader = fakeClient(exchange, { connection: standing(), got: (qos) => got.push(qos) })
  reader.subscribe('a/+', 1)
  const matches = exchange.matching('a/b')
  const send = () => {
    const fields = { topic: 'a/b', payload: 'x', qos: 0, retain: false, clientId: undefined }
    const outgoing = new Outgoing(fields, () => ({ brokerId: 'b', brokerCounter: 1 }))
    exchange.deliver(matches, outgoing, null)
  }
  send()
  send()
  t.strictSame([got.length, permitted.asked], [2, 1])
  permitted.isIt = false
  reader.connection.policy = standing().policy
  send()
  send()
  t.strictSame([got.length, permitted.asked], [2, 3], 'a refusal is not remembered')
  permitted.isIt = true
  send()
  t.equal(got.length, 3)
  reader.connection.refused = 'held'
  send()
  t.equal(got.length, 3)
  reader.connection.refused = null
  reader.leave('a/+')
  send()
  t.equal(got.length, 3, 'nor after its subscription has ended, whoever remembers it')
  t.notOk(JSON.stringify(matches).includes('client":{'), 'and nobody is held by that')
})

async function subscribe(raw: RawClient, topic: string, qos: 0 | 1 | 2): Promise<void> {
  raw.send({ cmd: 'subscribe', messageId: 1, subscriptions: [{ topic, qos }] })
  await raw.next('suback')
}

t.test('a message leaves with the QoS of its reader, and a packet identifier of its own', async (t) => {
  const broker = await open(t)
  const [author, zero, one, two] = await Promise.all(
    ['A', 'B', 'C', 'D'].map(async (id) => enter(broker, await broker.enroll(id, { policy: FLEET }))),
  )
  if (!author || !zero || !one || !two) throw new Error('not enough clients')
  await subscribe(zero, 'devices/#', 0)
  await subscribe(one, 'devices/+/x', 1)
  await subscribe(one, 'devices/A/x', 0)
  await subscribe(two, 'devices/A/x', 2)
  const fields = { cmd: 'publish', topic: 'devices/A/x', retain: false, dup: false } as const
  for (const qos of [0, 1, 2] as const) author.send({ ...fields, qos, payload: `q${qos}`, messageId: 1_000 })
  author.send({ ...fields, dup: true, qos: 1, payload: 'again', messageId: 1_001 })
  await author.next('pubrec')
  author.send({ cmd: 'pubrel', messageId: 1_000 })
  await author.next('pubcomp')
  const heard = async (raw: RawClient) => {
    await until(() => raw.received.filter(({ cmd }) => cmd === 'publish').length === 4)
    await raw.ping()
    return raw.received
      .filter((packet) => packet.cmd === 'publish')
      .map(
        ({ payload, qos, dup, retain }) => `${payload} ${qos}${dup ? ' dup' : ''}${retain ? ' retain' : ''}`,
      )
      .toSorted()
  }
  t.strictSame(await heard(zero), ['again 0', 'q0 0', 'q1 0', 'q2 0'])
  t.strictSame(await heard(one), ['again 1', 'q0 0', 'q1 1', 'q2 1'])
  t.strictSame(await heard(two), ['again 1', 'q0 0', 'q1 1', 'q2 2'])
  const ids = one.received.map(({ messageId }) => messageId).filter((id) => id !== undefined)
  t.equal(new Set(ids).size, ids.length, 'none twice')
  for (const raw of [author, zero, one, two]) raw.socket.destroy()
})
