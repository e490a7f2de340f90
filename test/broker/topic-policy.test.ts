import t from 'tap'
import { policyFaults } from '#shared/policy/check'
import { compilePolicies, nameOfRule } from '#shared/policy/compile'
import type { Policy, PolicyRule } from '#shared/policy/schema'
import { FleetPolicy } from '../../broker/judge/decisions.ts'
import { compilePolicy, LivePolicy } from '../../broker/judge/topic-policy.ts'
import { isTopicFilter, isTopicName, levelsOf } from '../../broker/topic-syntax.ts'
import { DEVICE_POLICY, SERVICE_POLICY } from '../support/broker.ts'
import fc from '../support/properties.ts'
import { everyTopic, oracle } from '../support/topic-oracle.ts'

const device = { id: 'A', fleet: 'lab' }

const TOPICS = everyTopic(5)

const level = fc.constantFrom('', 'a', 'b', '+')
const filter = fc
  .tuple(fc.array(level, { minLength: 0, maxLength: 3 }), fc.boolean())
  .map(([levels, isOpen]) => (isOpen ? [...levels, '#'] : levels).join('/'))
  .filter((text) => text !== '')
const rules = fc.array(filter, { maxLength: 4 })
const topic = fc
  .array(fc.constantFrom('', 'a', 'b', 'other', '$x'), { minLength: 1, maxLength: 5 })
  .map((l) => l.join('/'))

t.test('a topic may be published or received exactly when a rule matches it', async (t) => {
  fc.assert(
    fc.property(rules, topic, (list, name) => {
      const expected = name !== '' && !name.startsWith('$') && list.some((rule) => oracle(rule, name))
      const policy = compilePolicy({ publish: list, subscribe: list }, device)
      return policy.mayPublish(name) === expected && policy.mayReceive(name) === expected
    }),
    { numRuns: 20_000 },
  )
  t.pass()
})

t.test('a policy is that of its fleet from the change on, and its own before', async (t) => {
  const [first, second] = [
    { publish: ['a'], subscribe: [] },
    { publish: ['b'], subscribe: [] },
  ]
  const fleet = new FleetPolicy()
  fleet.policy = second
  const policy = new LivePolicy(fleet, { policies: { policy: first }, client: device })
  t.strictSame([policy.mayPublish('a'), policy.mayPublish('b')], [true, false])
  fleet.policy = { ...second }
  t.strictSame([policy.mayPublish('a'), policy.mayPublish('b')], [false, true])
})

t.test('a filter is granted exactly when every topic that it can match is granted', async (t) => {
  fc.assert(
    fc.property(rules, filter, (list, wanted) => {
      const policy = compilePolicy({ publish: [], subscribe: list }, device)
      const expected = TOPICS.filter((name) => oracle(wanted, name)).every((name) => policy.mayReceive(name))
      return policy.maySubscribe(wanted) === expected
    }),
    { numRuns: 3_000 },
  )
  t.pass()
})

t.test('a device has its own tree and nothing beside it', async (t) => {
  const policy = compilePolicy(DEVICE_POLICY, device)
  for (const granted of [
    'devices/A/#',
    'devices/A',
    'devices/A/+',
    'devices/A/x/+/y',
    'fleets/lab/broadcast/#',
  ]) {
    t.ok(policy.maySubscribe(granted), granted)
  }
  for (const denied of [
    ...['#', '+/#', 'devices/#', 'devices/+/#', '+/A/#', '/devices/A', 'devices//A', 'devices/+', '+', '+/A'],
    ...['devices/AA/#', 'Devices/A/#', 'devices/a/#', 'fleets/+/broadcast/#', 'fleets/other/broadcast/x'],
    ...[
      '$SYS/#',
      '$share/g/devices/B/#',
      '$share/devices/A/#',
      '$queue/devices/A/#',
      '/$SYS/#',
      ' devices/A/#',
      'devices/A /#',
    ],
  ]) {
    t.notOk(policy.maySubscribe(denied), denied)
  }
  t.ok(policy.mayPublish('devices/A/up'))
  t.ok(policy.mayPublish('devices/A'))
  for (const denied of ['devices/B/up', 'devices', 'devices/A2', '$SYS/x/new/clients', '/devices/A/up', '']) {
    t.notOk(policy.mayPublish(denied), denied)
  }
  t.notOk(policy.mayPublish('fleets/lab/broadcast/x'), 'what it may receive it may not publish')
})

