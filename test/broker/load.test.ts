import mqttPacket from 'mqtt-packet'
import t from 'tap'
import { PacketWalk } from '../../broker/door/packet-walk.ts'
import { LIMITS } from '../../broker/limits.ts'
import { openTestBroker, until } from '../support/broker.ts'
import { brokersOf } from '../support/broker-opener.ts'
import { connectPacket, enter, openRaw, publish, subscribe } from '../support/mqtt-clients.ts'
import { testAuthority } from '../support/pki.ts'
import fc from '../support/properties.ts'

const authority = await testAuthority()
t.teardown(() => authority.remove())

const KIB_16 = Buffer.alloc(16_384, 'x')
/** Of those who send as fast as they can. */
const UNPACED = {
  publishPerSecond: 0,
  retainedMessages: 1_000,
  retainedBytes: 16_777_216,
  queueBytes: 16_777_216,
}
const open = brokersOf(authority, UNPACED)
const everything = { publish: ['devices/#'], subscribe: ['devices/#'] }

t.test('packets are followed through whatever pieces they arrive in', async (t) => {
  const limits = { connectBytes: 64, packetBytes: 300 }
  const packet = fc.record({ topic: fc.constant('devices/A/x'), payload: fc.uint8Array({ maxLength: 280 }) })
  fc.assert(
    fc.property(
      fc.array(packet, { maxLength: 8 }),
      fc.array(fc.nat(200), { maxLength: 40 }),
      (packets, cuts) => {
        const octets = Buffer.concat([
          mqttPacket.generate(connectPacket({ clientId: 'A' })),
          ...packets.map(({ topic, payload }) =>
            mqttPacket.generate(publish(topic, Buffer.from(payload), 0)),
          ),
          mqttPacket.generate({ cmd: 'pingreq' }),
        ])
        const walk = new PacketWalk(limits)
        let at = 0
        for (const cut of [...cuts, octets.length]) {
          if (walk.take(octets.subarray(at, at + cut)) !== null) return false
          at += cut
        }
        return walk.packets === packets.length + 2
      },
    ),
    { numRuns: 2_000 },
  )
  t.pass()
})

t.test(
  'a packet over the limit is known by the last octet of its length, wherever the stream is cut',
  async (t) => {
    const limits = { connectBytes: 64, packetBytes: 300 }
    const hostile = Buffer.concat([
      mqttPacket.generate(connectPacket({ clientId: 'A' })),
      Buffer.from('c00030ad02', 'hex'),
    ])
    for (let cut = 0; cut <= hostile.length; cut++) {
      const walk = new PacketWalk(limits)
      const [first, second] = [walk.take(hostile.subarray(0, cut)), walk.take(hostile.subarray(cut))]
      t.equal(first ?? second, 'packet of 301 octets, 300 allowed')
    }
  },
)

t.test('a remaining length has at most four octets, whatever they say', async (t) => {
  for (const [octets, violation] of [
    ['10ffffffff', 'malformed remaining length'],
    ['108080808000', 'malformed remaining length'],
    ['1080808000', null],
    ['1000c0808080808000', 'malformed remaining length'],
  ] as const) {
    t.equal(new PacketWalk(LIMITS).take(Buffer.from(octets, 'hex')), violation, octets)
  }
})

t.test('random octets never make the walk throw or stall', async (t) => {
  fc.assert(
    fc.property(fc.array(fc.uint8Array({ maxLength: 64 }), { maxLength: 20 }), (chunks) => {
      const walk = new PacketWalk(LIMITS)
      return chunks.every((chunk) => [null, 'string'].includes(walk.take(chunk) === null ? null : 'string'))
    }),
  )
  t.pass()
})

t.test('random octets after CONNECT close the socket, and the process lives', async (t) => {
  const broker = await open(t)
  const a = await broker.enroll('A')
  await fc.assert(
    fc.asyncProperty(fc.uint8Array({ minLength: 1, maxLength: 200 }), async (octets) => {
      const raw = await enter(broker, a)
      raw.send(Buffer.from(octets))
      raw.socket.end()
      await raw.closed
    }),
    { numRuns: 60 },
  )
  await (await enter(broker, a)).ping()
  t.pass()
})

t.test('64 MB are refused when they are declared, before the first octet of them', async (t) => {
  const broker = await openTestBroker({ authority })
  t.teardown(() => broker.close())
  const raw = await enter(broker, await broker.enroll('A'))
  raw.send(Buffer.from('3080808020', 'hex')) // PUBLISH with a remaining length of 67 108 864
  await raw.closed
  const violation = 'packet of 67108864 octets, 262144 allowed'
  t.match(await broker.report('refused'), { code: 'R-PACKET', device: 'A', evidence: { violation } })
})

