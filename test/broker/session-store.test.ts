import assert from 'node:assert'
import { readFileSync, statSync, writeFileSync } from 'node:fs'
import { createRequire } from 'node:module'
import { join } from 'node:path'
import { PassThrough } from 'node:stream'
import Database from 'better-sqlite3'
import mqttPacket, { type Packet } from 'mqtt-packet'
import t from 'tap'
import { openLog } from '#shared/log'
import { publishHead, pubrel } from '../../broker/door/packet-octets.ts'
import { LIMITS } from '../../broker/limits.ts'
import type { SessionStore } from '../../broker/store/session-store.ts'
import { openSessionStore } from '../../broker/store/store-open.ts'
import { TopicTree } from '../../broker/store/topic-tree.ts'
import fc from '../support/properties.ts'

const log = openLog('test', 'silent', new PassThrough().resume())

interface SuiteOptions {
  test(title: string, run: (context: object) => Promise<void>): void
  persistence(): object
  testAsync: boolean
}
const contractSuite: (options: SuiteOptions) => void = createRequire(import.meta.url)(
  'aedes-persistence/abstract.js',
)

t.test('the store keeps the contract that Aedes has with its persistence', async (t) => {
  let count = 0
  contractSuite({
    test(title, run) {
      count++
      t.test(title, async () => run({ assert, plan() {}, diagnostic() {} }))
    },
    persistence: () => openSessionStore(':memory:', { durability: 'full', limits: LIMITS, log }),
    testAsync: true,
  })
  t.equal(count, 50)
})

/** MQTT 3.1.1 section 4.7, straight from its words. */
function matches(filter: readonly string[], topic: readonly string[], isFirst = true): boolean {
  const [level, ...deeper] = filter
  if (isFirst && topic[0]?.startsWith('$') && (level === '+' || level === '#')) return false
  if (level === '#') return true
  if (level === undefined) return topic.length === 0
  if (topic.length === 0) return false
  return (level === '+' || level === topic[0]) && matches(deeper, topic.slice(1), false)
}
const levels = fc.array(fc.constantFrom('', 'a', 'b', '$x'), { minLength: 1, maxLength: 5 })
const filters = fc
  .tuple(
    fc.array(fc.constantFrom('', 'a', 'b', '$x', '+'), { maxLength: 4 }),
    fc.constantFrom('#', 'a', '+', ''),
  )
  .map(([some, last]) => [...some, last])

t.test(
  'a tree of topics finds what a filter matches, and of filters what matches a topic, as the words of MQTT say',
  async (t) => {
    const join = (list: string[][]) => [...new Set(list.map((one) => one.join('/')))]
    fc.assert(
      fc.property(
        fc.array(levels, { maxLength: 12 }),
        fc.array(filters, { maxLength: 12 }),
        fc.infiniteStream(fc.boolean()),
        (all, asked, coin) => {
          const [topics, wanted] = [join(all), join(asked)]
          const [byTopic, byFilter] = [new TopicTree<string>(), new TopicTree<string>()]
          for (const topic of topics) byTopic.set(topic, topic)
          for (const filter of wanted) byFilter.set(filter, filter)
          const gone = [...topics, ...wanted].filter(() => coin.next().value)
          for (const one of gone) for (const tree of [byTopic, byFilter]) tree.delete(one)
          const left = (list: string[]) => list.filter((one) => !gone.includes(one))
          assert.deepStrictEqual([...byTopic.values()].toSorted(), left(topics).toSorted())
          assert.strictEqual(byTopic.size, left(topics).length)
          for (const filter of wanted) {
            const expected = left(topics).filter((topic) => matches(filter.split('/'), topic.split('/')))
            assert.deepStrictEqual([...byTopic.topicsUnder(filter)].toSorted(), expected.toSorted())
          }
          for (const topic of topics) {
            const expected = left(wanted).filter((filter) => matches(filter.split('/'), topic.split('/')))
            assert.deepStrictEqual(byFilter.filtersFor(topic).toSorted(), expected.toSorted())
          }
        },
      ),
      { numRuns: 3_000 },
    )
    t.pass()
  },
)