t.test('a service reads every device and commands them, and speaks for none', async (t) => {
  const policy = compilePolicy(SERVICE_POLICY, { id: 'backend', fleet: 'services' })
  t.ok(policy.maySubscribe('devices/#'))
  t.ok(policy.maySubscribe('devices/+/up/#'))
  t.notOk(policy.maySubscribe('#'))
  t.ok(policy.mayPublish('devices/A/commands/reboot'))
  t.notOk(policy.mayPublish('devices/A/up'))
  t.notOk(policy.mayPublish('devices/A/B/commands/reboot'))
})

t.test('two rules may grant together what neither grants alone', async (t) => {
  const policy = compilePolicy({ publish: [], subscribe: ['a', 'a/+/#'] }, device)
  t.ok(policy.maySubscribe('a/#'))
  t.notOk(compilePolicy({ publish: [], subscribe: ['a', 'a/+'] }, device).maySubscribe('a/#'))
})

t.test('$ topics are denied in both directions, whatever the rules say', async (t) => {
  const policy = compilePolicy({ publish: ['#', '$SYS/#'], subscribe: ['#', '$SYS/#', '+/#'] }, device)
  t.ok(policy.maySubscribe('#'))
  for (const name of ['$SYS/x', '$share/g/$SYS/x', '$share/g', '$']) {
    t.notOk(policy.mayPublish(name))
    t.notOk(policy.mayReceive(name))
    t.notOk(policy.maySubscribe(name))
  }
})

t.test('a rule that cannot be read, or whose variable is empty or unknown, grants nothing', async (t) => {
  for (const rule of [
    'devices/${device.name}/#',
    'devices/${device.id',
    'a#',
    'a/#/b',
    'a+',
    '',
    '${}/#',
    '\u0000/#',
  ]) {
    const policy = compilePolicy({ publish: [rule], subscribe: [rule] }, device)
    for (const name of [
      'devices//x',
      'devices/A/x',
      'a',
      'ab',
      'a/b',
      'x',
      '${}/x',
      '/x',
      'a#',
      'a+',
      'a/#/b',
      '\u0000/x',
    ]) {
      t.notOk(policy.mayPublish(name), `${rule} ${name}`)
      t.notOk(policy.mayReceive(name))
    }
    t.notOk(policy.maySubscribe('devices/#'))
  }
  for (const id of ['', '+', '#', 'A/B', '$x']) {
    const policy = compilePolicy(DEVICE_POLICY, { id, fleet: 'lab' })
    t.notOk(policy.mayPublish(`devices/${id}/x`), id)
    t.notOk(policy.mayPublish('devices/B/x'), id)
    t.notOk(policy.maySubscribe(`devices/${id}/#`), id)
  }
})

t.test('10 000 random topics and filters: nothing crosses from one device to another', async (t) => {
  const anyLevel = fc.oneof(
    fc.constantFrom('devices', 'A', 'B', '', 'fleets', 'lab', 'broadcast'),
    fc.string({ maxLength: 3 }),
  )
  const anyFilter = fc.array(fc.oneof(anyLevel, fc.constantFrom('+', '#')), { minLength: 1, maxLength: 5 })
  const a = compilePolicy(DEVICE_POLICY, { id: 'A', fleet: 'lab' })
  const b = compilePolicy(DEVICE_POLICY, { id: 'B', fleet: 'lab' })
  fc.assert(
    fc.property(
      anyFilter,
      fc.array(anyLevel, { minLength: 1, maxLength: 5 }),
      (filterLevels, topicLevels) => {
        const name = topicLevels.join('/')
        const isCrossing = b.mayPublish(name) && (a.mayReceive(name) || a.mayPublish(name))
        const wanted = filterLevels.join('/')
        const isLeak = a.maySubscribe(wanted) && oracle(wanted, 'devices/B/up')
        return !isCrossing && !isLeak
      },
    ),
    { numRuns: 10_000 },
  )
  t.pass()
})

