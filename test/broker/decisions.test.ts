/** What is remembered of verdicts is worth nothing from the tick on in which something else is decided. */
import { PassThrough } from 'node:stream'
import mqttPacket from 'mqtt-packet'
import t from 'tap'
import type { FleetRecord } from '#shared/feed'
import type { Policy } from '#shared/policy/schema'
import { judgePublish, mayForward } from '../../broker/judge/authorization.ts'
import { decisions } from '../../broker/judge/decisions.ts'
import { compilePolicy } from '../../broker/judge/topic-policy.ts'
import { Exchange } from '../../broker/mqtt/exchange.ts'
import { Ingest, type IngestDeps } from '../../broker/mqtt/ingest.ts'
import type { Link } from '../../broker/mqtt/mqtt-client.ts'
import { type Connection, openConnection, Sessions } from '../../broker/sessions.ts'
import { type FakeClient, fakeClient } from '../support/fake-client.ts'
import fc from '../support/properties.ts'
import { oracle } from '../support/topic-oracle.ts'

/** Closes when the test ends, and not before: what a decision means must not wait for that. */
const socket = Object.assign(new PassThrough(), { destroy: () => socket })
Object.defineProperty(socket, 'closed', { value: true })

const FIELDS = {
  ...({
    id: 'c',
    socket,
    fingerprint: 'f',
    serial: '01',
    kind: 'device',
    batch: null,
    issuer: 'ca',
  } as const),
  ...{ address: '127.0.0.1', openedAt: 0 },
}
const NOTHING: Policy = { publish: [], subscribe: [] }
const EVERYTHING: Policy = { publish: ['#'], subscribe: ['#'] }
const compiled = (policy: Policy) => compilePolicy(policy, { id: 'A', fleet: 'f0' })

t.test('whatever a verdict is made of is counted when it is written', async (t) => {
  const sessions = new Sessions({ now: () => 0 })
  const fleet: FleetRecord = { id: 'f0', policy: EVERYTHING, policyEpoch: 1 }
  const device = { id: 'A', kind: 'device', fleet: 'f0', batch: null, state: 'active' } as const
  const policy = sessions.policyFor({ device, fleet }, '127.0.0.1')
  const open = () => openConnection({ ...FIELDS, device: 'A', fleet: 'f0', policy })
  const connection = open()
  sessions.add(connection)
  const ways = {
    'the policy of the fleet': () => sessions.setPolicy({ ...fleet, policy: NOTHING }),
    'the device': () => sessions.setDevice({ device: { ...device, policy: NOTHING }, fleet }),
    'its policy': () => Object.assign(connection, { policy: compiled(NOTHING) }),
    'a decision': () => void sessions.close({ kind: 'all' }, { judge: () => 'held', since: 0 }),
    'a refusal': () => Object.assign(open(), { refused: 'held' }),
  }
  for (const [title, write] of Object.entries(ways)) {
    const before = decisions()
    write()
    t.ok(decisions() > before, title)
  }
})

t.test('what a verdict about a message is made of cannot be written in another way', async (t) => {
  // @ts-expect-error: what is not made by `openConnection` is no connection
  const literal: Connection = {
    ...FIELDS,
    device: 'A',
    fleet: 'f0',
    policy: compiled(NOTHING),
    refused: null,
  }
  t.ok(literal)
  const connection = openConnection({ ...FIELDS, device: 'A', fleet: 'f0', policy: compiled(EVERYTHING) })
  for (const name of ['policy', 'refused']) t.notOk(Object.hasOwn(connection, name), name)
  const read = new Set<string>()
  const watched = <T extends object>(of: T): T =>
    new Proxy(of, {
      get(target, name) {
        read.add(String(name))
        return Reflect.get(target, name, target)
      },
    })
  const link = watched({ connection: watched(connection) } as unknown as Link) // the part of it that is asked
  t.ok(mayForward(link, 'a'))
  t.equal(judgePublish(link, { topic: 'a' }), null)
  // `kind` is what it was made with. Whatever is added here has to be counted by the file of the last two.
  t.strictSame([...read].sort(), ['connection', 'kind', 'policy', 'refused'])
})

const SMALL = 4
const policies: Policy[] = [
  NOTHING,
  EVERYTHING,
  { publish: ['a/#'], subscribe: ['a/#'] },
  { publish: ['b', { topic: 'a/x', maxQos: 0 }], subscribe: ['b', 'a/x'] },
  { publish: [{ topic: '#', maxPayloadBytes: SMALL }], subscribe: ['+'] },
]
const TOPICS = ['a', 'a/x', 'b']
const DEVICES = 4
const fleetOf = (device: number) => `f${device % 2}`

