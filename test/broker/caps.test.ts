/** Caps of policies in a broker that runs: each for two fleets that differ, and when it is changed. */
import { join } from 'node:path'
import { PassThrough } from 'node:stream'
import t, { type Test } from 'tap'
import type { DeviceRecord, FleetRecord } from '#shared/feed'
import { openLog } from '#shared/log'
import type { PolicyLimits } from '#shared/policy/caps'
import type { Policy } from '#shared/policy/schema'
import { LIMITS, type Limits } from '../../broker/limits.ts'
import { openSessionStore } from '../../broker/store/store-open.ts'
import { until } from '../support/broker.ts'
import { cut, type DurableBroker, openDurableBroker } from '../support/durable-broker.ts'
import { enrollDevice, startEnrollment, type TestDevice } from '../support/enrollment.ts'
import { type Endpoint, enter, openRaw, publish, type RawClient } from '../support/mqtt-clients.ts'
import { type TestIdentity, testAuthority } from '../support/pki.ts'
import fc from '../support/properties.ts'
import { invitedBroker, runBroker } from '../support/running-broker.ts'

const authority = await testAuthority()
t.teardown(() => authority.remove())

const own = 'devices/${device.id}/#'
const limited = (limits: PolicyLimits): Policy => ({ publish: [own], subscribe: [own], limits })
const FLEET: FleetRecord = { id: 'lab', policy: limited({}), policyEpoch: 1 }
const DEVICE: DeviceRecord = { id: 'A', kind: 'device', fleet: 'lab', batch: null, state: 'active' }
const EVERYTHING: Policy = { publish: ['#'], subscribe: ['#'] }

/** Fleet `tight` with these limits, fleet `wide` without, and who writes to both. */
async function open(t: Test, limits: PolicyLimits, ofBroker: Partial<Limits> = {}) {
  const broker = await openDurableBroker(t, {
    authority,
    path: join(t.testdir(), 'sessions.db'),
    limits: ofBroker,
  })
  const tight = await broker.enroll('tight', { fleet: 'tight', policy: limited(limits) })
  const wide = await broker.enroll('wide', { fleet: 'wide', policy: { publish: [own], subscribe: [own] } })
  const writer = await broker.enroll('writer', { fleet: 'writers', kind: 'service', policy: EVERYTHING })
  return { broker, tight, wide, writer }
}

/** The fleet of the identity has these limits from now on, as the follower would say it. */
function setLimits(broker: DurableBroker, { fingerprint }: TestIdentity, limits: PolicyLimits): void {
  const record = recordOf(broker, fingerprint)
  const fleet = { ...record.fleet, policy: { ...record.fleet.policy, limits } }
  broker.replica.put({ ...record, fleet })
  broker.sessions.setPolicy(fleet)
}

/** The same of its device. */
function setDevice(
  broker: DurableBroker,
  { fingerprint }: TestIdentity,
  change: Partial<DeviceRecord>,
): void {
  const record = recordOf(broker, fingerprint)
  const device = { ...record.device, ...change }
  broker.replica.put({ ...record, device })
  broker.sessions.setDevice({ device, fleet: record.fleet })
}

function recordOf(broker: DurableBroker, fingerprint: string) {
  const record = broker.replica.records.get(fingerprint)
  if (record === undefined) throw new TypeError('not enrolled')
  return record
}

let messageIds = 0
async function subscribe(raw: RawClient, ...topics: string[]): Promise<number[]> {
  const messageId = ++messageIds
  raw.send({ cmd: 'subscribe', messageId, subscriptions: topics.map((topic) => ({ topic, qos: 1 })) })
  const suback = await raw.next('suback', (packet) => packet.messageId === messageId)
  return suback.cmd === 'suback' ? (suback.granted as number[]) : [] // numbers in MQTT 3.1.1
}
async function acknowledged(raw: RawClient, topic: string, payload: string | Buffer = 'x', retain = false) {
  raw.send(publish(topic, payload, 1, retain))
  await raw.next('puback')
}
/** True when the message is acknowledged, false when its author is cut off for it. */
async function retains(broker: DurableBroker, who: TestIdentity, topic: string, payload: string | Buffer) {
  const raw = await enter(broker, who)
  raw.send(publish(topic, payload, 1, true))
  const isTaken = await raw.next('puback').then(
    () => true,
    () => false,
  )
  await cut(raw)
  return isTaken
}
const queued = (broker: DurableBroker, { id }: TestIdentity) =>
  broker.store.sessions.queues.entries(id).length
