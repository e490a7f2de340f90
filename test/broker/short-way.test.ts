/** What takes the short way ends as it would through the parser: who gets what, and who is told or closed, and why. */
import { PassThrough } from 'node:stream'
import mqttPacket from 'mqtt-packet'
import t from 'tap'
import { LIMITS } from '../../broker/limits.ts'
import { Route } from '../../broker/mqtt/route.ts'
import { type TestBroker, until } from '../support/broker.ts'
import { brokersOf } from '../support/broker-opener.ts'
import { connectPacket } from '../support/mqtt-clients.ts'
import { Piped, turns } from '../support/piped.ts'
import { testAuthority } from '../support/pki.ts'
import fc from '../support/properties.ts'

const authority = await testAuthority()
t.teardown(() => authority.remove())

/** Everything takes the long way while it is set. */
let isLong = false
const { isShort } = Route.prototype
Route.prototype.isShort = function (topic, qos) {
  return !isLong && isShort.call(this, topic, qos)
}

const POLICY = {
  publish: [
    'devices/A/#',
    '$SYS/#',
    'muster/#',
    { topic: 'devices/A/low', effect: 'deny' as const },
    { topic: 'limits/qos', maxQos: 0 as const },
    { topic: 'limits/small', maxPayloadBytes: 3 },
    { topic: 'limits/rated', perSecond: 500, burst: 2 },
    'plain/#',
    'kept/#',
  ],
  subscribe: ['#', '$SYS/#', 'devices/A/#'],
}

const open = brokersOf(authority, { publishPerSecond: 0 })

/** Stands still while a script is played: as many tokens come back each time. */
let clock = Date.now()

function publish(topic: string | Buffer, payload: Buffer, of: Partial<Shape> = {}): Buffer {
  const { qos = 0, dup = false, retain = false, id = 1, lengthOctets = 0, cutBody = 0 } = of
  const name = Buffer.from(topic)
  const body = Buffer.concat([
    Buffer.of(name.length >> 8, name.length & 0xff),
    name,
    ...(qos === 0 ? [] : [Buffer.of(id >> 8, id & 0xff)]),
    payload,
  ])
  const cut = body.subarray(0, Math.max(0, body.length - cutBody))
  const head = 0x30 | (dup ? 8 : 0) | (qos << 1) | (retain ? 1 : 0)
  return Buffer.concat([Buffer.of(head), remainingLength(cut.length, lengthOctets), cut])
}

interface Shape {
  qos: number
  dup: boolean
  retain: boolean
  id: number
  /** At least as many for the remaining length. */
  lengthOctets: number
  /** Octets that are left out at the end of the body. */
  cutBody: number
}

function remainingLength(length: number, least: number): Buffer {
  const octets: number[] = []
  let left = length
  do {
    octets.push((left & 0x7f) | 0x80)
    left >>>= 7
  } while (left > 0 || octets.length < least)
  octets.push((octets.pop() ?? 0) & 0x7f)
  return Buffer.from(octets)
}