const device = fc.nat(DEVICES - 1)
const policy = fc.nat(policies.length - 1)
const change = fc.oneof(
  fc.record({ kind: fc.constantFrom('hold', 'refuse', 'close', 'open'), device }),
  fc.record({ kind: fc.constantFrom('holdFleet'), device }),
  fc.record({ kind: fc.constantFrom('fleetPolicy', 'ownPolicy'), device, policy }),
  fc.record({
    kind: fc.constantFrom('subscribe', 'unsubscribe'),
    device,
    filter: fc.constantFrom('#', 'a/#', 'b', '+'),
    qos: fc.constantFrom(0 as const, 1 as const),
  }),
)
type Change = typeof change extends fc.Arbitrary<infer T> ? T : never
const step = fc.record({
  changes: fc.array(change, { maxLength: 2 }),
  /** Happens while the first reader of the first message is being written to; who subscribes then gets the next one. */
  amidst: fc.option(
    change.filter(({ kind }) => kind !== 'subscribe'),
    { nil: null },
  ),
  author: device,
  messages: fc.array(
    fc.record({
      topic: fc.constantFrom(...TOPICS),
      qos: fc.constantFrom(0 as const, 1 as const),
      octets: fc.constantFrom(1, SMALL + 1),
    }),
    { minLength: 1, maxLength: 3 },
  ),
})
type Step = typeof step extends fc.Arbitrary<infer T> ? T : never
type Message = Step['messages'][number]

interface Client extends FakeClient<Connection> {
  readonly device: number
  readonly ingest: Ingest
  /** As the oracle has it. */
  readonly filters: Set<string>
  isOver: boolean
  got: number
}