/** Of what it was refused, in order. */
const evidence = (broker: DurableBroker, device: string) =>
  broker
    .refusals()
    .flatMap((report) =>
      report.device === device && ['R-QUOTA', 'R-POLICY-SUB'].includes(report.code) ? [report.evidence] : [],
    )

t.test('subscriptions and their levels differ by fleet and by device', async (t) => {
  const { broker, tight, wide } = await open(t, { subscriptions: 2, filterLevels: 4 })
  const [narrow, broad] = [await enter(broker, tight), await enter(broker, wide)]
  const three = (id: string) => [`devices/${id}/1`, `devices/${id}/2`, `devices/${id}/3`]
  t.same(await subscribe(narrow, 'devices/tight/1/2/3'), [128])
  t.same(await subscribe(broad, 'devices/wide/1/2/3'), [1])
  t.same(await subscribe(narrow, ...three('tight')), [1, 1, 128])
  t.same(await subscribe(broad, ...three('wide')), [1, 1, 1])
  t.same(evidence(broker, 'tight'), [
    { filter: 'devices/tight/1/2/3', allowedLevels: 4, rule: 'fleet limits.filterLevels' },
    { filter: 'devices/tight/3', allowedSubscriptions: 2, rule: 'fleet limits.subscriptions' },
  ])
  t.same(evidence(broker, 'wide'), [])

  setDevice(broker, tight, { policy: limited({ subscriptions: 3 }) })
  t.same(await subscribe(narrow, 'devices/tight/4'), [1], 'its own limit counts')
  t.same(await subscribe(narrow, 'devices/tight/5'), [128])
  t.same(await subscribe(narrow, 'devices/tight/5/6/7'), [128])
  t.match(evidence(broker, 'tight').slice(2), [
    { allowedSubscriptions: 3, rule: 'own limits.subscriptions' },
    { allowedLevels: 4, rule: 'fleet limits.filterLevels' },
  ])
})

t.test(
  'what a session has subscribed to stays when the limits are lowered; nothing comes to it',
  async (t) => {
    const { broker, tight } = await open(t, {})
    const first = await enter(broker, tight, false)
    const filters = ['devices/tight/1', 'devices/tight/2', 'devices/tight/3/4/5/6']
    t.same(await subscribe(first, ...filters), [1, 1, 1])
    setLimits(broker, tight, { subscriptions: 1, filterLevels: 3 })
    t.same(await subscribe(first, 'devices/tight/7'), [128])
    t.same(await subscribe(first, 'devices/tight/3/4/5/6'), [1], 'what it has it may ask for again')
    await cut(first)
    const again = await broker.restart()
    const raw = await enter(again, tight, false)
    t.same(again.refusals(), [], 'the session is taken up again as it was')
    t.same(
      again.store.sessions.subscriptions.of('tight').map(({ topic }) => topic),
      filters,
    )
    t.same(await subscribe(raw, 'devices/tight/7'), [128])
    raw.send({ cmd: 'unsubscribe', messageId: 9, unsubscriptions: filters })
    await raw.next('unsuback')
    t.same(await subscribe(raw, 'devices/tight/3/4/5/6'), [128], 'what it has given up is gone')
    t.same(await subscribe(raw, 'devices/tight/7', 'devices/tight/8'), [1, 128])
    await cut(raw)
  },
)

