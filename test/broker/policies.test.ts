/** Policies in a broker that runs: real Aedes, real sessions, and for the random part sockets without TLS. */
import { duplexPair } from 'node:stream'
import type { TLSSocket } from 'node:tls'
import t, { type Test } from 'tap'
import type { Policy } from '#shared/policy/schema'
import { openConnection } from '../../broker/sessions.ts'
import {
  admissionRecord,
  openTestBroker,
  type TestBroker,
  type TestBrokerOptions,
  until,
} from '../support/broker.ts'
import { enter, RawClient } from '../support/mqtt-clients.ts'
import { type TestIdentity, testAuthority } from '../support/pki.ts'
import fc from '../support/properties.ts'
import { everyTopic, oracle } from '../support/topic-oracle.ts'

const authority = await testAuthority()
t.teardown(() => authority.remove())

async function open(t: Test, options: Omit<TestBrokerOptions, 'authority'> = {}): Promise<TestBroker> {
  const broker = await openTestBroker({ authority, ...options })
  t.teardown(() => broker.close())
  return broker
}

let messageIds = 0
const nextId = () => (messageIds = (messageIds % 60_000) + 1)
async function subscribe(raw: RawClient, topics: readonly string[], qos: 0 | 1 | 2 = 1) {
  const messageId = nextId()
  raw.send({ cmd: 'subscribe', messageId, subscriptions: topics.map((topic) => ({ topic, qos })) })
  const suback = await raw.next('suback', (packet) => packet.messageId === messageId)
  return suback.cmd === 'suback' ? (suback.granted as number[]) : [] // numbers in MQTT 3.1.1
}
function publish(topic: string, payload: string, qos: 0 | 1 | 2 = 1, retain = false) {
  return { cmd: 'publish', topic, payload, qos, retain, dup: false, messageId: nextId() } as const
}
const own = 'devices/${device.id}/#'
const EVERYTHING: Policy = { publish: ['#'], subscribe: ['#'] }

/** The fleet of these identities has another policy, as the follower would say it: the record, then the sessions. */
function setPolicy(broker: TestBroker, policy: Policy, identities: readonly TestIdentity[]): void {
  let fleet = ''
  for (const { fingerprint } of identities) {
    const record = broker.replica.records.get(fingerprint)
    if (record === undefined) throw new TypeError('not enrolled')
    fleet = record.fleet.id
    broker.replica.put({ ...record, fleet: { id: fleet, policy, policyEpoch: 2 } })
  }
  broker.sessions.setPolicy({ id: fleet, policy, policyEpoch: 2 })
}

t.test(
  'a policy that was narrowed ends the subscriptions of who is connected, also of a clean session',
  async (t) => {
    const broker = await open(t)
    const a = await broker.enroll('A', { fleet: 'f', policy: EVERYTHING })
    const b = await broker.enroll('B', { fleet: 'f', policy: EVERYTHING })
    const writer = await enter(broker, await broker.enroll('w', { kind: 'service', policy: EVERYTHING }))
    const [clean, kept] = [await enter(broker, a), await enter(broker, b, false)]
    t.same(await subscribe(clean, ['x/#', 'devices/A/#'], 2), [2, 2])
    t.same(await subscribe(kept, ['x/#', 'devices/B/#'], 2), [2, 2])
    setPolicy(broker, { publish: [], subscribe: [own, { topic: 'x/y', effect: 'deny' }, 'x/#'] }, [a, b])
    writer.send(publish('x/y', 'narrowed'), publish('x/z', 'granted still'))
    for (const _ of [1, 2]) await writer.next('puback')
    await broker.mqtt.review('f')
    writer.send(publish('x/z', 'ended by now'), publish('devices/A/1', 'own'), publish('devices/B/1', 'own'))
    for (const raw of [clean, kept]) {
      t.match(await raw.next('publish'), { topic: 'x/z', payload: Buffer.from('granted still') })
      t.match(await raw.next('publish'), { topic: /devices/, payload: Buffer.from('own') })
      await raw.ping()
      t.notOk(raw.octets.includes('narrowed'))
      t.notOk(raw.octets.includes('ended by now'))
    }
    t.same(
      broker.store.sessions.subscriptions.of('B').map(({ topic }) => topic),
      ['devices/B/#'],
    )
    for (const raw of [clean, kept, writer]) raw.socket.destroy()
  },
)