t.test('what is sent from a queue is what a parser of MQTT reads', async (t) => {
  const fields = fc.record({
    topic: fc
      .string({ minLength: 1, maxLength: 300, unit: 'grapheme' })
      .filter((text) => !/[+#\0]/.test(text)),
    payload: fc.oneof(
      fc.uint8Array({ maxLength: 300 }),
      fc.constantFrom(127, 128, 16_383, 16_384, 200_000).map((n) => new Uint8Array(n)),
    ),
    qos: fc.constantFrom(1, 2),
    messageId: fc.integer({ min: 1, max: 65_535 }),
    dup: fc.boolean(),
  })
  fc.assert(
    fc.property(fields, (given) => {
      const payload = Buffer.from(given.payload)
      const read: Packet[] = []
      const parser = mqttPacket.parser().on('packet', (packet) => read.push(packet))
      parser.parse(Buffer.concat([publishHead({ ...given, payload }), payload, pubrel(given.messageId)]))
      const [message, release] = read
      if (message?.cmd !== 'publish') return false
      assert.deepStrictEqual(
        {
          topic: message.topic,
          payload: Buffer.from(message.payload),
          qos: message.qos,
          messageId: message.messageId,
          dup: message.dup,
        },
        { ...given, payload },
      )
      return (
        read.length === 2 &&
        release?.cmd === 'pubrel' &&
        release.messageId === given.messageId &&
        !message.retain
      )
    }),
  )
  t.pass()
})

/** What may be asked of a store, in small numbers so that things meet. */
const clients = fc.constantFrom('a', 'b')
const topics = fc.constantFrom('x', 'x/y', 'z')
const steps = fc.oneof(
  fc.record({
    do: fc.constant('subscribe' as const),
    id: clients,
    topic: topics,
    qos: fc.constantFrom(0, 1, 2),
  }),
  fc.record({ do: fc.constant('unsubscribe' as const), id: clients, topic: topics }),
  fc.record({ do: fc.constant('retain' as const), topic: topics, text: fc.constantFrom('', 'one', 'two') }),
  fc.record({
    do: fc.constant('queue' as const),
    to: fc.uniqueArray(clients, { minLength: 1 }),
    topic: topics,
  }),
  fc.record({ do: fc.constant('number' as const), id: clients, nth: fc.nat(3) }),
  fc.record({ do: fc.constant('answer' as const), id: clients, messageId: fc.integer({ min: 1, max: 8 }) }),
  fc.record({ do: fc.constant('receive' as const), id: clients, messageId: fc.integer({ min: 1, max: 3 }) }),
  fc.record({ do: fc.constant('release' as const), id: clients, messageId: fc.integer({ min: 1, max: 3 }) }),
  fc.record({ do: fc.constant('will' as const), id: clients, topic: topics }),
  fc.record({ do: fc.constant('no will' as const), id: clients }),
  fc.record({ do: fc.constant('open again' as const) }),
)
type Step = Exclude<typeof steps extends fc.Arbitrary<infer S> ? S : never, { do: 'open again' }>
interface Contract
  extends Pick<
    SessionStore,
    'addSubscriptions' | 'removeSubscriptions' | 'subscriptionsByClient' | 'subscriptionsByTopic'
  > {
  storeRetained(packet: object): Promise<void>
  createRetainedStream(filter: string): AsyncIterable<{ topic: string; payload: Buffer }>
  outgoingEnqueueCombi(targets: object[], packet: object): Promise<void>
  outgoingStream(client: {
    id: string
  }): AsyncIterable<{ cmd: string; topic: string; messageId?: number; brokerCounter: number }>
  outgoingUpdate(client: { id: string }, packet: object): Promise<unknown>
  outgoingClearMessageId(client: { id: string }, packet: object): Promise<unknown>
  incomingStorePacket(client: { id: string }, packet: object): Promise<unknown>
  incomingGetPacket(client: { id: string }, packet: object): Promise<unknown>
  incomingDelPacket(client: { id: string }, packet: object): Promise<unknown>
  putWill(client: { id: string }, will: object): Promise<unknown>
  getWill(client: { id: string }): Promise<{ topic: string } | undefined>
  delWill(client: { id: string }): Promise<unknown>
  setup(broker: object): Promise<void>
}
const Reference: new () => Contract = createRequire(import.meta.url)('aedes-persistence/asyncPersistence.js')

async function all<T>(items: AsyncIterable<T>): Promise<T[]> {
  const list: T[] = []
  for await (const item of items) list.push(item)
  return list
}

let counter = 0
async function take(store: Contract, step: Step, count: number): Promise<void> {
  const client = 'id' in step ? { id: step.id } : { id: '' }
  const payload = Buffer.from('text')
  switch (step.do) {
    case 'subscribe':
      return store.addSubscriptions(client, [{ topic: step.topic, qos: step.qos }])
    case 'unsubscribe':
      return store.removeSubscriptions(client, [step.topic])
    case 'retain':
      return store.storeRetained({
        cmd: 'publish',
        topic: step.topic,
        payload: Buffer.from(step.text),
        qos: 1,
        retain: true,
      })
    case 'queue': {
      const packet = {
        cmd: 'publish',
        topic: step.topic,
        payload,
        qos: 1,
        brokerId: 'b',
        brokerCounter: count,
      }
      return store.outgoingEnqueueCombi(
        step.to.map((clientId) => ({ clientId })),
        packet,
      )
    }
    case 'number': {
      const waiting = await all(store.outgoingStream(client))
      const packet = waiting.filter(({ messageId }) => messageId === undefined)[step.nth]
      if (packet !== undefined) await store.outgoingUpdate(client, { ...packet, messageId: count })
      return
    }
    case 'answer': {
      const waiting = await all(store.outgoingStream(client))
      const messageId = waiting.map((packet) => packet.messageId).filter((id) => id !== undefined)[
        step.messageId
      ]
      if (messageId !== undefined) await store.outgoingClearMessageId(client, { messageId })
      return
    }
    case 'receive':
      return void (await store.incomingStorePacket(client, { ...step, cmd: 'publish', payload, qos: 2 }))
    case 'release':
      return void (await store.incomingDelPacket(client, step).catch(() => {}))
    case 'will':
      return void (await store.putWill(client, { topic: step.topic, payload, qos: 0, retain: false }))
    case 'no will':
      return void (await store.delWill(client))
  }
}
async function contents(store: Contract): Promise<object> {
  const known = async (id: string) => ({
    subscriptions: (await store.subscriptionsByClient({ id }))
      .map(({ topic, qos }) => `${topic} ${qos}`)
      .toSorted(),
    queue: (await all(store.outgoingStream({ id }))).map(({ topic, messageId }) => `${topic} ${messageId}`),
    incoming: await Promise.all(
      [1, 2, 3].map((messageId) =>
        store.incomingGetPacket({ id }, { messageId }).then(
          () => true,
          () => false,
        ),
      ),
    ),
    will: (await store.getWill({ id }))?.topic,
  })
  const retained = await all(store.createRetainedStream('#'))
  return {
    clients: await Promise.all(['a', 'b'].map(known)),
    retained: retained.map(({ topic, payload }) => `${topic} ${payload}`).toSorted(),
    matching: (await store.subscriptionsByTopic('x/y'))
      .map(({ clientId, topic, qos }) => `${clientId} ${topic} ${qos}`)
      .toSorted(),
  }
}

t.test(
  'whatever is asked, and however often it is opened again, it holds what the one in memory holds',
  async (t) => {
    await fc.assert(
      fc.asyncProperty(fc.array(steps, { maxLength: 40 }), async (asked) => {
        const path = join(t.testdir(), 'sessions.db')
        const open = () => openSessionStore(path, { durability: 'kill', limits: LIMITS, log })
        let store = open()
        const reference = new Reference()
        for (const one of [store, reference]) await one.setup({ id: 'b', clients: {} })
        for (const step of asked) {
          if (step.do === 'open again') {
            await store.destroy()
            store = open()
            await store.setup({ id: 'b', clients: {} })
          } else {
            counter++
            for (const one of [store as unknown as Contract, reference]) await take(one, step, counter)
          }
          assert.deepStrictEqual(await contents(store as unknown as Contract), await contents(reference))
        }
        await store.destroy()
      }),
      { numRuns: 60 },
    )
    t.pass()
  },
)

t.test(
  'a file that is damaged, or of a newer version, is refused and left as it is; none is made anew',
  async (t) => {
    const path = join(t.testdir(), 'sessions.db')
    const open = () => openSessionStore(path, { durability: 'full', limits: LIMITS, log })
    await open().destroy()
    t.equal(statSync(path).mode & 0o777, 0o600)
    const db = new Database(path)
    db.pragma('user_version = 99')
    db.close()
    t.throws(open, { code: 'directory_unusable', message: /newer version/ })
    const damaged = Buffer.alloc(8_192, 0x55)
    writeFileSync(path, damaged)
    t.throws(open, { code: 'directory_unusable', message: /is damaged\. Put back a copy.*rm .*sessions\.db/ })
    t.ok(readFileSync(path).equals(damaged))
  },
)
