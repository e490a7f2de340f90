import t, { type Test } from 'tap'
import type { Link, Will } from '../../broker/mqtt/mqtt-client.ts'
import { openTestBroker, type TestBroker, type TestBrokerOptions, until } from '../support/broker.ts'
import { connectPacket, openRaw, type RawClient } from '../support/mqtt-clients.ts'
import { Piped, turns } from '../support/piped.ts'
import { type TestIdentity, testAuthority } from '../support/pki.ts'

const authority = await testAuthority()
t.teardown(() => authority.remove())

const WILL = { topic: 'devices/M/gone', payload: Buffer.from('last words'), qos: 1, retain: true } as const

/** A broker with a service that reads everything. */
async function open(t: Test, options: Omit<TestBrokerOptions, 'authority'> = {}) {
  const broker = await openTestBroker({ authority, ...options })
  t.teardown(() => broker.close())
  const m = await broker.enroll('M')
  const service = await openRaw(broker, await broker.enroll('backend', { kind: 'service' }))
  await service.connect({ clientId: 'backend' })
  service.send({ cmd: 'subscribe', messageId: 1, subscriptions: [{ topic: 'devices/#', qos: 1 }] })
  await service.next('suback')
  return { broker, m, service }
}
async function enter(
  broker: TestBroker,
  m: TestIdentity,
  will: typeof WILL | null = WILL,
): Promise<RawClient> {
  const raw = await openRaw(broker, m)
  const { returnCode } = await raw.connect({ clientId: m.id, ...(will === null ? {} : { will }) })
  if (returnCode !== 0) throw new Error(`refused ${returnCode}`)
  return raw
}
async function isSilent(t: Test, broker: TestBroker, service: RawClient): Promise<void> {
  for (let n = 0; n < 3; n++) await service.ping()
  t.notOk(service.octets.includes('last words'), 'the will is not published')
  t.equal(await broker.store.getWill({ id: 'M' }), undefined, 'nor stored')
  t.same(await broker.store.createRetainedStreamCombi(['devices/#']).toArray(), [], 'nor retained')
}

t.test('a client that was decided against takes no will with it but its own', async (t) => {
  const { broker, service } = await open(t)
  const old = await new Piped(broker, 'M').enter({ will: WILL })
  old.connection.refused = 'factor' // its socket is left for later
  const next = await new Piped(broker, 'M').enter({ will: WILL })
  await until(() => old.isClosed)
  await turns(10)
  const { connection } = (await broker.store.getWill({ id: 'M' })) ?? {}
  t.equal(connection, next.connection.id, 'the will of the newcomer is still stored')
  next.close()
  service.socket.destroy()
})

t.test('the will of a device that is lost is published, that of one that says goodbye is not', async (t) => {
  const { broker, m, service } = await open(t)
  const polite = await enter(broker, m)
  polite.send({ cmd: 'disconnect' })
  await polite.closed
  await isSilent(t, broker, service)
  const lost = await enter(broker, m)
  t.equal((await broker.store.getWill({ id: 'M' }))?.topic, WILL.topic)
  lost.socket.destroy()
  t.match(await service.next('publish'), { topic: WILL.topic, payload: WILL.payload })
  await service.ping()
  t.equal(await broker.store.getWill({ id: 'M' }), undefined)
})

t.test('the will of a revoked or held device is neither published nor stored', async (t) => {
  const { broker, m, service } = await open(t)
  const held = await enter(broker, m)
  await broker.hold(m)
  await held.closed
  await isSilent(t, broker, service)
  await broker.change(m, (record) => ({ ...record, hold: null }))
  const raw = await enter(broker, m)
  await broker.revoke(m)
  await raw.closed
  await isSilent(t, broker, service)
})

t.test('a device that leaves before the news of its revocation has no will either', async (t) => {
  const { broker, m, service } = await open(t)
  const raw = await enter(broker, m)
  const record = broker.replica.records.get(m.fingerprint)
  if (record === undefined) return t.fail('not enrolled')
  // The replica knows, the session has not been told.
  broker.replica.put({ ...record, certificate: { ...record.certificate, state: 'revoked' } })
  raw.socket.destroy()
  await broker.report('disconnected', ({ device }) => device === 'M')
  await isSilent(t, broker, service)
})

t.test('at whatever moment of CONNECT the revocation comes, no will is left behind', async (t) => {
  const { broker, service } = await open(t)
  for (let turns = 0; turns < 24; turns++) {
    const m = await broker.enroll('M')
    const raw = await openRaw(broker, m)
    await until(() => broker.sessions.count() === 2)
    raw.send(connectPacket({ clientId: 'M', will: WILL, clean: turns % 2 === 0 }))
    for (let turn = 0; turn < turns; turn++) await new Promise(setImmediate)
    await broker.revoke(m)
    await raw.closed
    await isSilent(t, broker, service)
  }
})