t.test('topic names and filters are read as MQTT 3.1.1 section 4.7 has them', async (t) => {
  for (const text of ['a', '/', '//', 'a/', '/a', ' ', 'a b', 'ä', '😀/x', '$SYS'])
    t.ok(isTopicName(text), text)
  const forbidden = [
    '\u0000',
    'a\u0000',
    '\u0001',
    '\u007f',
    '\u0085',
    '\uffff',
    '\ufffe',
    '\ufdd0',
    '\ud800',
    '\ufffd',
  ]
  for (const text of ['', '+', '#', 'a/+', 'a#', ...forbidden])
    t.notOk(isTopicName(text), JSON.stringify(text))
  for (const text of ['#', '+', '+/+', '/+', '+/', 'a/#', '+/a/#', '/#', '//', 'a'])
    t.ok(isTopicFilter(text), text)
  const malformed = [
    '',
    'a#',
    '#a',
    '#/a',
    'a/#/b',
    'a+',
    '+a',
    'a/+b',
    'a+/b',
    '++',
    '##',
    '+#',
    ...forbidden,
  ]
  for (const text of malformed) t.notOk(isTopicFilter(text), JSON.stringify(text))
  t.equal(levelsOf('a'), 1)
  t.equal(levelsOf('/a/'), 3)
})

/** Rules as objects too: of both effects, with a QoS, with a variable. */
const anyRule = fc.record({
  topic: filter.map((text) => text.replace('b', '${device.attributes.b}')),
  effect: fc.constantFrom<('allow' | 'deny')[]>('allow', 'allow', 'deny'),
  maxQos: fc.constantFrom<(0 | 1 | 2)[]>(0, 1, 2),
})
const attributed = { ...device, attributes: { b: 'b' } }

function oracleQos(list: readonly { topic: string; effect: string; maxQos: number }[], name: string): number {
  const matching = list.filter(({ topic }) => oracle(topic.replace('${device.attributes.b}', 'b'), name))
  if (name.startsWith('$') || matching.some(({ effect }) => effect === 'deny')) return -1
  return Math.max(-1, ...matching.map(({ maxQos }) => maxQos))
}

t.test('what one rule denies no other allows: each topic and each filter, against the oracle', async (t) => {
  const names = everyTopic(4)
  fc.assert(
    fc.property(fc.array(anyRule, { maxLength: 7 }), filter, (list, wanted) => {
      const policy = compilePolicy({ publish: list, subscribe: list }, attributed)
      const reachable = names.filter((name) => oracle(wanted, name))
      const expected = Math.min(2, ...reachable.map((name) => oracleQos(list, name)))
      const isSame =
        policy.subscribeQos(wanted) === expected && policy.subscribeQos(`$share/g/${wanted}`) === expected
      return isSame && policy.whySubscribe(wanted).isAllowed === expected >= 0
    }),
    { numRuns: 3_000 },
  )
  fc.assert(
    fc.property(fc.array(anyRule, { maxLength: 7 }), topic, fc.constantFrom(0, 1, 2), (list, name, qos) => {
      const policy = compilePolicy({ publish: list, subscribe: list }, attributed)
      const most = name === '' ? -1 : oracleQos(list, name)
      for (let times = 0; times < 2; times++) {
        // what is remembered is the same
        if (policy.mayReceive(name) !== most >= 0 || policy.mayPublish(name) !== most >= 0) return false
        if ((policy.publishRule({ topic: name, qos }) !== null) !== most >= qos) return false
      }
      return policy.whyPublish({ topic: name, qos }).isAllowed === most >= qos
    }),
    { numRuns: 10_000 },
  )
  t.pass()
})

const ofA = (publish: PolicyRule[], client: object = {}) =>
  compilePolicies({ policy: { publish, subscribe: publish } }, { ...device, ...client })

t.test('a rule bounds QoS, retaining and payload, and says which bound a message passed', async (t) => {
  const policy = ofA([{ topic: 'x/#', maxQos: 1, retain: false, maxPayloadBytes: 4 }])
  const message = { topic: 'x/y', qos: 1, payload: Buffer.from('1234') }
  t.ok(policy.publishRule(message))
  t.notOk(policy.publishRule({ ...message, qos: 2 }))
  t.notOk(policy.publishRule({ ...message, retain: true }))
  t.notOk(policy.publishRule({ ...message, payload: Buffer.from('12345') }))
  t.match(policy.whyPublish({ ...message, qos: 2 }), { isAllowed: false, reason: 'QoS 2 is above maxQos 1' })
  t.match(policy.whyPublish({ ...message, retain: true }).reason, /retained/)
  const why = policy.whyPublish({ ...message, payload: '12345' })
  t.match(why.reason, /maxPayloadBytes 4/)
  t.equal(why.rule && nameOfRule(why.rule), 'fleet publish[0] allow x/#')
  const wider = ofA([{ topic: 'x/#', maxQos: 0 }, 'x/y'])
  t.ok(wider.publishRule({ topic: 'x/y', qos: 2, retain: true }), 'another rule may grant more')
})