const topics = fc.oneof(
  { weight: 8, arbitrary: fc.constantFrom('devices/A/x', 'devices/A/y', 'plain/x', 'plain/x/y', 'kept/x') },
  {
    weight: 3,
    arbitrary: fc.constantFrom('limits/qos', 'limits/small', 'limits/rated', 'devices/A/low', 'other/x'),
  },
  {
    weight: 1,
    arbitrary: fc.constantFrom<string | Buffer>(
      ...['', 'plain/+', 'plain/#', 'plain/\0', 'plain/\uffff', 'plain/\ufdd0', '$SYS/x', 'muster/x', '$x'],
      ...['devices/A/muster/x', 'devices/A/muster', 'devices/B/x', `plain/${'/'.repeat(98)}`, 'plain/\ufeff'],
      `plain/${'/'.repeat(99)}`,
      Buffer.from('plain/\xff', 'latin1'),
      Buffer.from([0x70, 0xed, 0xa0, 0x80]),
      Buffer.from([0x70, 0xc0, 0xaf]),
    ),
  },
)
const shapes = fc.record({
  qos: fc.oneof({ weight: 12, arbitrary: fc.constantFrom(0, 1) }, { weight: 2, arbitrary: fc.constant(2) }),
  dup: fc.oneof({ weight: 9, arbitrary: fc.constant(false) }, fc.constant(true)),
  retain: fc.oneof({ weight: 9, arbitrary: fc.constant(false) }, fc.constant(true)),
  id: fc.oneof({ weight: 20, arbitrary: fc.integer({ min: 1, max: 0xffff }) }, fc.constant(0)),
  lengthOctets: fc.oneof({ weight: 20, arbitrary: fc.constant(0) }, fc.constantFrom(2, 3, 4, 5)),
  cutBody: fc.oneof({ weight: 30, arbitrary: fc.constant(0) }, fc.constantFrom(1, 2, 3, 20)),
})
const publishes = fc
  .tuple(topics, fc.uint8Array({ maxLength: 200 }), shapes)
  .map(([topic, payload, shape]) => publish(topic, Buffer.from(payload.subarray(0, payload[0] ?? 0)), shape))
const others = fc.oneof(
  fc.integer({ min: 0, max: 0xffff }).map((id) => Buffer.of(0x40, 2, id >> 8, id & 0xff)),
  fc.constant(Buffer.of(0xc0, 0)),
  fc
    .tuple(fc.constantFrom('devices/A/x', 'plain/#', 'plain/+', 'limits/small'), fc.constantFrom(0, 1, 2))
    .map(([topic, qos]) =>
      mqttPacket.generate({
        ...{ cmd: 'subscribe', messageId: 7 },
        subscriptions: [{ topic, qos: qos as 0 | 1 | 2 }],
      }),
    ),
  fc
    .constantFrom('devices/A/x', 'plain/#')
    .map((topic) => mqttPacket.generate({ cmd: 'unsubscribe', messageId: 8, unsubscriptions: [topic] })),
  fc.integer({ min: 1, max: 0xffff }).map((id) => Buffer.of(0x62, 2, id >> 8, id & 0xff)),
)
const rare = fc.oneof(
  fc.uint8Array({ minLength: 1, maxLength: 6 }).map((octets) => Buffer.from(octets)),
  fc.constantFrom(
    ...[Buffer.of(0x40, 0), Buffer.of(0x40, 1, 1), Buffer.of(0x41, 2, 0, 1), Buffer.of(0x40, 0x82, 0, 0, 1)],
    ...[Buffer.of(0x30, 0), Buffer.of(0x32, 1, 0), Buffer.of(0x32, 2, 0, 0), Buffer.of(0xe0, 0)],
    ...[Buffer.of(0x36, 5, 0, 1, 65, 0, 1), Buffer.of(0x30, 0xff, 0xff, 0xff, 0xff, 1)],
  ),
)
const granted = fc
  .tuple(
    fc.constantFrom('devices/A/x', 'devices/A/y', 'plain/x', 'plain/x/y', 'kept/x', 'limits/rated'),
    fc.uint8Array({ maxLength: 200 }),
    fc.integer({ min: 1, max: 0xffff }),
    fc.constantFrom(0, 0, 1, 1, 1, 2),
  )
  .map(([topic, payload, id, qos]) => publish(topic, Buffer.from(payload), { qos, id }))
const packets = fc.oneof(
  { weight: 200, arbitrary: granted },
  { weight: 20, arbitrary: publishes },
  { weight: 40, arbitrary: others },
  { weight: 2, arbitrary: rare },
)
const scripts = fc.record({
  /** Changes behind that piece, before or after it has been read. */
  change: fc.option(
    fc.record({
      kind: fc.constantFrom('hold' as const, 'narrow' as const, 'widen' as const),
      behind: fc.nat(12),
      isRead: fc.boolean(),
    }),
    { nil: null },
  ),
  packets: fc.array(packets, { minLength: 1, maxLength: 16, size: 'max' }),
  /** Lengths of the pieces, what is left comes in one; null when each packet is a piece. */
  cuts: fc.oneof(
    fc.constant(null),
    fc.constant<number[]>([]),
    fc.array(fc.integer({ min: 1, max: 60 }), { maxLength: 30 }),
  ),
})