t.test('the queue of who is away has the length that its policy gives it, and follows it', async (t) => {
  const { broker, tight, wide, writer } = await open(t, { queueMessages: 2 })
  const service = await broker.enroll('backend', {
    fleet: 'b',
    kind: 'service',
    policy: { ...EVERYTHING, limits: { queueMessages: 3 } },
  })
  for (const who of [tight, wide, service]) {
    const raw = await enter(broker, who, false)
    t.same(await subscribe(raw, who === service ? 'devices/#' : `devices/${who.id}/#`), [1])
    await cut(raw)
  }
  const raw = await enter(broker, writer)
  const send = async (count: number, payload = 'x') => {
    for (let n = 0; n < count; n++)
      for (const { id } of [tight, wide]) await acknowledged(raw, `devices/${id}/x`, payload)
  }
  await send(4)
  t.same(
    [tight, wide, service].map((who) => queued(broker, who)),
    [2, 4, 3],
    'that of a service is not multiplied',
  )
  const reached = { limit: 'queueMessages', rule: 'fleet limits.queueMessages' }
  t.same(evidence(broker, 'tight'), [{ ...reached, allowed: 2 }])
  t.same(evidence(broker, 'backend'), [{ ...reached, allowed: 3 }])
  t.same(evidence(broker, 'wide'), [])

  setLimits(broker, tight, { queueMessages: 5 })
  await send(4)
  t.equal(queued(broker, tight), 5, 'a higher limit counts for the next message')
  setLimits(broker, tight, { queueMessages: 1 })
  await send(1)
  t.equal(queued(broker, tight), 5, 'a lower one takes nothing away')
  setDevice(broker, tight, { policy: limited({ queueMessages: 6 }) })
  await send(2)
  t.equal(queued(broker, tight), 6, 'and so does its own')
  setDevice(broker, tight, { policy: limited({ queueMessages: 30_000, queueBytes: 6 * 16 }) })
  await send(1)
  t.equal(queued(broker, tight), 6, 'octets count as well')
  t.equal(queued(broker, wide), 12)

  const later = await broker.restart()
  setLimits(later, tight, { queueMessages: 1 })
  const back = await enter(later, tight, false)
  for (let n = 0; n < 6; n++) {
    const packet = await back.next('publish')
    if (packet.cmd === 'publish') back.send({ cmd: 'puback', messageId: packet.messageId ?? 0 })
  }
  await until(() => queued(later, tight) === 0)
  t.pass('what was kept is delivered, also after a restart')
  await cut(back)
})

t.test(
  'whatever becomes of limits, a queue loses nothing by them and never grows beyond that of now',
  async (t) => {
    const step = fc.oneof(
      fc.record({ cap: fc.integer({ min: 0, max: 6 }), of: fc.constantFrom('fleet', 'device') }),
      fc.constantFrom('add', 'add', 'add', 'answer', 'own policy ends'),
    )
    const log = openLog('test', 'silent', new PassThrough().resume())
    fc.assert(
      fc.property(fc.array(step, { maxLength: 60 }), (steps) => {
        const store = openSessionStore(':memory:', {
          durability: 'kill',
          limits: { ...LIMITS, queueMessages: 4 },
          log,
        })
        const { queues } = store.sessions
        const limits: { fleet?: number; device?: number } = {}
        let [fleet, device] = [FLEET, DEVICE]
        let [expected, isRight] = [0, true]
        store.allowances.follow({ device: () => device, fleet: () => fleet })
        for (const one of steps) {
          if (one === 'own policy ends') {
            delete limits.device
            device = { ...DEVICE }
          } else if (typeof one === 'object') {
            limits[one.of as 'fleet' | 'device'] = one.cap // one of the two
            const policy = limited({ queueMessages: one.cap })
            if (one.of === 'fleet') fleet = { ...FLEET, policy }
            else device = { ...DEVICE, policy }
          } else if (one === 'add') {
            const plan = queues.plan({ topic: 'x', payload: 'x', qos: 1 }, [['A', 1]], () => {})
            if (plan !== null) queues.keep(plan)
            if (expected < (limits.device ?? limits.fleet ?? 4)) expected++
          } else if (expected > 0) {
            queues.leaving('A', queues.entries('A').slice(0, 1)).done()
            expected--
          }
          isRight &&= queues.entries('A').length === expected
        }
        void store.destroy()
        return isRight
      }),
      { numRuns: 200 },
    )
    t.pass()
  },
)

t.test('octets that wait are limited by policy', async (t) => {
  const { broker, tight, wide, writer } = await open(t, { queueBytes: 100 })
  for (const who of [tight, wide]) {
    const raw = await enter(broker, who, false)
    await subscribe(raw, `devices/${who.id}/#`)
    await cut(raw)
  }
  const raw = await enter(broker, writer)
  for (const { id } of [tight, wide]) {
    await acknowledged(raw, `devices/${id}/x`, Buffer.alloc(101))
    await acknowledged(raw, `devices/${id}/x`, Buffer.alloc(10))
  }
  t.same(
    [tight, wide].map((who) => queued(broker, who)),
    [1, 2],
  )
  t.same(evidence(broker, 'tight'), [{ limit: 'queueBytes', allowed: 100, rule: 'fleet limits.queueBytes' }])
})