t.test('a revocation between the reading and the storing of a will leaves none', async (t) => {
  const { broker, m, service } = await open(t)
  const deleteWill = broker.store.delWill.bind(broker.store)
  // Aedes deletes an older will before it stores the new one: the decision falls in between.
  broker.store.delWill = async (client) => {
    const will = await deleteWill(client)
    for (const connection of broker.sessions.select({ kind: 'device', id: 'M' })) {
      connection.refused = 'revoked'
      connection.socket.destroy()
    }
    return will
  }
  const raw = await openRaw(broker, m)
  raw.send(connectPacket({ clientId: 'M', will: WILL }))
  await raw.closed
  broker.store.delWill = deleteWill
  await isSilent(t, broker, service)
})

t.test(
  'the store takes no will of a client that has closed, whose deletion may have come before',
  async (t) => {
    const { broker, m } = await open(t)
    const raw = await enter(broker, m, null)
    const [connection] = broker.sessions.select({ kind: 'device', id: 'M' })
    if (connection === undefined) return t.fail('not indexed')
    const req: Link = {
      connection,
      clientId: 'M',
      will: null,
      filters: new Set(),
      isAccepted: true,
      isThrottled: false,
      refusals: 0,
    }
    const client = { id: 'M', clean: false, closed: true, conn: connection.socket, req, close: () => {} }
    await broker.store.putWill(client, { ...WILL })
    t.equal(await broker.store.getWill({ id: 'M' }), undefined)
    await broker.store.putWill({ ...client, closed: false }, { ...WILL })
    t.match(await broker.store.getWill({ id: 'M' }), {
      fingerprint: m.fingerprint,
      connection: connection.id,
    })
    raw.socket.destroy()
  },
)

/** Stores a will as a broker that has died since would have. */
async function plant(broker: TestBroker, will: Partial<Will>): Promise<void> {
  const planted = { ...WILL, ...will }
  await broker.store.putWill({ id: 'M' }, planted)
  Object.assign(planted, { brokerId: 'dead-broker' })
}
/** Resolves when the sweep has taken the will away. */
async function swept(broker: TestBroker): Promise<void> {
  await until(async () => (await broker.store.getWill({ id: 'M' })) === undefined)
}

t.test('the will of a dead broker is published when its device is live', async (t) => {
  const { broker, m, service } = await open(t, { heartbeatMs: 20 })
  await plant(broker, { fingerprint: m.fingerprint })
  t.match(await service.next('publish'), { topic: WILL.topic })
  await swept(broker)
})

t.test(
  'the will of a dead broker is deleted unpublished when its device is not, or may not, or is unknown',
  async (t) => {
    const { broker, m, service } = await open(t, { heartbeatMs: 20 })
    const narrow = await broker.enroll('M', { policy: { publish: ['devices/M/up'], subscribe: [] } })
    for (const fingerprint of [undefined, 'f00', narrow.fingerprint, m.fingerprint]) {
      if (fingerprint === m.fingerprint) await broker.revoke(m)
      await plant(broker, fingerprint === undefined ? {} : { fingerprint })
      await swept(broker)
      await isSilent(t, broker, service)
    }
    t.notMatch(broker.logged(), /broker error/)
  },
)

t.test('a sweep that cannot read the replica publishes nothing', async (t) => {
  const { broker, m, service } = await open(t, { heartbeatMs: 20 })
  broker.replica.failure = new Error('disk I/O error')
  await plant(broker, { fingerprint: m.fingerprint })
  await swept(broker)
  await isSilent(t, broker, service)
})

t.test('a purge deletes the will', async (t) => {
  const { broker, m, service } = await open(t)
  await plant(broker, { fingerprint: m.fingerprint })
  await broker.mqtt.purge(['M'])
  await isSilent(t, broker, service)
})

t.test(
  'a client that takes over keeps its own will, although the one before it deletes "its" own late',
  async (t) => {
    const { broker, m, service } = await open(t)
    const first = await enter(broker, m)
    const filters = Array.from({ length: 20 }, (_, n) => ({ topic: `devices/M/${n}`, qos: 1 as const }))
    first.send({ cmd: 'subscribe', messageId: 1, subscriptions: filters })
    await first.next('suback')
    const second = await enter(broker, m)
    await first.closed
    t.match(
      await service.next('publish'),
      { topic: WILL.topic },
      'the first one is lost, so its will is published',
    )
    for (let n = 0; n < 5; n++) await second.ping()
    t.equal((await broker.store.getWill({ id: 'M' }))?.topic, WILL.topic)
    second.send({ cmd: 'disconnect' })
    await second.closed
    await service.ping()
    t.equal(await broker.store.getWill({ id: 'M' }), undefined)
  },
)