function pieces(octets: Buffer, cuts: readonly number[]): Buffer[] {
  const found: Buffer[] = []
  let at = 0
  for (const cut of cuts) {
    if (at + cut >= octets.length) break
    found.push(octets.subarray(at, at + cut))
    at += cut
  }
  return [...found, octets.subarray(at)]
}

type Script = typeof scripts extends fc.Arbitrary<infer T> ? T : never

interface Outcome {
  readonly delivered: number
  readonly readers: string[][]
  readonly author: string[]
  readonly isClosed: boolean
  readonly refusals: string[]
  readonly published: number
  /** That went to each reader. */
  readonly octets: readonly number[]
}

async function play(
  broker: TestBroker,
  readers: Piped[],
  { chunks, change }: { chunks: readonly Buffer[]; change: Script['change'] },
): Promise<Outcome> {
  broker.sessions.setPolicy({ id: 'default', policy: POLICY, policyEpoch: 1 })
  clock += 10_000
  for (const topic of RETAINED) broker.mqtt.publish({ topic, payload: '', retain: true })
  await turns(6)
  await acknowledgeAll(readers)
  for (const reader of readers) {
    reader.received.length = 0
    reader.octets = Buffer.alloc(0)
  }
  const [before, seen] = [broker.mqtt.traffic(), broker.reports.length]
  const record = [...broker.replica.records.values()].find(({ device }) => device.id === 'A')
  const author = await new Piped(broker, 'A').enter()
  author.received.length = 0
  // A copy: whoever writes into what it was handed spoils what is compared.
  const last = Math.min(change?.behind ?? 0, chunks.length - 1)
  for (const [at, chunk] of chunks.entries()) {
    author.writeAtOnce(Buffer.from(chunk))
    if (at === last && change?.isRead === false) apply(broker, change.kind)
    await turns(at === last ? 6 : 2)
    if (at === last && change?.isRead === true) apply(broker, change.kind)
  }
  await turns(12)
  await until(() => broker.store.group.isIdle && (author.isClosed || author.isRead))
  await turns(12)
  const { isClosed } = author
  const faults = [author, ...readers].map(({ faults }) => faults.join())
  if (faults.some((fault) => fault !== ''))
    throw new Error(`faults: ${JSON.stringify(faults)} ${author.octets.toString('hex')}`)
  const outcome = {
    readers: readers.map((reader) => reader.messages()),
    author: [
      ...author.messages(),
      ...author.received.flatMap(({ cmd, messageId }) =>
        cmd === 'publish' ? [] : [`${cmd} ${messageId ?? ''}`],
      ),
    ],
    isClosed,
    refusals: broker.reports
      .slice(seen)
      .flatMap((report) =>
        report.type === 'refused'
          ? [`${report.code} ${JSON.stringify(report.evidence)}`]
          : report.type === 'disconnected'
            ? [report.reason]
            : [],
      ),
    octets: readers.map((reader) => reader.octets.length),
    published: broker.mqtt.traffic().published - before.published,
    delivered: broker.mqtt.traffic().delivered - before.delivered,
  }
  author.close()
  await until(() => broker.mqtt.registered().ids.every((id) => id !== 'A'))
  if (record !== undefined) broker.replica.put(record)
  return outcome
}

function apply(broker: TestBroker, kind: 'hold' | 'narrow' | 'widen'): void {
  const [record] = [...broker.replica.records.values()].filter(({ device }) => device.id === 'A')
  if (kind === 'hold' && record !== undefined) void broker.hold(record.certificate)
  const policy =
    kind === 'narrow'
      ? {
          publish: ['devices/A/x', 'kept/#', { topic: 'plain/x', maxQos: 0 as const }],
          subscribe: ['devices/A/#', 'plain/x'],
        }
      : { publish: ['#'], subscribe: ['#', '$SYS/#'] }
  if (kind !== 'hold') broker.sessions.setPolicy({ id: 'default', policy, policyEpoch: 2 })
}