/** The parts of a broker between the parser and the sockets, and beside them a second book of what was decided. */
class World {
  readonly clients: Client[] = []
  readonly #sessions = new Sessions({ now: () => 0 })
  readonly #traffic = { delivered: 0 }
  readonly #exchange = new Exchange({
    mayForward: ({ req }, topic) => mayForward(req, topic),
    traffic: this.#traffic,
  })
  readonly #fleets = new Map(['f0', 'f1'].map((id) => [id, EVERYTHING]))
  readonly #own = new Map<number, Policy>()
  #amidst: Change | null = null
  /** Readers that got what the oracle denies. */
  faults = 0

  constructor() {
    for (let device = 0; device < DEVICES; device++) this.#open(device)
  }

  #record(device: number) {
    const own = this.#own.get(device)
    const fleet = fleetOf(device)
    return {
      device: {
        ...({ id: `d${device}`, kind: 'device', fleet, batch: null, state: 'active' } as const),
        ...(own === undefined ? {} : { policy: own }),
      },
      fleet: { id: fleet, policy: this.#fleets.get(fleet) ?? NOTHING, policyEpoch: 1 },
    }
  }

  #open(device: number): void {
    const record = this.#record(device)
    const names = { device: record.device.id, fleet: record.fleet.id }
    const policy = this.#sessions.policyFor(record, '127.0.0.1')
    const connection = openConnection({ ...FIELDS, ...names, policy })
    const got = () => {
      client.got++
      if (!this.mayReceive(client, this.#topic)) this.faults++
      const amidst = this.#amidst
      this.#amidst = null
      if (amidst !== null) this.apply(amidst)
    }
    const fake = fakeClient(this.#exchange, { connection, got })
    const common: IngestDeps = {
      answers: { done() {}, received: () => 'now', released: () => 'now' },
      ...{ exchange: this.#exchange, published() {} },
      route: { isShort: () => true, numbering: () => ({ brokerId: 'b', brokerCounter: 1 }) },
      isGranted: ({ req }, arrival) => judgePublish(req, arrival) === null,
    }
    const ingest = new Ingest(common, { client: fake.client, parse() {} })
    const client: Client = { ...fake, device, ingest, filters: new Set(), isOver: false, got: 0 }
    this.clients.push(client)
    this.#sessions.add(connection)
  }

  #newest(device: number): Client {
    return this.clients.findLast((client) => client.device === device) as Client // each has one from the start
  }

  apply(change: Change): void {
    const client = this.#newest(change.device)
    if ('filter' in change) this.#subscription(client, change)
    else if ('policy' in change) this.#policy(change)
    else this.#decide(client, change)
  }

  #decide(client: Client, change: Exclude<Change, { filter: string } | { policy: number }>): void {
    const isHeld = (each: Client) =>
      change.kind === 'hold' ? each.device === change.device : fleetOf(each.device) === fleetOf(change.device)
    switch (change.kind) {
      case 'open':
        this.#open(change.device)
        return
      case 'close':
        client.close()
        client.isOver = true
        return
      case 'refuse':
        client.connection.refused ??= 'revoked'
        client.isOver = true
        return
      default: {
        const selector =
          change.kind === 'hold'
            ? ({ kind: 'device', id: `d${change.device}` } as const)
            : ({ kind: 'fleet', id: fleetOf(change.device) } as const)
        void this.#sessions.close(selector, { judge: () => 'held', since: 0 })
        for (const each of this.clients.filter(isHeld)) each.isOver = true
      }
    }
  }

  #subscription(client: Client, { kind, filter, qos }: Extract<Change, { filter: string }>): void {
    if (kind === 'subscribe') {
      client.subscribe(filter, qos)
      client.filters.add(filter)
    } else {
      client.leave(filter)
      client.filters.delete(filter)
    }
  }

  #policy({ kind, device, policy: index }: Extract<Change, { policy: number }>): void {
    const policy = policies[index] ?? NOTHING
    if (kind === 'ownPolicy') {
      this.#own.set(device, policy)
      this.#sessions.setDevice(this.#record(device))
    } else {
      this.#fleets.set(fleetOf(device), policy)
      this.#sessions.setPolicy(this.#record(device).fleet)
    }
  }

  #rules(device: number): Policy {
    return this.#own.get(device) ?? this.#fleets.get(fleetOf(device)) ?? NOTHING
  }

  mayReceive({ device, isOver, filters }: Client, topic: string): boolean {
    const isSubscribed = [...filters].some((filter) => oracle(filter, topic))
    return !isOver && isSubscribed && this.#rules(device).subscribe.some((rule) => oracle(`${rule}`, topic))
  }

  mayPublish({ device, isOver }: Client, { topic, qos, octets }: Message): boolean {
    const rules = this.#rules(device).publish.map((rule) =>
      typeof rule === 'string' ? { topic: rule } : rule,
    )
    return (
      !isOver &&
      rules.some(
        (rule) =>
          oracle(rule.topic, topic) &&
          qos <= (rule.maxQos ?? 2) &&
          octets <= (rule.maxPayloadBytes ?? octets),
      )
    )
  }

  #topic = ''

  /** True when the message reached whom it had to: who may have it before and after, and nobody else. */
  publish(device: number, message: Message, amidst: Change | null): boolean {
    const author = this.#newest(device)
    const mayPublish = this.mayPublish(author, message)
    const before = this.clients.map((client) => ({
      ...{ client, got: client.got, may: this.mayReceive(client, message.topic) },
    }))
    const { delivered } = this.#traffic
    this.#topic = message.topic
    this.#amidst = amidst
    const { topic, qos, octets } = message
    author.ingest.take(
      mqttPacket.generate({
        ...{
          cmd: 'publish',
          topic,
          qos,
          payload: Buffer.alloc(octets),
          messageId: 5,
          retain: false,
          dup: false,
        },
      }),
    )
    this.#amidst = null
    const reached = before.filter(({ client, got }) => client.got > got)
    // Of two filters that match, the one by which it was to be reached may be the one that it has just given up.
    const leaver = amidst?.kind === 'unsubscribe' ? amidst.device : null
    const due = before.filter(
      ({ client, may }) => mayPublish && may && client.device !== leaver && this.mayReceive(client, topic),
    )
    return (
      (mayPublish || reached.length === 0) &&
      due.every((one) => one.client.got === one.got + 1) &&
      before.every(({ client, got }) => client.got <= got + 1) &&
      this.#traffic.delivered - delivered === reached.length &&
      this.faults === 0
    )
  }
}

t.test(
  'whatever is decided, subscribed and closed in between, a message reaches those whom an oracle names',
  async (t) => {
    let delivered = 0
    fc.assert(
      fc.property(fc.array(step, { minLength: 1, maxLength: 12 }), (steps) => {
        const world = new World()
        for (let device = 0; device < DEVICES; device++)
          world.apply({ kind: 'subscribe', device, filter: device % 2 === 0 ? '#' : 'a/#', qos: 1 })
        for (const { changes, amidst, author, messages } of steps) {
          for (const each of changes) world.apply(each)
          for (const [index, message] of messages.entries())
            if (!world.publish(author, message, index === 0 ? amidst : null)) return false
        }
        delivered += world.clients.reduce((sum, { got }) => sum + got, 0)
        return true
      }),
      { numRuns: 2_000 },
    )
    t.ok(delivered > 4_000, `${delivered} delivered: there was something to compare`)
  },
)