t.test('a subscriber that does not read loses its socket, and nobody else a message', async (t) => {
  const broker = await open(t)
  const ids = ['W', 'healthy', 'frozen'] as const
  const [writer, healthy, frozen] = await Promise.all(
    ids.map(async (id) => enter(broker, await broker.enroll(id, { policy: everything, fleet: 'f' }))),
  )
  if (writer === undefined || healthy === undefined || frozen === undefined) return t.fail()
  await subscribe(healthy, 'devices/x/#', 0)
  await subscribe(frozen, 'devices/x/#', 0)
  frozen.socket.pause()
  let received = 0
  healthy.socket.removeAllListeners('data')
  const parser = mqttPacket.parser()
  const whole = Promise.withResolvers<void>()
  parser.on('packet', (packet) => {
    if (packet.cmd === 'publish' && packet.topic === `devices/x/${received}` && ++received === 1500)
      whole.resolve()
  })
  healthy.socket.on('data', (chunk) => parser.parse(chunk))
  for (let n = 0; n < 1500; n++) {
    writer.send(publish(`devices/x/${n}`, KIB_16, 0))
    if (n % 10 === 9) await writer.ping()
  }
  await whole.promise
  t.equal(received, 1500)
  t.match(await broker.report('refused'), {
    code: 'R-PACKET',
    device: 'frozen',
    evidence: { violation: /does not read/ },
  })
  t.match(await broker.report('disconnected'), { device: 'frozen' })
  writer.socket.destroy()
  healthy.socket.destroy()
  frozen.socket.destroy()
})

t.test('a publisher does not wait for a subscriber that has stopped reading', async (t) => {
  const broker = await open(t)
  const writer = await enter(broker, await broker.enroll('W', { policy: everything, fleet: 'f' }))
  const frozen = await enter(broker, await broker.enroll('frozen', { policy: everything, fleet: 'f' }))
  await subscribe(frozen, 'devices/x/#', 0)
  frozen.socket.pause()
  const [connection] = broker.sessions.select({ kind: 'device', id: 'frozen' })
  if (connection === undefined) return t.fail('not indexed')
  while (connection.socket.writableLength < 4 * KIB_16.length * 4 && !connection.socket.destroyed) {
    writer.send(publish('devices/x/1', KIB_16, 0))
    await writer.ping()
  }
  t.notOk(connection.socket.destroyed, 'it may still recover')
  writer.socket.destroy()
  frozen.socket.destroy()
})

t.test('a replay of retained and of queued messages is as slow as its reader, and whole', async (t) => {
  const broker = await open(t)
  const writer = await enter(broker, await broker.enroll('W', { policy: everything, fleet: 'f' }))
  const reader = await broker.enroll('R', { policy: everything, fleet: 'f' })
  const first = await enter(broker, reader, false)
  await subscribe(first, 'devices/q/#')
  first.socket.destroy()
  await first.closed
  for (let n = 0; n < 600; n++) {
    writer.send(publish(`devices/q/${n}`, KIB_16, 1), publish(`devices/r/${n}`, KIB_16, 1, true))
    await writer.next('puback')
    await writer.next('puback')
  }
  const raw = await openRaw(broker, reader)
  let [queued, retained] = [0, 0]
  raw.socket.on('data', () => {
    for (const packet of raw.received.splice(0)) {
      if (packet.cmd !== 'publish') continue
      if (packet.topic.startsWith('devices/q')) queued++
      else retained++
      raw.send({ cmd: 'puback', messageId: packet.messageId ?? 0 })
    }
    raw.octets = Buffer.alloc(0)
    // Reads one piece, then waits some turns: slower than the broker.
    raw.socket.pause()
    setTimeout(() => raw.socket.resume(), 1)
  })
  raw.send(connectPacket({ clientId: 'R', clean: false }))
  await until(() => queued === 600 || raw.socket.destroyed)
  raw.send({ cmd: 'subscribe', messageId: 1, subscriptions: [{ topic: 'devices/r/#', qos: 1 }] })
  await until(() => retained === 600 || raw.socket.destroyed)
  t.same({ queued, retained }, { queued: 600, retained: 600 })
  raw.socket.destroy()
  writer.socket.destroy()
})

t.test('more half-received QoS 2 messages than allowed close the connection', async (t) => {
  const broker = await open(t)
  const raw = await enter(broker, await broker.enroll('A'))
  for (let n = 0; n < LIMITS.inflightInbound; n++) {
    raw.send(publish('devices/A/up', 'x', 2))
    await raw.next('pubrec')
  }
  raw.send(publish('devices/A/up', 'x', 2))
  await raw.closed
  t.pass()
})