/** Empties the queues of the readers, and what is retained. */
async function acknowledgeAll(readers: readonly Piped[]): Promise<void> {
  for (const reader of readers) {
    for (const packet of reader.received) {
      if (packet.cmd === 'publish' && packet.qos === 1)
        await reader.send({ cmd: 'puback', messageId: packet.messageId ?? 0 })
      if (packet.cmd === 'publish' && packet.qos === 2)
        await reader.send(
          { cmd: 'pubrec', messageId: packet.messageId ?? 0 },
          { cmd: 'pubcomp', messageId: packet.messageId ?? 0 },
        )
    }
  }
}

const RUNS = 60
const message = publish('plain/x', Buffer.from('1'), { qos: 1 })
const rated = Array.from({ length: 5 }, () => publish('limits/rated', Buffer.from('1'), { qos: 1 }))
const EXAMPLES = [
  { packets: [message, publish('plain/y', Buffer.from('2'), { lengthOctets: 4 }), message], cuts: [] },
  { packets: [publish('plain/x', Buffer.alloc(0), { qos: 1, cutBody: 2 }), message], cuts: [] },
  { packets: [...rated, message, ...rated], cuts: [11, 19, 19, 22, 7, 25, 5, 17, 28] },
]
/** Topics that are published to with the retain flag. */
const RETAINED = [
  'devices/A/x',
  'devices/A/y',
  'plain/x',
  'plain/x/y',
  'kept/x',
  'limits/qos',
  'limits/small',
  'limits/rated',
  'plain/\ufeff',
  `plain/${'/'.repeat(98)}`,
]

t.test('the short way and the long way end alike', async (t) => {
  const broker = await open(t, {
    now: () => clock,
    limits: { inflightOutbound: 1_000, queueMessages: 10_000, retainedMessages: 10_000 },
  })
  await broker.enroll('A', { policy: POLICY })
  const readers: Piped[] = []
  for (const id of ['R0', 'R1', 'R2', 'S1', 'M1']) await broker.enroll(id, { policy: POLICY })
  readers.push(await (await new Piped(broker, 'R0').enter()).subscribe({ topic: '#', qos: 0 }))
  readers.push(
    await (await new Piped(broker, 'R1').enter()).subscribe(
      { topic: 'devices/A/#', qos: 1 },
      { topic: 'devices/+/x', qos: 0 },
      { topic: 'plain/#', qos: 1 },
    ),
  )
  readers.push(
    await (await new Piped(broker, 'R2').enter()).subscribe(
      { topic: '#', qos: 2 },
      { topic: '$SYS/x', qos: 0 },
    ),
  )
  readers.push(
    await (await new Piped(broker, 'S1').enter({ clean: false })).subscribe(
      { topic: 'plain/x/#', qos: 1 },
      { topic: 'devices/A/y', qos: 0 },
    ),
  )
  readers.push(
    await (await new Piped(broker, 'M1').enter({ clean: false })).subscribe({ topic: 'devices/A/#', qos: 0 }),
  )
  await fc.assert(
    fc.asyncProperty(scripts, async ({ packets: all, cuts, change }) => {
      // How long a client is held is a matter of time.
      const packets = change === null ? all : all.filter((packet) => !packet.includes('limits/rated'))
      const script = { chunks: cuts === null ? packets : pieces(Buffer.concat(packets), cuts), change }
      isLong = true
      const long = await play(broker, readers, script).finally(() => {
        isLong = false
      })
      const short = await play(broker, readers, script)
      const found = difference(short, long)
      if (found !== '') throw new Error(found)
    }),
    {
      numRuns: RUNS,
      examples: EXAMPLES.map((example): [Script] => [{ change: null, ...example }]),
    },
  )
})

