import { execFileSync } from 'node:child_process'
import { fileURLToPath } from 'node:url'
import mqttPacket, { type Packet } from 'mqtt-packet'
import t from 'tap'
import { carry, type Flow } from '../../bench/flow.ts'
import { type LoadClient, openLoadClient } from '../../bench/mqtt-load-client.ts'
import { PacketCount } from '../../bench/mqtt-octets.ts'
import { PATTERNS } from '../../bench/patterns.ts'
import { openTestBroker, type TestBroker } from '../support/broker.ts'
import { testAuthority } from '../support/pki.ts'
import fc from '../support/properties.ts'

const authority = await testAuthority()
t.teardown(() => authority.remove())

t.test(
  'the load counts whole packets and reads packet identifiers, wherever the stream is cut',
  async (t) => {
    const packet = fc.oneof(
      fc.record({
        messageId: fc.integer({ min: 1, max: 65_535 }),
        octets: fc.nat(400),
        qos: fc.constantFrom(0, 1),
      }),
      fc.constant(null),
    )
    fc.assert(
      fc.property(
        fc.array(packet, { maxLength: 10 }),
        fc.array(fc.nat(150), { maxLength: 40 }),
        (packets, cuts) => {
          const stream = Buffer.concat(
            packets.map((one) =>
              mqttPacket.generate(
                (one === null
                  ? { cmd: 'puback', messageId: 3 }
                  : { cmd: 'publish', topic: 'a/b', payload: Buffer.alloc(one.octets), ...one }) as Packet, // QoS as number
              ),
            ),
          )
          const heard: (number | null | 'puback')[] = []
          const count = new PacketCount({
            publish: (messageId) => void heard.push(messageId),
            puback: () => void heard.push('puback'),
            other: () => heard.push(-1),
          })
          let at = 0
          for (const cut of [...cuts, stream.length]) {
            const reused = Buffer.from(stream.subarray(at, at + cut))
            count.take(reused)
            reused.fill(0xff) // the next piece is read into the same octets
            at += cut
          }
          const expected = packets.map((one) =>
            one === null ? 'puback' : one.qos === 0 ? null : one.messageId,
          )
          return JSON.stringify(heard) === JSON.stringify(expected)
        },
      ),
      { numRuns: 500 },
    )
    t.pass()
  },
)

const EVERYTHING = { publish: ['devices/#'], subscribe: ['devices/#'] }

async function clientOf(broker: TestBroker, id: string, filter?: string): Promise<LoadClient> {
  const { keyPem: key, chainPem: certificate } = await broker.enroll(id, { policy: EVERYTHING })
  const target = { port: broker.port, ca: authority.rootPem }
  const pair = { id, key, certificate }
  return openLoadClient(target, {
    ...{ pair, isClean: true },
    ...(filter === undefined ? {} : { subscription: { filter, qos: 1 as const } }),
  })
}

t.test(
  'every message that a run has published is delivered, and with QoS 1 acknowledged twice',
  async (t) => {
    const broker = await openTestBroker({ authority, limits: { publishPerSecond: 0 } })
    t.teardown(() => broker.close())
    const publishers = [
      { client: await clientOf(broker, 'A'), topic: 'devices/A/x' },
      { client: await clientOf(broker, 'B'), topic: 'devices/B/x' },
    ]
    const subscribers = [await clientOf(broker, 'C', 'devices/+/x'), await clientOf(broker, 'D', 'devices/#')]
    const flows: Flow[] = [{ publishers, subscribers, window: 64 }]
    const payload = Buffer.alloc(64)
    for (const qos of [0, 1] as const) {
      t.strictSame(await carry(flows, { count: 400, qos, payload, batch: 4 }), { delivered: 800, lost: 0 })
    }
    const { published, delivered } = broker.mqtt.traffic()
    t.strictSame([published, delivered], [800, 1_600])
    await t.rejects(clientOf(broker, 'E', 'fleets/other/#'), { code: 'unavailable' }, 'may not subscribe')
    for (const client of [...subscribers, ...publishers.map((each) => each.client)]) client.close()
  },
)

t.test('a message of QoS 1 that is lost ends the bench, one of QoS 0 is counted', async (t) => {
  const deaf: LoadClient = { tally: { received: 0, acknowledged: 0 }, heard() {}, write() {}, close() {} }
  const flows: Flow[] = [{ publishers: [{ client: deaf, topic: 'a' }], subscribers: [deaf], window: 8 }]
  const load = { count: 16, payload: Buffer.alloc(1), batch: 4, standstillMs: 24 }
  t.strictSame(await carry(flows, { ...load, qos: 0 }), { delivered: 0, lost: 8 })
  await t.rejects(carry(flows, { ...load, qos: 1 }), { code: 'check_failed' })
})

t.test('a pattern says who publishes what, and nobody hears of a message twice', async (t) => {
  const pair = (id: string) => ({ id, certificate: '', key: '' })
  const devices = Array.from({ length: 100 }, (_, index) => pair(`device-${index}`))
  const services = Array.from({ length: 50 }, (_, index) => pair(`service-${index}`))
  for (const { name, flows, copies, parties } of PATTERNS) {
    const all = parties({ devices, services })
    t.equal(all.length, flows, name)
    for (const { subscribers, publishers } of all) {
      t.equal(subscribers.length, copies)
      t.equal(new Set(publishers.map(({ topic }) => topic)).size, publishers.length)
    }
  }
})

t.test(
  'the broker that grants everything is ours, but for what it decides about messages and connections',
  async (t) => {
    const file = (path: string) => fileURLToPath(new URL(`../../${path}`, import.meta.url))
    const program = `
    import * as judge from ${JSON.stringify(file('broker/judge/authorization.ts'))}
    import { Exchange } from ${JSON.stringify(file('broker/mqtt/exchange.ts'))}
    import { openConnection } from ${JSON.stringify(file('broker/sessions.ts'))}
    const connection = openConnection({ policy: { hasRates: true, mayReceive: () => false }, device: 'A' })
    connection.refused = 'held'
    const link = { connection: { refused: 'R-HELD' }, filters: new Set() }
    const verdicts = ['judgePublish', 'judgeSubscribe', 'mayForward', 'isGrantedStill']
      .map((name) => name === 'judgeSubscribe' ? judge[name](link, { topic: '#' }) : judge[name](link, 'a'))
    const { device, refused, policy } = connection
    console.log(JSON.stringify([verdicts, [device, refused, policy.hasRates, policy.mayReceive('a')],
      typeof judge.judgeConnect, typeof judge.mayFire, typeof Exchange]))`
    const evaluate = ['--input-type=module', '--disable-warning=ExperimentalWarning', '-e', program]
    const said = execFileSync(process.execPath, ['--import', file('bench/granting.ts'), ...evaluate], {
      encoding: 'utf8',
    })
    const functions = ['function', 'function', 'function']
    t.strictSame(JSON.parse(said), [[null, null, true, true], ['A', null, false, true], ...functions])
  },
)
