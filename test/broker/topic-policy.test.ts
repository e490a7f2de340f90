import fc from 'fast-check'
import t from 'tap'
import { compilePolicy } from '../../broker/topic-policy.ts'
import { isTopicFilter, isTopicName, levelsOf } from '../../broker/topic-syntax.ts'
import { DEVICE_POLICY, SERVICE_POLICY } from '../support/broker.ts'

const device = { id: 'A', fleet: 'lab' }

/** MQTT 3.1.1 section 4.7, word for word: the oracle. Slow, recursive, on arrays. */
function matches(filter: readonly string[], topic: readonly string[]): boolean {
  const [head, ...rest] = filter
  if (head === undefined) return topic.length === 0
  if (head === '#') return true // any number of levels, none included
  const [level, ...below] = topic
  return level !== undefined && (head === '+' || head === level) && matches(rest, below)
}
function oracle(filter: string, topic: string): boolean {
  if (topic.startsWith('$') !== filter.startsWith('$')) return false // [MQTT-4.7.2-1]
  return matches(filter.split('/'), topic.split('/'))
}

/** Every topic of at most `depth` levels over an alphabet that has a level no rule and no filter names. */
function everyTopic(depth: number): string[] {
  const topics: string[][] = []
  let longest: string[][] = [[]]
  for (let level = 0; level < depth; level++) {
    longest = longest.flatMap((topic) => ['', 'a', 'b', 'other'].map((name) => [...topic, name]))
    topics.push(...longest)
  }
  return topics.map((levels) => levels.join('/')).filter((topic) => topic !== '')
}
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
    ...['$SYS/#', '$share/g/devices/A/#', '$queue/devices/A/#', '/$SYS/#', ' devices/A/#', 'devices/A /#'],
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
  for (const name of ['$SYS/x', '$share/g/a', '$']) {
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