t.test(
  'a subscription is granted the QoS that the policy allows, and ends when it may have less',
  async (t) => {
    const broker = await open(t)
    const limited: Policy = { publish: [], subscribe: [own, { topic: 'x/#', maxQos: 1 }] }
    const a = await broker.enroll('A', { fleet: 'f', policy: limited })
    const raw = await enter(broker, a, false)
    t.same(await subscribe(raw, ['x/#', 'devices/A/#', 'y'], 2), [1, 2, 128])
    setPolicy(broker, { publish: [], subscribe: [own, { topic: 'x/#', maxQos: 0 }] }, [a])
    await broker.mqtt.review('f')
    t.same(broker.store.sessions.subscriptions.of('A'), [{ topic: 'devices/A/#', qos: 2 }])
    t.same(await subscribe(raw, ['x/#'], 1), [0])
    raw.socket.destroy()
  },
)

t.test('attributes and the own policy of a device count from the change on, for it alone', async (t) => {
  const broker = await open(t)
  const policy: Policy = {
    publish: ['sites/${device.attributes.site}/#'],
    subscribe: ['sites/${device.attributes.site}/#'],
  }
  const [a, b] = [await broker.enroll('A', { policy }), await broker.enroll('B', { policy })]
  const tag = async (change: object) => {
    const record = broker.replica.records.get(a.fingerprint)
    if (record === undefined) throw new TypeError('not enrolled')
    const device = { ...record.device, ...change }
    broker.replica.put({ ...record, device })
    broker.sessions.setDevice({ device, fleet: record.fleet })
    await broker.mqtt.reviewDevice('A')
  }
  const [raw, other] = [await enter(broker, a, false), await enter(broker, b)]
  t.same(await subscribe(raw, ['sites/oslo/#']), [128])
  await tag({ attributes: { site: 'oslo' } })
  t.same(await subscribe(raw, ['sites/oslo/#', 'sites/bergen/#']), [1, 128])
  t.same(await subscribe(other, ['sites/oslo/#']), [128])
  await tag({ attributes: { site: 'bergen' } })
  t.same(broker.store.sessions.subscriptions.of('A'), [])
  t.same(await subscribe(raw, ['sites/bergen/#']), [1])
  await tag({ attributes: {}, policy: { publish: [], subscribe: ['mine'] } })
  t.same(await subscribe(raw, ['mine', 'sites/bergen/#']), [1, 128])
  raw.socket.destroy()
  other.socket.destroy()
})

t.test(
  'a refused message says by which rule; a payload too long and a network that does not fit are refused',
  async (t) => {
    const broker = await open(t)
    const policy: Policy = {
      publish: [
        own,
        { topic: 'devices/+/secret', effect: 'deny' },
        { topic: 'short', maxPayloadBytes: 3 },
        { topic: 'far', when: { sources: ['10.0.0.0/8'] } },
        { topic: 'near', when: { sources: ['127.0.0.0/8'] } },
      ],
      subscribe: [],
    }
    const a = await broker.enroll('A', { policy })
    const refused = async (topic: string, payload = 'x') => {
      const raw = await enter(broker, a)
      raw.send(publish(topic, payload))
      await raw.closed
      return broker.refusals('R-POLICY-PUB').at(-1)?.evidence
    }
    t.match(await refused('devices/A/secret'), {
      rule: 'fleet publish[1] deny devices/+/secret',
      reason: 'a rule denies it',
    })
    t.match(await refused('short', 'long'), {
      rule: 'fleet publish[2] allow short',
      reason: /maxPayloadBytes 3/,
    })
    t.match(await refused('far'), { topic: 'far', reason: 'no rule allows it' })
    const raw = await enter(broker, a)
    raw.send(publish('near', 'x'), publish('short', 'abc'))
    await raw.next('puback')
    await raw.next('puback')
    raw.socket.destroy()
  },
)

t.test('a rule with a rate lets its client be read more slowly, and says so once', async (t) => {
  const broker = await open(t)
  const policy: Policy = { publish: [own, { topic: 'slow', perSecond: 0.001, burst: 2 }], subscribe: [] }
  const raw = await enter(broker, await broker.enroll('A', { policy }))
  raw.send(publish('slow', '1'), publish('slow', '2'), publish('slow', '3'))
  for (const _ of [1, 2, 3]) await raw.next('puback')
  raw.send(publish('devices/A/x', 'not read'))
  t.match(await broker.report('refused', ({ code }) => code === 'R-QUOTA'), {
    evidence: { limit: 'perSecond', allowed: 0.001, rule: 'fleet publish[1] allow slow' },
  })
  t.notOk(raw.received.some(({ cmd }) => cmd === 'puback'))
  raw.socket.destroy()
})