t.test('a rule counts for the networks and attributes that it names', async (t) => {
  const when = { sources: ['10.0.0.0/8', 'fd00::/8', '192.0.2.7'], attributes: { site: ['oslo', 'bergen'] } }
  const at = (address: string | null, site?: string, effect: 'allow' | 'deny' = 'allow') =>
    ofA(effect === 'allow' ? [{ topic: 'x', when }] : ['x', { topic: 'x', effect, when }], {
      address,
      attributes: site === undefined ? {} : { site },
    }).mayPublish('x')
  for (const address of ['10.1.2.3', 'fd00::1', '192.0.2.7', '::ffff:10.1.2.3'])
    t.ok(at(address, 'oslo'), address)
  for (const address of ['11.1.2.3', '192.0.2.8', 'fe00::1', '', 'x', '10.1.2', null]) {
    t.notOk(at(address, 'bergen'), String(address))
  }
  t.notOk(at('10.1.2.3', 'Oslo'))
  t.notOk(at('10.1.2.3'))
  t.notOk(at('10.1.2.3', 'oslo', 'deny'))
  t.ok(at('11.1.2.3', 'oslo', 'deny'))
  t.notOk(at(null, 'oslo', 'deny'), 'a denial holds where the network is not known')
  const attribute = { topic: 'x', when: { attributes: { constructor: 'x' } } }
  t.notOk(ofA([attribute], { attributes: {} }).mayPublish('x'), 'inherited names are no attributes')
})

t.test(
  'a variable stands for exactly one level; a denial with an empty one holds for every value',
  async (t) => {
    const rule = 'sites/${device.attributes.site}/#'
    for (const site of ['', 'a/b', '+', '#', 'a+', '$x', '\u0000']) {
      t.notOk(ofA([rule], { attributes: { site } }).mayPublish(`sites/${site}/x`), site)
      const denied = ofA(['#', { topic: rule, effect: 'deny' }], { attributes: { site } })
      t.notOk(denied.mayPublish('sites/oslo/x'))
      t.ok(denied.mayPublish('other'))
    }
    t.ok(ofA([rule], { attributes: { site: 'oslo' } }).mayPublish('sites/oslo/x'))
    t.ok(ofA(['b/${device.batch}'], { batch: '7' }).mayPublish('b/7'))
    t.notOk(ofA(['b/${device.batch}'], { batch: null }).mayPublish('b/'))
    const inherited = JSON.parse('{"__proto__": "x"}')
    for (const name of ['__proto__', 'constructor', 'toString', 'hasOwnProperty']) {
      t.notOk(ofA([`a/\${device.attributes.${name}}`], { attributes: {} }).mayPublish('a/x'), name)
      t.notOk(
        ofA([`a/\${device.attributes.${name}}/#`], { attributes: inherited }).mayPublish('a/[object Object]'),
      )
    }
  },
)

t.test('the own policy of a device replaces what its fleet allows, not what it denies', async (t) => {
  const policy: Policy = { publish: ['a/#', { topic: 'a/secret', effect: 'deny' }], subscribe: ['a/#'] }
  const own: Policy = { publish: ['#'], subscribe: [] }
  const compiled = compilePolicies({ policy, own }, device)
  t.ok(compiled.mayPublish('b'))
  t.notOk(compiled.mayPublish('a/secret'))
  t.notOk(compiled.mayReceive('a/b'))
  t.equal(compiled.whyPublish({ topic: 'b' }).rule?.scope, 'own')
})

t.test(
  'a policy that says what is not understood grants nothing by it, and denies what it denies',
  async (t) => {
    const broken = (rule: unknown) => [rule as PolicyRule]
    t.notOk(ofA(broken({ topic: '#', until: 'tomorrow' })).mayPublish('x'))
    t.notOk(ofA(['#', ...broken({ topic: 'y', effect: 'deny', until: 'tomorrow' })]).mayPublish('x'))
    t.notOk(ofA(['#', ...broken({ topic: 'a#', effect: 'deny' })]).mayPublish('x'))
    t.notOk(
      ofA(broken({ topic: '#', when: { sources: ['10.0.0.0/33'] } }), { address: '10.0.0.1' }).mayPublish(
        'x',
      ),
    )
    t.notOk(ofA(broken({ topic: '#', retain: false })).mayReceive('x'), 'what a subscription cannot keep to')
    for (const policy of [
      null,
      {},
      { publish: 7 },
      { publish: [null], subscribe: [] },
      { publish: [7], subscribe: ['#'] },
    ]) {
      const compiled = compilePolicies({ policy: policy as unknown as Policy }, device)
      t.notOk(compiled.mayPublish('x'))
      t.notOk(compiled.mayReceive('x'))
      t.equal(compiled.subscribeQos('x'), -1)
    }
  },
)