t.test('retained messages, and their octets, are limited by policy', async (t) => {
  const { broker, tight, wide } = await open(t, { retainedMessages: 1, retainedBytes: 1_000 })
  for (const [who, expected] of [
    [tight, [true, false, false, true]],
    [wide, [true, true, true, true]],
  ] as const) {
    const taken = []
    taken.push(await retains(broker, who, `devices/${who.id}/1`, 'x'))
    taken.push(await retains(broker, who, `devices/${who.id}/2`, 'x'))
    taken.push(await retains(broker, who, `devices/${who.id}/1`, Buffer.alloc(1_000)))
    taken.push(await retains(broker, who, `devices/${who.id}/1`, Buffer.alloc(500)))
    t.same(taken, expected, who.id)
  }
  t.same(evidence(broker, 'tight'), [
    { limit: 'retainedMessages', allowed: 1, rule: 'fleet limits.retainedMessages' },
    { limit: 'retainedBytes', allowed: 1_000, rule: 'fleet limits.retainedBytes' },
  ])
  t.same(evidence(broker, 'wide'), [])

  setLimits(broker, tight, { retainedMessages: 0, retainedBytes: 0 })
  t.ok(await retains(broker, tight, 'devices/tight/1', Buffer.alloc(499)), 'no longer than what it replaces')
  t.notOk(await retains(broker, tight, 'devices/tight/1', Buffer.alloc(500)))
  t.ok(await retains(broker, tight, 'devices/tight/1', ''), 'and it may go')
  t.notOk(await retains(broker, tight, 'devices/tight/1', 'x'))
  t.match(broker.store.retained.totals(), { messages: 2 })
})

t.test('a will is retained as far as the policy of its author allows', async (t) => {
  const { broker, tight, wide } = await open(t, { retainedMessages: 0 })
  for (const { id, ...who } of [tight, wide]) {
    const raw = await openRaw(broker, { id, ...who })
    const will = { topic: `devices/${id}/gone`, payload: Buffer.from('x'), qos: 1, retain: true } as const
    await raw.connect({ clientId: id, will })
    await cut(raw)
  }
  await until(() => broker.store.retained.isKept('devices/wide/gone', 'x'))
  t.match(broker.store.retained.totals(), { messages: 1 })
  const fires = (id: string) => {
    const will = { topic: `devices/${id}/late`, payload: 'x', qos: 0, retain: true, clientId: id }
    const { promise, resolve } = Promise.withResolvers<void>()
    broker.mqtt.publish(will)
    setImmediate(resolve)
    return promise
  }
  await fires('wide')
  await fires('tight')
  await until(() => broker.store.retained.isKept('devices/wide/late', 'x'))
  t.notOk(broker.store.retained.isKept('devices/tight/late', 'x'), 'nor is one of a broker that is gone')
})

t.test('what is sent and not answered is limited by policy', async (t) => {
  const { broker, tight, wide, writer } = await open(t, { inflightOutbound: 2 })
  const [narrow, broad] = [await enter(broker, tight, false), await enter(broker, wide, false)]
  await subscribe(narrow, 'devices/tight/#')
  await subscribe(broad, 'devices/wide/#')
  const service = await enter(broker, writer)
  for (let n = 0; n < 5; n++)
    for (const { id } of [tight, wide]) await acknowledged(service, `devices/${id}/x`)
  const sent = async (raw: RawClient) => {
    await raw.ping()
    return raw.received.filter(({ cmd }) => cmd === 'publish').length
  }
  await until(async () => (await sent(broad)) === 5)
  t.equal(await sent(narrow), 2)
  setLimits(broker, tight, { inflightOutbound: 4 })
  const [first] = narrow.received.filter(({ cmd }) => cmd === 'publish')
  narrow.send({ cmd: 'puback', messageId: first?.messageId ?? 0 })
  await until(async () => (await sent(narrow)) === 5)
  t.pass('with its next answer a client has what it may have now')
  await cut(narrow)
  await cut(broad)
})