t.test('a change of policy costs the same whether a fleet has one client or 10 000', async (t) => {
  const broker = await open(t)
  let compiled = 0
  const counting: Policy = { publish: [own], subscribe: [] }
  const watched = new Proxy(counting, {
    get: (of, name) => {
      compiled++
      return Reflect.get(of, name)
    },
  })
  const record = admissionRecord({ ...(await broker.enroll('A')) }, { fleet: 'f', policy: counting })
  const policies = Array.from({ length: 10_000 }, (_, n) =>
    broker.sessions.policyFor({ ...record, device: { ...record.device, id: `d${n}` } }, '127.0.0.1'),
  )
  t.ok(policies.every((policy, n) => policy.mayPublish(`devices/d${n}/x`)))
  broker.sessions.setPolicy({ id: 'f', policy: watched, policyEpoch: 2 })
  t.equal(compiled, 0, 'nobody is compiled by the change')
  t.ok(policies[77]?.mayPublish('devices/d77/x'))
  t.ok(compiled > 0 && compiled < 10, 'and then one, when it is asked')
})

const LAB = ['', 'devices', 'A', 'B', 'up', 'secret', 'fleets', 'default', 'broadcast', 'other']
const RANDOM: Policy = {
  publish: [own, { topic: 'devices/+/secret/#', effect: 'deny' }],
  subscribe: [own, 'fleets/${device.fleet}/broadcast/#', { topic: 'devices/+/secret/#', effect: 'deny' }],
}
const isSecret = (topic: string) => oracle('devices/+/secret/#', topic)
const mayPublish = (id: string, topic: string) => oracle(`devices/${id}/#`, topic) && !isSecret(topic)
const mayReceive = (id: string, topic: string) =>
  mayPublish(id, topic) || oracle('fleets/default/broadcast/#', topic)

const anyLevel = fc.oneof(
  { weight: 6, arbitrary: fc.constantFrom(...LAB) },
  {
    weight: 1,
    arbitrary: fc.constantFrom('ä', '😀', 'Devices', ' ', '__proto__', 'constructor', '$SYS', '..', '%2F'),
  },
)
const anyTopic = fc
  .tuple(
    fc.constantFrom('devices/A', 'devices/A', 'devices/B', 'devices', ''),
    fc.array(anyLevel, { minLength: 1, maxLength: 3 }),
  )
  .map(([head, levels]) => (head === '' ? levels : [head, ...levels]).join('/'))
  .filter((topic) => topic !== '')
const anyFilter = fc
  .tuple(
    fc.constantFrom('devices/A', 'devices/A', 'devices/+', '$share/g/devices/A', ''),
    fc.array(fc.oneof(anyLevel, fc.constant('+')), { maxLength: 2 }),
    fc.boolean(),
  )
  .map(([head, levels, isOpen]) =>
    [...(head === '' ? [] : [head]), ...levels, ...(isOpen ? ['#'] : [])].join('/'),
  )
  .filter((text) => text !== '')

/** A client on a pair of streams: as a connection that the gate has let in. */
async function insider(
  broker: TestBroker,
  identity: TestIdentity,
  options: Parameters<RawClient['connect']>[0] = {},
) {
  const [near, far] = duplexPair()
  const record = broker.replica.records.get(identity.fingerprint)
  if (record === undefined) throw new TypeError('not enrolled')
  const { device, fleet, certificate } = record
  const connection = openConnection({
    ...{ id: `i${nextId()}`, socket: far, fingerprint: identity.fingerprint, serial: identity.serial },
    ...{
      device: device.id,
      kind: device.kind,
      batch: device.batch,
      fleet: fleet.id,
      issuer: certificate.issuer,
    },
    ...{ address: '127.0.0.1', openedAt: 0 },
    policy: broker.sessions.policyFor(record, '127.0.0.1'),
  })
  broker.sessions.add(connection)
  far.once('close', () => broker.sessions.remove(connection))
  near.once('end', () => near.destroy())
  near.once('close', () => far.destroy())
  far.once('close', () => near.destroy())
  broker.mqtt.handle(connection)
  const raw = new RawClient(near as unknown as TLSSocket) // it asks of it what any stream has
  const { returnCode } = await raw.connect({ clientId: device.id, ...options })
  return { raw, returnCode }
}

