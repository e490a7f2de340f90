/** The reason that is told when a connection has ended is what ended it. */
import { join } from 'node:path'
import mqttPacket, { type Packet } from 'mqtt-packet'
import t, { type Test } from 'tap'
import type { WebSocket } from 'ws'
import type { Limits } from '../../broker/limits.ts'
import { type DurableBroker, openDurableBroker } from '../support/durable-broker.ts'
import {
  connectPacket,
  enter,
  openRaw,
  publish,
  type RawClient,
  type RawPacket,
  subscribe,
} from '../support/mqtt-clients.ts'
import { testAuthority } from '../support/pki.ts'
import { openWebSocket } from '../support/web-socket.ts'

const authority = await testAuthority()
t.teardown(() => authority.remove())

const own = 'devices/lamp/x'
const deep = `devices/lamp${'/x'.repeat(120)}`
const hex = (octets: string) => Buffer.from(octets.replaceAll(' ', ''), 'hex')
const twice = (packet: Packet) => Buffer.concat([mqttPacket.generate(packet), mqttPacket.generate(packet)])

interface Ending {
  readonly reason: string
  /** What the client sends. */
  readonly sends: readonly RawPacket[]
  /** Of the refusal with the code R-PACKET or R-QUOTA; null when nothing is refused. */
  readonly violation: RegExp | null
}

const BROKEN: Record<string, Omit<Ending, 'reason'>> = {
  'a second CONNECT': { sends: [connectPacket({ clientId: 'lamp' })], violation: /a second CONNECT/ },
  CONNACK: { sends: [hex('20 02 00 00')], violation: /CONNACK from a client/ },
  SUBACK: { sends: [hex('90 03 00 01 00')], violation: /SUBACK from a client/ },
  UNSUBACK: { sends: [hex('b0 02 00 01')], violation: /UNSUBACK from a client/ },
  PINGRESP: { sends: [hex('d0 00')], violation: /PINGRESP from a client/ },
  'the reserved type 0': { sends: [hex('00 00')], violation: /./ },
  'the reserved type 15': { sends: [hex('f0 00')], violation: /./ },
  'a PUBLISH with QoS 3': { sends: [hex('36 06 00 01 61 00 01 78')], violation: /QoS/ },
  'a SUBSCRIBE with other flags': { sends: [hex('80 06 00 01 00 01 61 00')], violation: /flag/ },
  'a SUBSCRIBE without filters': { sends: [hex('82 02 00 01')], violation: /no topic filter|./ },
  'packet identifier 0': { sends: [hex('32 05 00 01 61 00 00')], violation: /packet identifier 0/ },
  'a wildcard in a topic': { sends: [publish('devices/lamp/#', 'x', 0)], violation: /malformed topic name/ },
  'a topic of 122 levels': { sends: [publish(deep, 'x', 0)], violation: /122 levels, 100 allowed/ },
  'a filter of 122 levels': {
    sends: [{ cmd: 'subscribe', messageId: 1, subscriptions: [{ topic: deep, qos: 0 }] }],
    violation: /122 levels, 100 allowed/,
  },
  'giving up a filter of 122 levels': {
    sends: [{ cmd: 'unsubscribe', messageId: 1, unsubscriptions: [deep] }],
    violation: /122 levels, 100 allowed/,
  },
  'a length of five octets': { sends: [hex('30 ff ff ff ff 7f')], violation: /malformed remaining length/ },
  'a packet that is too long': { sends: [hex('30 ff ff ff 7f')], violation: /octets, \d+ allowed/ },
  'an identifier that is in use': { sends: [twice(publish(own, 'x', 2))], violation: /identifier in use/ },
  'what follows on DISCONNECT': {
    sends: [Buffer.concat([hex('e0 00'), hex('30 ff ff ff 7f')])], // one piece
    violation: /octets, \d+ allowed/,
  },
}
const OTHERS: Record<string, Ending> = {
  DISCONNECT: { reason: 'client', sends: [{ cmd: 'disconnect' }], violation: null },
  'nothing within the keepalive': { reason: 'keepalive', sends: [], violation: null },
  'a message that its policy denies': {
    reason: 'policy_pub',
    sends: [publish('devices/other/x', 'x', 0)],
    violation: null,
  },
  'more half-received messages than it may have': {
    reason: 'quota',
    sends: Array.from({ length: 21 }, () => publish(own, 'x', 2)),
    violation: null,
  },
}