t.test('messages of QoS 2 that wait for PUBREL are limited by policy, however they come', async (t) => {
  const { broker, tight, wide, writer } = await open(t, { inflightInbound: 2 })
  const listener = await enter(broker, writer)
  await subscribe(listener, 'devices/#')
  const many = (id: string, count: number) =>
    Array.from({ length: count }, () => publish(`devices/${id}/x`, 'x', 2))
  const broad = await enter(broker, wide)
  broad.send(...many('wide', 20))
  for (let n = 0; n < 20; n++) await broad.next('pubrec')
  const narrow = await enter(broker, tight)
  const [first, second, third] = many('tight', 3)
  if (!first || !second || !third) return t.fail()
  for (const dup of [false, true]) {
    narrow.send({ ...first, dup }, { ...second, dup })
    for (let n = 0; n < 2; n++) await narrow.next('pubrec')
  }
  narrow.send({ cmd: 'pubrel', messageId: first.messageId })
  await narrow.next('pubcomp')
  narrow.send(third)
  await narrow.next('pubrec', ({ messageId }) => messageId === third.messageId)
  narrow.send(...many('tight', 1))
  await narrow.closed
  const burst = await enter(broker, tight)
  burst.send(...many('tight', 50))
  await burst.closed
  const heard = async () => {
    await listener.ping()
    return listener.received.filter(
      (packet) => packet.cmd === 'publish' && packet.topic === 'devices/tight/x',
    ).length
  }
  t.ok((await heard()) <= 5, 'of those that came in one piece no more than two are taken')
  const reached = { limit: 'inflightInbound', allowed: 2, rule: 'fleet limits.inflightInbound' }
  t.match(evidence(broker, 'tight').slice(0, 2), [reached, reached])
  t.same(evidence(broker, 'wide'), [])
  broad.send(...many('wide', 1))
  await broad.closed
  t.same(
    evidence(broker, 'wide'),
    [{ limit: 'inflightInbound', allowed: 20 }],
    'by the broker alone no rule is named',
  )
})

t.test('a session that waits for more PUBRELs than it may now is taken up again', async (t) => {
  const { broker, tight } = await open(t, {})
  const first = await enter(broker, tight, false)
  const sent = Array.from({ length: 4 }, () => publish('devices/tight/x', 'x', 2))
  first.send(...sent)
  for (const _ of sent) await first.next('pubrec')
  await cut(first)
  setLimits(broker, tight, { inflightInbound: 1 })
  const raw = await enter(broker, tight, false)
  raw.send(...sent.map((packet) => ({ ...packet, dup: true })))
  for (const _ of sent) await raw.next('pubrec')
  raw.send(...sent.map(({ messageId }) => ({ cmd: 'pubrel', messageId }) as const))
  for (const _ of sent) await raw.next('pubcomp')
  t.same(evidence(broker, 'tight'), [])
  await cut(raw)
})

t.test('how fast a client may publish is limited by policy, from its next message on', async (t) => {
  const { broker, tight, wide } = await open(t, { publishPerSecond: 1, publishBurst: 2 })
  const many = (id: string) => Array.from({ length: 100 }, () => publish(`devices/${id}/x`, 'x', 0))
  const broad = await enter(broker, wide)
  broad.send(...many('wide'))
  await broad.ping()
  t.same(evidence(broker, 'wide'), [])
  const narrow = await enter(broker, tight)
  narrow.send(...many('tight').slice(0, 3))
  await broker.report('refused', ({ device }) => device === 'tight')
  t.same(evidence(broker, 'tight'), [
    { limit: 'publishPerSecond', allowed: 1, rule: 'fleet limits.publishPerSecond' },
  ])
  await cut(narrow)
  setLimits(broker, tight, { publishPerSecond: 0 })
  const free = await enter(broker, tight)
  free.send(...many('tight'), ...many('tight'), ...many('tight'))
  await free.ping()
  t.same(evidence(broker, 'tight').slice(1), [], '0 is any')
  setDevice(broker, wide, { policy: limited({ publishPerSecond: 1, publishBurst: 1 }) })
  broad.send(...many('wide').slice(0, 2))
  await broker.report('refused', ({ device }) => device === 'wide')
  t.match(evidence(broker, 'wide'), [{ rule: 'own limits.publishPerSecond' }], 'who is connected has it, too')
  await cut(free)
  await cut(broad)
})