function difference(short: Outcome, long: Outcome): string {
  const [one, other] = [sorted(short), sorted(long)]
  return Object.keys(one)
    .flatMap((key) => {
      const [a, b] = [JSON.stringify(one[key as keyof Outcome]), JSON.stringify(other[key as keyof Outcome])]
      return a === b ? [] : [`${key}: short ${a}, long ${b}`]
    })
    .join('; ')
}

/** Messages of QoS 2 are handed out a turn later than others: order is by QoS. */
function sorted(outcome: Outcome): Outcome {
  const byQos = (messages: string[]) =>
    [0, 1, 2].flatMap((qos) => messages.filter((m) => m.includes(` q${qos} `)))
  const answers = outcome.author.filter((line) => !line.includes(' d'))
  const kinds = [...new Set(answers.map((line) => line.split(' ')[0] ?? ''))].sort()
  const byKind = kinds.flatMap((kind) => answers.filter((line) => line.startsWith(kind)))
  return { ...outcome, readers: outcome.readers.map(byQos), author: [...byQos(outcome.author), ...byKind] }
}

t.test('a client that is held again and again leaves nothing behind', async (t) => {
  const broker = await open(t)
  await broker.enroll('A', { policy: POLICY })
  const author = await new Piped(broker, 'A').enter()
  const { socket } = author.connection
  const listeners: number[] = []
  for (let times = 0; times < 12; times++) {
    author.received.length = 0
    await author.write(publish('limits/rated', Buffer.alloc(0), { qos: 1 }))
    await author.has('puback')
    listeners.push(socket.listenerCount('close'))
  }
  t.ok(Math.max(...listeners) - (listeners[0] ?? 0) <= 1, `${listeners}`)
  author.close()
})

t.test('a reader that is slow keeps no more memory alive than may wait for it', async (t) => {
  const broker = await open(t)
  for (const id of ['A', 'R']) await broker.enroll(id, { policy: POLICY })
  const author = await new Piped(broker, 'A').enter()
  const piece = Buffer.concat([publish('plain/x', Buffer.alloc(1)), publish('kept/x', Buffer.alloc(16_000))])
  for (const qos of [0, 1, 2] as const) {
    const reader = await (await new Piped(broker, 'R').enter()).subscribe({ topic: 'plain/#', qos })
    reader.pause()
    const { socket } = reader.connection
    while (socket.writableLength === 0) await author.write(publish('plain/x', Buffer.alloc(16_000)))
    for (let n = 0; n < 400; n++) {
      const own = Buffer.allocUnsafeSlow(piece.length)
      piece.copy(own)
      author.writeAtOnce(own)
      await turns(1)
    }
    await until(() => author.connection.socket.readableLength === 0)
    await turns(10)
    const { writableBuffer } = socket as unknown as { writableBuffer: { chunk: Buffer }[] } // not declared
    const waiting = writableBuffer.map(({ chunk }) => chunk)
    t.ok(waiting.length > 300, `${waiting.length} messages wait`)
    const bytes = [...new Set(waiting.map(({ buffer }) => buffer))].reduce((sum, b) => sum + b.byteLength, 0)
    t.ok(bytes < 2 * LIMITS.writeBufferBytes, `${bytes} octets are kept for ${socket.writableLength}`)
    reader.close()
    await until(() => !broker.mqtt.registered().ids.includes('R'))
  }
  author.close()
})

t.test('a bridge gets nothing with a higher QoS than it was granted', async (t) => {
  const broker = await open(t)
  for (const id of ['A', 'R']) await broker.enroll(id, { policy: POLICY })
  const author = await new Piped(broker, 'A').enter()
  const connect = mqttPacket.generate(connectPacket({ clientId: 'R' }))
  connect[8] = 0x84 // the protocol level of a bridge, which wants the retain flag as it was published
  for (const qos of [0, 1, 2] as const) {
    const bridge = new Piped(broker, 'R')
    await bridge.write(connect)
    await bridge.has('connack')
    await bridge.subscribe({ topic: 'plain/#', qos })
    bridge.received.length = 0
    for (const sent of [0, 1, 2])
      await author.write(publish('plain/x', Buffer.of(sent), { qos: sent, retain: true, id: qos + 1 }))
    await until(() => bridge.messages().length === 3)
    t.strictSame(
      bridge.messages().toSorted(),
      [0, 1, 2].map((sent) => `plain/x q${Math.min(sent, qos)} rtrue dfalse 0${sent}`),
    )
    bridge.close()
    await author.write(publish('plain/x', Buffer.alloc(0), { retain: true }))
    await until(() => !broker.mqtt.registered().ids.includes('R'))
  }
  author.close()
})