t.test('10 000 random topics, filters and wills: what the oracle denies goes nowhere', async (t) => {
  const many = { publishPerSecond: 0, subscriptions: 10_000, retainedMessages: 10_000, queueMessages: 30_000 }
  const broker = await open(t, { limits: many })
  const [a, b] = [await broker.enroll('A', { policy: RANDOM }), await broker.enroll('B', { policy: RANDOM })]
  const all = await broker.enroll('all', { kind: 'service', policy: EVERYTHING })
  const listener = await enter(broker, all)
  await subscribe(listener, ['#'], 0)
  const victim = await enter(broker, b)
  t.same(await subscribe(victim, ['devices/B/up/#', 'devices/B', 'fleets/default/broadcast/#'], 0), [0, 0, 0])
  const heard = (raw: RawClient) =>
    raw.received.flatMap((packet) => (packet.cmd === 'publish' ? [`${packet.payload} ${packet.topic}`] : []))
  const sample = <T>(arbitrary: fc.Arbitrary<T>, numRuns: number) => fc.sample(arbitrary, { numRuns })

  await t.test('6 000 filters', async (t) => {
    const denied = new Set(everyTopic(4, LAB).filter((topic) => !mayReceive('A', topic)))
    const expected = (filter: string) => {
      if (filter.startsWith('$')) return 128
      if (!/[+#]/.test(filter)) return mayReceive('A', filter) ? 0 : 128
      for (const topic of denied) if (oracle(filter, topic)) return 128
      return 0
    }
    const raw = await enter(broker, a)
    const filters = [...new Set(sample(anyFilter, 6_000))]
    for (let at = 0; at < filters.length; at += 50) {
      const some = filters.slice(at, at + 50)
      const granted = await subscribe(raw, some, 0)
      for (const [n, filter] of some.entries()) {
        const isLiteral = filter.split('/').every((level) => ['+', '#', ...LAB].includes(level))
        // Of levels that no topic of the oracle has, only what is denied can be said.
        if (isLiteral || granted[n] === 0) t.equal(granted[n], expected(filter), filter)
      }
    }
    const writer = await enter(broker, await broker.enroll('w', { kind: 'service', policy: EVERYTHING }))
    const everywhere = sample(anyTopic, 1_000).filter((topic) => !topic.startsWith('$'))
    for (let at = 0; at < everywhere.length; at += 100) {
      const some = everywhere.slice(at, at + 100).map((topic) => publish(topic, 'w', 0))
      writer.send(...some, publish('devices/A/end', 'of a hundred', 1))
      await writer.next('puback')
    }
    await raw.ping()
    const topics = heard(raw).map((text) => text.slice(2))
    t.ok(topics.length > 100)
    t.same(
      topics.filter((topic) => !mayReceive('A', topic)),
      [],
    )
    raw.socket.destroy()
    writer.socket.destroy()
    await until(() => broker.mqtt.registered().ids.every((id) => id !== 'A'))
  })

  await t.test('3 000 publications', async (t) => {
    const expected = new Set<string>()
    let { raw } = await insider(broker, a)
    for (const [n, topic] of sample(anyTopic, 3_000).entries()) {
      if (raw.socket.destroyed) raw = (await insider(broker, a)).raw
      raw.send(publish(topic, `p${n}`, 1, n % 7 === 0))
      const isTaken = await raw.next('puback').then(
        () => true,
        () => false,
      )
      if (mayPublish('A', topic)) expected.add(`p${n} ${topic}`)
      if (isTaken !== mayPublish('A', topic)) t.fail(topic)
    }
    await until(() => heard(listener).filter((text) => text.startsWith('p')).length >= expected.size)
    const arrived = heard(listener).filter((text) => text.startsWith('p'))
    t.ok(expected.size > 500)
    t.same(arrived.sort(), [...expected].sort())
    raw.socket.destroy()
  })

  await t.test('1 000 wills', async (t) => {
    const expected = new Set<string>()
    for (const [n, topic] of sample(anyTopic, 1_000).entries()) {
      const will = { topic, payload: Buffer.from(`v${n}`), qos: 0, retain: false } as const
      const { raw, returnCode } = await insider(broker, a, { will })
      if (mayPublish('A', topic)) expected.add(`v${n} ${topic}`)
      if ((returnCode === 0) !== mayPublish('A', topic)) t.fail(topic)
      raw.socket.destroy()
      await until(() => broker.mqtt.registered().ids.every((id) => id !== 'A'))
    }
    await until(() => heard(listener).filter((text) => text.startsWith('v')).length >= expected.size)
    t.same(
      heard(listener)
        .filter((text) => text.startsWith('v'))
        .sort(),
      [...expected].sort(),
    )
  })

  await victim.ping()
  t.same(
    heard(victim).filter((text) => !text.startsWith('w')),
    [],
    'nothing of A has come to B',
  )
  for (const raw of [victim, listener]) raw.socket.destroy()
})