t.test('a policy is refused with every fault and its place', async (t) => {
  const at = (policy: unknown) =>
    policyFaults(policy).map(({ path, message }) => `${path.join('.')}: ${message}`)
  t.same(at({ publish: ['devices/${device.id}/#'], subscribe: [{ topic: 'x', maxQos: 1 }] }), [])
  const faulty = {
    publish: [
      'a#',
      { topic: 'x', effect: 'deny', maxQos: 1 },
      { topic: '${device.name}/x' },
      { topic: 'x', colour: 1 },
    ],
    subscribe: [{ topic: 'x', retain: true }],
  }
  t.match(at(faulty), [/publish\.3\.colour: is not known/])
  t.match(at({ ...faulty, publish: faulty.publish.slice(0, 3) }), [
    /publish\.0: .*wildcard/,
    /publish\.1\.maxQos: .*denies/,
    /publish\.2\.topic: .*device\.name/,
    /subscribe\.0\.retain: only a rule of "publish"/,
  ])
  t.match(at({ publish: [], subscribe: [], more: 1 }), [/more: is not known/])
  t.match(at({ publish: Array(101).fill('x'), subscribe: [] }), [/101 rules/])
  t.match(at({ publish: [{ topic: 'x', when: { sources: ['10.0.0.0/33'] } }], subscribe: [] }), [
    /when\.sources\.0: .*no network/,
  ])
  t.match(at(JSON.parse('{"publish":[{"topic":"x","__proto__":{"effect":"allow"}}],"subscribe":[]}')), [
    /__proto__/,
  ])
  t.match(
    at(JSON.parse('{"publish":[{"topic":"x","when":{"attributes":{"__proto__":"x"}}}],"subscribe":[]}')),
    [/when/],
  )
  t.match(at('{}'), [/must be an object/])
})

t.test(
  'whatever somebody writes as a policy: faults or a policy, never a throw, and no more than the oracle grants',
  async (t) => {
    const text = fc.oneof(
      fc.string({ unit: 'binary', maxLength: 40 }),
      fc.constantFrom('a/#', '${', '${}', '+/+', '${device.id}'),
    )
    const rule = fc.oneof(
      text,
      fc.record({ topic: text, effect: text, when: fc.object() }, { requiredKeys: [] }),
      fc.anything(),
    )
    fc.assert(
      fc.property(fc.array(rule, { maxLength: 4 }), fc.anything(), text, (publish, subscribe, name) => {
        policyFaults({ publish, subscribe })
        const compiled = compilePolicies({ policy: { publish, subscribe } as Policy }, device)
        return !compiled.mayPublish(`$${name}`) && compiled.whyPublish({ topic: name }).reason !== ''
      }),
      { numRuns: 2_000 },
    )
    t.pass()
  },
)

t.test('a hundred rules of 64 levels, and filters made to be slow, are judged all the same', async (t) => {
  const deep = (last: string) => [...Array(63).fill('+'), last].join('/')
  const rules = Array.from({ length: 100 }, (_, n) => deep(`r${n}`))
  const policy = ofA(rules)
  const name = [...Array(63).fill('a'), 'r99'].join('/')
  for (let n = 0; n < 1_000; n++) policy.mayPublish(`${name}${n}`)
  t.ok(policy.mayPublish(name))
  t.notOk(policy.maySubscribe([...Array(63).fill('+'), '#'].join('/')))
  t.notOk(policy.maySubscribe('#'))
  t.ok(policyFaults({ publish: ['${'.repeat(512)], subscribe: [] }).length > 0)
  const denials = ofA(['#', ...rules.slice(1).map((topic) => ({ topic, effect: 'deny' as const }))])
  t.notOk(denials.maySubscribe('#'))
  t.notOk(denials.mayPublish(name))
})