t.test('a client that has sent much at once is read piece by piece', async (t) => {
  const broker = await open(t)
  await broker.enroll('A', { policy: POLICY })
  const author = await new Piped(broker, 'A').enter()
  const { socket } = author.connection
  const read: number[] = []
  const original = socket.read.bind(socket)
  socket.read = (size) => {
    const octets: Buffer | null = original(size)
    read.push(octets?.length ?? 0)
    return octets
  }
  const octets = Buffer.concat(Array.from({ length: 5_000 }, () => publish('plain/x', Buffer.alloc(1))))
  const before = broker.mqtt.traffic().published
  for (const piece of pieces(octets, [10_000, 20_000, 3])) socket.push(piece)
  await until(() => broker.mqtt.traffic().published - before === 5_000)
  t.ok(Math.max(...read) <= 16_384, `${Math.max(...read)} octets at once`)
  author.close()
})

t.test('a client that is very far over a rate waits, and is not read at once', async (t) => {
  const broker = await open(t)
  await broker.enroll('A', {
    policy: { publish: [{ topic: 'rare', perSecond: 0.000_000_1 }], subscribe: [] },
  })
  const author = await new Piped(broker, 'A').enter()
  const delays = t.capture(globalThis, 'setTimeout', globalThis.setTimeout)
  await author.write(Buffer.concat(Array.from({ length: 300 }, () => publish('rare', Buffer.alloc(0)))))
  const longest = Math.max(...delays().map(({ args }) => Number(args[1] ?? 0)))
  t.equal(longest, 2 ** 31 - 1, 'all that a timer takes')
  author.close()
})

t.test(
  'a filter that is given up and wanted again in one piece is subscribed to, and the other way round not',
  async (t) => {
    const broker = await open(t)
    for (const id of ['A', 'R']) await broker.enroll(id, { policy: POLICY })
    const author = await new Piped(broker, 'A').enter()
    for (const clean of [true, false]) {
      for (const qos of [0, 1] as const) {
        const reader = await (await new Piped(broker, 'R').enter({ clean })).subscribe({
          topic: 'plain/#',
          qos: 0,
        })
        await reader.send(
          { cmd: 'unsubscribe', messageId: 2, unsubscriptions: ['plain/#'] },
          { cmd: 'subscribe', messageId: 3, subscriptions: [{ topic: 'plain/#', qos }] },
        )
        await until(() => reader.received.some(({ messageId }) => messageId === 3))
        await turns(10)
        reader.received.length = 0
        await author.write(publish('plain/x', Buffer.from('1'), { qos: 1 }))
        await turns(10)
        t.strictSame(reader.messages(), [`plain/x q${qos} rfalse dfalse 31`], `clean ${clean}, QoS ${qos}`)
        await reader.send(
          { cmd: 'subscribe', messageId: 4, subscriptions: [{ topic: 'plain/+', qos: 0 }] },
          { cmd: 'unsubscribe', messageId: 5, unsubscriptions: ['plain/+', 'plain/#'] },
        )
        await until(() => reader.received.some(({ messageId }) => messageId === 5))
        await turns(10)
        reader.received.length = 0
        await author.write(publish('plain/x', Buffer.from('1')))
        await turns(10)
        t.strictSame(reader.messages(), [], `given up, clean ${clean}, QoS ${qos}`)
        reader.close()
        await until(() => !broker.mqtt.registered().ids.includes('R'))
      }
    }
    author.close()
  },
)