async function open(t: Test, ofBroker: Partial<Limits> = {}) {
  const limits = { packetBytes: 65_536, publishPerSecond: 0, writeBufferBytes: 65_536, ...ofBroker }
  const path = join(t.testdir(), 'sessions.db')
  const broker = await openDurableBroker(t, { authority, path, limits })
  return { broker, lamp: await broker.enroll('lamp') }
}
/** Why its connections have ended, the last one of them at the end. */
async function reasonOf(broker: DurableBroker, count: number): Promise<string | undefined> {
  const reasons = () => broker.reports.flatMap((one) => (one.type === 'disconnected' ? [one.reason] : []))
  await broker.report('disconnected', () => reasons().length >= count)
  return reasons().at(-1)
}

for (const clean of [true, false]) {
  t.test(`a client with clean session ${clean ? 1 : 0} is told of as it has ended`, async (t) => {
    const { broker, lamp } = await open(t)
    const packets = Object.entries(BROKEN).map(([name, one]) => [name, { ...one, reason: 'packet' }] as const)
    let count = 0
    for (const [name, { reason, sends, violation }] of [...packets, ...Object.entries(OTHERS)]) {
      const keepalive = reason === 'keepalive' ? 1 : 60
      const raw = await openRaw(broker, lamp)
      await raw.connect({ clientId: 'lamp', clean, keepalive })
      const before = broker.refusals('R-PACKET').length
      raw.send(...sends)
      await raw.closed
      t.equal(await reasonOf(broker, ++count), reason, name)
      const refused = broker.refusals('R-PACKET').slice(before)
      t.equal(refused.length, violation === null ? 0 : 1, name)
      if (violation !== null) t.match(refused[0]?.evidence.violation, violation, name)
    }
  })
}

t.test('a client that goes without a word is lost, in whichever way its connection ends', async (t) => {
  const { broker, lamp } = await open(t)
  const ways: ((raw: RawClient) => unknown)[] = [
    ({ socket }) => socket.end(),
    ({ socket }) => socket.destroy(),
  ]
  for (const [at, leave] of ways.entries()) {
    const raw = await enter(broker, lamp, at % 2 === 0)
    leave(raw)
    t.equal(await reasonOf(broker, at + 1), 'lost')
  }
  t.same(broker.refusals(), [])
})

t.test('a client that another one has replaced, or that does not read, is told of as that', async (t) => {
  const { broker, lamp } = await open(t)
  const first = await enter(broker, lamp, false)
  const second = await enter(broker, lamp, false)
  await first.closed
  t.equal(await reasonOf(broker, 1), 'duplicate')
  const [connection] = broker.sessions.select({ kind: 'device', id: 'lamp' })
  // Nothing is sent while the socket is corked, as when the network takes nothing.
  for (let n = 0; n < 40 && connection?.socket.destroyed === false; n++) {
    connection.socket.write(Buffer.alloc(100_000))
  }
  await second.closed
  t.equal(await reasonOf(broker, 2), 'slow')
})

t.test('a client whose request could not be stored is told of as that', async (t) => {
  const { broker, lamp } = await open(t)
  const requests: Record<string, (raw: RawClient) => void> = {
    messages: (raw) => raw.send(publish(own, 'x', 1)),
    queue: (raw) => raw.send(publish(own, 'x', 2)),
    subscriptions: (raw) => void subscribe(raw, 'devices/lamp/y').catch(() => {}),
    retained: (raw) => raw.send(publish('devices/lamp/z', 'x', 0, true)),
  }
  const reader = await broker.enroll('reader', {
    kind: 'service',
    policy: { publish: [], subscribe: ['devices/#'] },
  })
  await subscribe(await enter(broker, reader, false), 'devices/#', 2)
  let count = 0
  for (const [table, request] of Object.entries(requests)) {
    const raw = await enter(broker, lamp, false)
    const mend = broker.breakDisk(table)
    request(raw)
    await raw.closed
    t.equal(await reasonOf(broker, ++count), 'store', table)
    mend()
  }
})

t.test(
  'a client over WebSocket that breaks a rule, or gives no sign of life, is told of as that',
  async (t) => {
    const ways: [string, Partial<Limits>, (socket: WebSocket) => void][] = [
      ['packet', {}, (socket) => socket.send('text')],
      ['keepalive', { webSocketPingMs: 1_000 }, () => {}],
    ]
    for (const [reason, limits, leave] of ways) {
      const { broker, lamp } = await open(t, limits)
      const socket = await openWebSocket(broker, lamp, { autoPong: false })
      socket.send(mqttPacket.generate(connectPacket({ clientId: 'lamp' })))
      await broker.report('connected')
      leave(socket)
      t.equal(await reasonOf(broker, 1), reason)
    }
  },
)

t.test('who is connected when the broker stops is told of as that', async (t) => {
  const { broker, lamp } = await open(t)
  await enter(broker, lamp)
  await broker.close()
  t.equal(await reasonOf(broker, 1), 'broker-stopped')
})