t.test('a broker with limits of its own has them for whom no policy says otherwise', async (t) => {
  const { broker, tight, wide } = await open(t, { subscriptions: 3 }, { subscriptions: 1 })
  const [narrow, broad] = [await enter(broker, tight), await enter(broker, wide)]
  t.same(
    await subscribe(narrow, 'devices/tight/1', 'devices/tight/2'),
    [1, 1],
    'more than the broker gives others',
  )
  t.same(await subscribe(broad, 'devices/wide/1', 'devices/wide/2'), [1, 128])
  t.match(evidence(broker, 'wide'), [{ allowedSubscriptions: 1, rule: undefined }])
})

t.test('a plane: limits of a fleet reach its broker, and the queues of devices that are away', async (t) => {
  const service = await startEnrollment(t)
  const broker = await runBroker(t, await invitedBroker(service, 'north'))
  const { admin } = service
  await admin.createFleet({
    id: 'meters',
    lifetimeMs: 86_400_000,
    policy: limited({ subscriptions: 2, queueMessages: 2 }),
  })
  await admin.createBatch({ id: 'meters', fleet: 'meters' })
  const meter = await enrollDevice(service, { id: 'meter', batch: 'meters' })
  const lamp = await enrollDevice(service, { id: 'lamp' })
  const endpoint = { port: broker.port, authority: { rootPem: service.root } } as Endpoint // all that is read of it
  const come = async ({ id, key, certificate }: TestDevice, clean = false) => {
    const chainPem = certificate + service.deps.authority.device.pem
    const raw = await openRaw(endpoint, { id, keyPem: key, chainPem })
    t.match(await raw.connect({ clientId: id, clean }), { returnCode: 0 })
    return raw
  }
  const leave = async (raw: RawClient) => {
    await cut(raw)
    await until(() => broker.mqtt.registered().counted === 0)
  }
  const send = (device: TestDevice, name: string) =>
    broker.mqtt.publish({ topic: `devices/${device.id}/${name}`, payload: 'x', retain: false })
  /** Of nine messages that come while it is away, how many are kept: what is sent once it is here comes behind them. */
  const kept = async (device: TestDevice) => {
    const first = await come(device)
    const topics = ['x', 'y', 'z'].map((name) => `devices/${device.id}/${name}`)
    t.same(await subscribe(first, ...topics), device === meter ? [1, 1, 128] : [1, 1, 1])
    await leave(first)
    for (let n = 0; n < 9; n++) send(device, 'x')
    const raw = await come(device)
    const got: string[] = []
    await until(async () => {
      send(device, 'y') // its queue may be full until it has answered
      await raw.ping()
      for (const packet of raw.received.splice(0)) {
        if (packet.cmd !== 'publish') continue
        got.push(packet.topic)
        raw.send({ cmd: 'puback', messageId: packet.messageId ?? 0 })
      }
      return got.some((topic) => topic.endsWith('/y'))
    })
    await leave(raw)
    await leave(await come(device, true)) // forgets what is left
    return got.filter((topic) => topic.endsWith('/x')).length
  }
  t.same([await kept(lamp), await kept(meter)], [9, 2])
  for (const limits of [{ subscriptions: 0 }, { subscriptions: 1.5 }, { naps: 1 }] as PolicyLimits[]) {
    await t.rejects(admin.setFleetPolicy('meters', limited(limits)), {
      code: 'invalid_request',
      message: /limits/,
    })
    await t.rejects(admin.setDevicePolicy('meter', limited(limits)), {
      code: 'invalid_request',
      message: /limits/,
    })
  }
  await admin.setFleetPolicy('meters', limited({ subscriptions: 2, queueMessages: 3 }))
  await until(() => broker.replica.fleet('meters')?.policyEpoch === 2)
  t.equal(await kept(meter), 3)
  await admin.setDevicePolicy('meter', limited({ queueMessages: 1 }))
  await until(() => broker.replica.device('meter')?.policy !== undefined)
  t.equal(await kept(meter), 1)
  await admin.removeDevicePolicy('meter')
  await until(() => broker.replica.device('meter')?.policy === undefined)
  t.equal(await kept(meter), 3)
})