t.test('messages behind CONNECT in one piece and in the next keep their order', async (t) => {
  const broker = await open(t)
  for (const id of ['A', 'R']) await broker.enroll(id, { policy: POLICY })
  const reader = await (await new Piped(broker, 'R').enter()).subscribe({ topic: 'plain/#', qos: 1 })
  for (const clean of [true, false]) {
    for (const qos of [0, 1]) {
      reader.received.length = 0
      const author = new Piped(broker, 'A')
      const connect = mqttPacket.generate(connectPacket({ clientId: 'A', clean }))
      const [first, ...rest] = [1, 2, 3, 4].map((n) => publish('plain/x', Buffer.of(n), { qos, id: n }))
      author.writeAtOnce(Buffer.concat([connect, first ?? connect]), ...rest)
      await until(() => reader.messages().length === 4)
      const order = reader.messages().map((line) => line.slice(-2))
      t.strictSame(order, ['01', '02', '03', '04'], `clean ${clean}, QoS ${qos}`)
      author.close()
      await until(() => !broker.mqtt.registered().ids.includes('A'))
    }
  }
})

t.test(
  'nothing is routed of a client that has been decided against and is cleaned up after later',
  async (t) => {
    const broker = await open(t, { few: 0 })
    const identity = await broker.enroll('A', { policy: POLICY })
    await broker.enroll('R', { policy: POLICY })
    const reader = await (await new Piped(broker, 'R').enter()).subscribe({ topic: 'plain/#', qos: 1 })
    const author = await new Piped(broker, 'A', new PassThrough()).enter()
    await author.write(publish('plain/x', Buffer.of(1), { qos: 1 }), publish('plain/x', Buffer.of(2)))
    const before = author.octets.length
    const held = broker.hold(identity)
    t.notOk(author.isClosed, 'its socket is left for later')
    const { connection } = author
    connection.socket.push(publish('plain/x', Buffer.of(3), { qos: 1 }))
    connection.socket.push(publish('plain/x', Buffer.of(4)))
    await held
    await broker.sessions.cleaned()
    t.ok(author.isClosed)
    t.strictSame(reader.messages().length, 2)
    t.equal(author.octets.length, before, 'no acknowledgement')
  },
)

t.test('a client that sends whole packets the short way is alive, one that drips is not', async (t) => {
  const broker = await open(t)
  await broker.enroll('A', { policy: POLICY })
  const author = await new Piped(broker, 'A').enter()
  const { client } = author.connection.socket as unknown as { client: { _keepaliveTimer: NodeJS.Timeout } } // Aedes sets it
  const timer = client._keepaliveTimer
  let refreshed = 0
  const refresh = timer.refresh.bind(timer)
  timer.refresh = () => {
    refreshed++
    return refresh()
  }
  const packet = publish('plain/x', Buffer.alloc(100))
  await author.write(packet)
  t.equal(refreshed, 1)
  await author.write(Buffer.of(0x40, 2, 0, 1))
  t.equal(refreshed, 2)
  for (const octet of packet.subarray(0, -1)) await author.write(Buffer.of(octet))
  t.equal(refreshed, 2)
  await author.write(packet.subarray(-1))
  t.equal(refreshed, 3)
  author.close()
})

t.test('of two connections that come at once the newer one stays, whichever way they take', async (t) => {
  const broker = await open(t)
  await broker.enroll('A', { policy: POLICY })
  const will = { topic: 'plain/x', payload: Buffer.of(1), qos: 0, retain: false } as const
  for (const options of [{}, { will }, { clean: false }]) {
    const [older, newer] = [new Piped(broker, 'A'), new Piped(broker, 'A')]
    older.writeAtOnce(mqttPacket.generate(connectPacket({ clientId: 'A', ...options })))
    newer.writeAtOnce(mqttPacket.generate(connectPacket({ clientId: 'A' })))
    await until(() => older.isClosed || newer.isClosed)
    t.strictSame([older.isClosed, newer.isClosed], [true, false], Object.keys(options).join())
    newer.close()
    await until(() => broker.mqtt.registered().ids.length === 0)
  }
})
