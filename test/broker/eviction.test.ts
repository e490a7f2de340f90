import t from 'tap'
import { bury, cut } from '../../broker/door/guarded-socket.ts'
import { openTestBroker, until } from '../support/broker.ts'
import { brokersOf } from '../support/broker-opener.ts'
import { connectDevice, connectPacket, enter, openRaw, publish, subscribe } from '../support/mqtt-clients.ts'
import { testAuthority } from '../support/pki.ts'

const authority = await testAuthority()
t.teardown(() => authority.remove())

const open = brokersOf(authority)
const gone = { ids: [], counted: 0 }

t.test('a revoked device is disconnected and cannot return with the same certificate', async (t) => {
  const broker = await open(t)
  const m = await broker.enroll('M')
  const client = await connectDevice(broker, m)
  const closed = new Promise<void>((resolve) => client.once('close', () => resolve()))
  const { closed: count, survivors, closeMs } = await broker.revoke(m)
  t.same({ count, survivors }, { count: 1, survivors: [] })
  t.ok((closeMs[0] ?? 0) < 5000)
  await closed
  t.match(await broker.report('disconnected'), { device: 'M', reason: 'revoked' })
  const raw = await openRaw(broker, m)
  t.equal((await raw.connect({ clientId: 'M' })).returnCode, 5)
  t.match(await broker.report('refused'), {
    code: 'R-REVOKED',
    device: 'M',
    evidence: { serial: m.serial, reason: 'keyCompromise' },
  })
  t.equal(broker.sessions.count(), 0)
  t.same(broker.mqtt.registered(), gone)
  raw.socket.destroy()
})

t.test('when a hold is lifted the device returns with the same certificate', async (t) => {
  const broker = await open(t)
  const m = await broker.enroll('M')
  const raw = await enter(broker, m)
  await broker.hold(m)
  await raw.closed
  const refused = await openRaw(broker, m)
  t.equal((await refused.connect({ clientId: 'M' })).returnCode, 5)
  t.match(await broker.report('refused'), { code: 'R-HELD', evidence: { hold: 'plan-1', scope: 'device M' } })
  await broker.change(m, (record) => ({ ...record, hold: null }))
  ;(await enter(broker, m)).socket.destroy()
  refused.socket.destroy()
})

t.test(
  'from the decision on nothing of the device is routed, stored, retained or answered, nor delivered to it',
  async (t) => {
    const broker = await open(t)
    const [m, backend] = [await broker.enroll('M'), await broker.enroll('backend', { kind: 'service' })]
    const service = await enter(broker, backend)
    await subscribe(service, 'devices/#')
    const raw = await enter(broker, m, false)
    await subscribe(raw, 'devices/M/#')
    const [connection] = broker.sessions.select({ kind: 'device', id: 'M' })
    if (connection === undefined) return t.fail('not indexed')
    const before = raw.octets.length
    connection.refused = 'revoked' // the decision; the socket is destroyed some turns later
    raw.send(
      { cmd: 'unsubscribe', messageId: 76, unsubscriptions: ['devices/M/#'] },
      publish('devices/M/a', 'evil 0', 0, true),
      publish('devices/M/b', 'evil 1', 1, true),
      publish('devices/M/c', 'evil 2', 2, true),
      { cmd: 'subscribe', messageId: 77, subscriptions: [{ topic: 'devices/M/late', qos: 1 }] },
      { cmd: 'pingreq' },
    )
    service.send(publish('devices/M/commands/x', 'secret'))
    await service.next('puback')
    t.match(await service.next('publish'), { topic: 'devices/M/commands/x' })
    await service.ping()
    t.notOk(service.octets.includes('evil'))
    t.equal(raw.octets.length, before, 'no octet reaches it')
    t.same(await broker.store.createRetainedStreamCombi(['devices/#']).toArray(), [])
    t.same(
      (await broker.store.subscriptionsByClient({ id: 'M' })).map(({ topic }) => topic),
      ['devices/M/#'],
    )
    connection.socket.destroy()
    await raw.closed
    service.socket.destroy()
  },
)

t.test('a decision between the storing of a QoS 2 message and its routing stops it', async (t) => {
  const broker = await open(t)
  const [m, backend] = [await broker.enroll('M'), await broker.enroll('backend', { kind: 'service' })]
  const service = await enter(broker, backend)
  await subscribe(service, 'devices/#')
  const raw = await enter(broker, m)
  const store = broker.store.incomingStorePacket.bind(broker.store)
  broker.store.incomingStorePacket = async (client, packet) => {
    await store(client, packet)
    for (const connection of broker.sessions.select({ kind: 'device', id: 'M' })) {
      connection.refused = 'revoked'
      connection.socket.destroy()
    }
  }
  raw.send(publish('devices/M/c', 'evil', 2))
  await raw.closed
  broker.store.incomingStorePacket = store
  await service.ping()
  t.notOk(service.octets.includes('evil'))
  service.socket.destroy()
})

t.test('what is written in the turn of the decision, or after it, does not reach the device', async (t) => {
  const broker = await open(t)
  for (const isBefore of [true, false]) {
    const raw = await enter(broker, await broker.enroll('M'))
    const before = raw.octets.length
    const [connection] = broker.sessions.select({ kind: 'device', id: 'M' })
    if (connection === undefined) return t.fail('not indexed')
    const { socket } = connection
    if (isBefore) {
      socket.cork()
      socket.write('written before the decision, flushed after it')
    }
    connection.refused = 'revoked'
    socket.write('written after it')
    for (let turn = 0; turn < 5; turn++) await new Promise(setImmediate)
    socket.destroy()
    await raw.closed
    t.equal(raw.octets.length, before)
  }
})

t.test('of many sessions every descriptor is closed before the rest of any, and nothing stays', async (t) => {
  const broker = await open(t, { few: 1, limits: { writeBufferBytes: 2 ** 26 } })
  const service = await enter(broker, await broker.enroll('backend', { kind: 'service' }))
  await subscribe(service, 'devices/#')
  const ids = ['M1', 'M2', 'M3', 'M4', 'M5', 'M6']
  const members = await Promise.all(ids.map((id) => broker.enroll(id, { batch: 'lot' })))
  const clients = await Promise.all(members.map((member) => openRaw(broker, member)))
  for (const [n, raw] of clients.entries()) {
    const will = {
      topic: `devices/${ids[n]}/gone`,
      payload: Buffer.from('evil'),
      qos: 1,
      retain: true,
    } as const
    await raw.connect({ clientId: ids[n] ?? '', clean: n % 2 === 0, will })
  }
  const connections = broker.sessions.select({ kind: 'batch', id: 'lot' })
  clients[0]?.socket.pause()
  connections.find(({ device }) => device === 'M1')?.socket.write(Buffer.alloc(2 ** 24)) // waits for its reader
  const destroyed: string[] = []
  for (const { device, socket, wire } of connections) {
    if (wire === undefined) return t.fail('no wire')
    wire.once('close', () => destroyed.push('wire'))
    socket.once('close', () => destroyed.push(device))
  }
  const closing = broker.sessions.close(
    { kind: 'batch', id: 'lot' },
    { judge: () => 'held', since: Date.now() },
  )
  for (const [n, raw] of clients.entries()) raw.send(publish(`devices/${ids[n]}/x`, 'evil', 1, true))
  t.match(await closing, { closed: 6, survivors: [] })
  clients[0]?.socket.resume()
  t.same(destroyed.slice(0, 6), Array(6).fill('wire'))
  t.equal(broker.sessions.count(), 1)
  t.notOk(broker.sessions.isClosing(), 'handshakes go on while the rest is cleaned up')
  await broker.sessions.cleaned()
  t.same(destroyed.slice(6).sort(), ids)
  t.same(broker.mqtt.registered(), { ids: ['backend'], counted: 1 })
  for (const [n, raw] of clients.entries()) {
    await raw.closed
    const { closedAt } = connections.find(({ device }) => device === ids[n]) ?? {}
    t.match(await broker.report('disconnected', ({ device }) => device === ids[n]), {
      ...{ reason: 'held', at: closedAt },
    })
    t.equal(await broker.store.getWill({ id: ids[n] ?? '' }), undefined)
  }
  await service.ping()
  t.notOk(
    service.octets.includes('evil'),
    'no will although the certificates are live: the sessions were decided against',
  )
  t.same(await broker.store.createRetainedStreamCombi(['devices/#']).toArray(), [])
  service.socket.destroy()
})

t.test('a device comes back while what is left of its held session is not cleaned up yet', async (t) => {
  const broker = await open(t)
  const m = await broker.enroll('M')
  const before = await enter(broker, m, false)
  const [connection] = broker.sessions.select({ kind: 'device', id: 'M' })
  if (connection?.wire === undefined) return t.fail('not indexed')
  const { socket, wire } = connection
  t.notOk(cut(socket, wire), 'a session that nobody has decided against is not cut')
  t.notOk(wire.destroyed)
  connection.refused = 'held'
  t.ok(cut(socket, wire))
  await before.closed
  t.same(broker.mqtt.registered(), { ids: ['M'], counted: 1 }, 'the old client is still registered')
  const after = await enter(broker, m, false)
  t.same(broker.mqtt.registered(), { ids: ['M'], counted: 1 })
  bury(socket)
  t.match(await broker.report('disconnected'), { device: 'M', reason: 'held' })
  await after.ping()
  t.same(broker.mqtt.registered(), { ids: ['M'], counted: 1 })
  t.same(broker.refusals(), [], 'nobody took anything from it')
  after.socket.destroy()
})

t.test('a device that floods is cut off in the tick of its revocation', async (t) => {
  const broker = await open(t)
  const [m, backend] = [await broker.enroll('M'), await broker.enroll('backend', { kind: 'service' })]
  const service = await enter(broker, backend)
  await subscribe(service, 'devices/#', 0)
  const raw = await enter(broker, m)
  let flooding = true
  const flood = () => {
    if (!flooding) return
    for (let n = 0; n < 200; n++) raw.send(publish('devices/M/flood', 'x'.repeat(100), 0))
    setImmediate(flood)
  }
  flood()
  await service.next('publish')
  const revoked = broker.revoke(m)
  const [connection] = broker.sessions.select({ kind: 'device', id: 'M' })
  t.equal(connection?.refused, 'revoked')
  t.same((await revoked).survivors, [])
  flooding = false
  await raw.closed
  await service.ping()
  service.received.length = 0
  await service.ping()
  t.same(service.received, [], 'what was routed before has arrived, and nothing after it')
  t.same(broker.mqtt.registered(), { ids: ['backend'], counted: 1 })
  service.socket.destroy()
})

t.test(
  'a revocation between the end of the handshake and CONNACK leaves neither a session nor a CONNACK',
  async (t) => {
    const broker = await open(t)
    for (let turns = 0; turns < 24; turns++) {
      const m = await broker.enroll(`M${turns}`)
      const raw = await openRaw(broker, m)
      await until(() => broker.sessions.count() > 0)
      if (turns > 0) raw.send(connectPacket({ clientId: m.id, clean: turns % 2 === 0 }))
      for (let turn = 0; turn < turns; turn++) await new Promise(setImmediate)
      const isAccepted = broker.reports.some(
        (report) => report.type === 'connected' && report.device === m.id,
      )
      t.match(await broker.revoke(m), { closed: 1, survivors: [] })
      await raw.closed
      if (!isAccepted) t.equal(raw.octets.length, 0, `decided after ${turns} turns`)
      t.equal(broker.sessions.count(), 0)
      t.same(broker.mqtt.registered(), gone)
    }
  },
)

t.test('a change between the gate and the registration is seen by the last look', async (t) => {
  const broker = await open(t)
  const m = await broker.enroll('M')
  for (const reads of [1, 2, 3]) {
    const record = broker.replica.records.get(m.fingerprint)
    if (record === undefined) return t.fail('not enrolled')
    const stopAt = broker.replica.reads + reads
    // Nobody closes the session: only Aedes' own steps ask again.
    broker.replica.onRead = (read) => {
      if (read > stopAt)
        broker.replica.records.set(m.fingerprint, {
          ...record,
          device: { ...record.device, state: 'retired' },
        })
    }
    const raw = await openRaw(broker, m)
    raw.send(connectPacket({ clientId: 'M' }))
    await raw.closed
    // At the third look CONNACK has been sent; the session ends all the same.
    if (reads < 3) t.notOk(raw.octets.equals(Buffer.from('20020000', 'hex')))
    t.same(broker.mqtt.registered(), gone)
    broker.replica.onRead = () => {}
    broker.replica.records.set(m.fingerprint, record)
  }
})

t.test('all sockets of a device are closed, the one that never said CONNECT too', async (t) => {
  const broker = await open(t)
  const m = await broker.enroll('M')
  const [raw, zombie] = [await enter(broker, m), await openRaw(broker, m)]
  await until(() => broker.sessions.count() === 2)
  t.match(await broker.revoke(m), { closed: 2, survivors: [] })
  await Promise.all([raw.closed, zombie.closed])
  t.equal(zombie.octets.length, 0)
  t.equal(broker.sessions.count(), 0)
})

t.test(
  'whatever the interleaving, no client survives its revocation and no ghost stays registered',
  async (t) => {
    const broker = await open(t)
    const filters = ['a', 'b', 'c'].map((name) => ({ topic: `devices/M/${name}`, qos: 1 as const }))
    for (let round = 0; round < 60; round++) {
      const m = await broker.enroll('M')
      const clients = await Promise.all(Array.from({ length: 3 }, () => openRaw(broker, m)))
      for (const raw of clients) {
        raw.send(connectPacket({ clientId: 'M', clean: false }), {
          cmd: 'subscribe',
          messageId: 1,
          subscriptions: filters,
        })
      }
      if (round % 3 === 0) clients[1]?.socket.destroy()
      for (let turn = 0; turn < round; turn++) await new Promise(setImmediate)
      const { survivors } = await broker.revoke(m)
      t.same(survivors, [])
      await Promise.all(clients.map(({ closed }) => closed))
      await new Promise(setImmediate)
      const left = { sessions: broker.sessions.count(), ...broker.mqtt.registered() }
      if (left.sessions !== 0 || left.counted !== 0 || left.ids.length > 0)
        t.fail(`round ${round}: ${JSON.stringify(left)}`)
    }
  },
)

t.test(
  'queued messages and half-received ones are purged with the session, retained telemetry stays',
  async (t) => {
    const broker = await open(t)
    const [m, backend] = [await broker.enroll('M'), await broker.enroll('backend', { kind: 'service' })]
    const service = await enter(broker, backend)
    const raw = await enter(broker, m, false)
    await subscribe(raw, 'devices/M/commands/#', 2)
    const half = publish('devices/M/half', 'half', 2)
    raw.send(publish('devices/M/state', 'telemetry', 1, true), half)
    await raw.next('pubrec')
    raw.socket.destroy()
    await raw.closed
    for (let n = 0; n < 30; n++) {
      service.send(publish('devices/M/commands/x', `order ${n}`, n % 2 === 0 ? 1 : 2))
      await service.next(n % 2 === 0 ? 'puback' : 'pubrec')
    }
    await broker.revoke(m)
    t.ok(await broker.store.incomingGetPacket({ id: 'M' }, half))
    await broker.mqtt.purge(['M', 'nobody'])
    await t.rejects(broker.store.incomingGetPacket({ id: 'M' }, half))
    const heir = await broker.enroll('M')
    const newcomer = await openRaw(broker, heir)
    const { sessionPresent } = await newcomer.connect({ clientId: 'M', clean: false })
    t.equal(sessionPresent, false)
    await newcomer.ping()
    t.same(newcomer.received, [], 'a new device with the old client id gets no old message')
    t.same(await broker.store.outgoingStream({ id: 'M' }).toArray(), [])
    await subscribe(newcomer, 'devices/M/#')
    t.match(await newcomer.next('publish'), { topic: 'devices/M/state', retain: true })
    newcomer.socket.destroy()
    service.socket.destroy()
  },
)

t.test('every client of a service loses its session in a purge', async (t) => {
  const broker = await open(t)
  const service = await broker.enroll('backend', { kind: 'service' })
  const raw = await openRaw(broker, service)
  await raw.connect({ clientId: 'backend:a', clean: false })
  await subscribe(raw, 'devices/#')
  raw.socket.destroy()
  await raw.closed
  await broker.mqtt.purge(['backend'])
  t.same(await broker.store.subscriptionsByClient({ id: 'backend:a' }), [])
})

t.test('a PUBREL after the revocation releases nothing', async (t) => {
  const broker = await open(t)
  const [m, backend] = [await broker.enroll('M'), await broker.enroll('backend', { kind: 'service' })]
  const service = await enter(broker, backend)
  await subscribe(service, 'devices/#', 2)
  const raw = await enter(broker, m, false)
  // The decision falls between the storing of the message and its routing.
  const [connection] = broker.sessions.select({ kind: 'device', id: 'M' })
  if (connection === undefined) return t.fail('not indexed')
  const store = broker.store.incomingStorePacket.bind(broker.store)
  broker.store.incomingStorePacket = async (client, packet) => {
    await store(client, packet)
    connection.refused = 'revoked'
  }
  raw.send({ ...publish('devices/M/up', 'evil', 2), messageId: 5 }, { cmd: 'pubrel', messageId: 5 })
  await raw.closed
  await service.ping()
  t.notOk(service.octets.includes('evil'))
  await t.rejects(broker.store.incomingGetPacket({ id: 'M' }, { messageId: 5 }), 'and it is not kept')
  service.socket.destroy()
})

t.test('a session ends with its certificate', async (t) => {
  const broker = await open(t)
  const m = await broker.enroll('M', { notAfter: Date.now() + 3_000 })
  const raw = await enter(broker, m)
  await raw.closed
  t.ok(Date.now() >= m.notAfter)
  t.match(await broker.report('disconnected'), { device: 'M', reason: 'expired' })
})

t.test('a session ends with the overlap, also one that began while it was open', async (t) => {
  const broker = await open(t, { limits: { rejudgeMs: 50 } })
  const m = await broker.enroll('M', { notAfter: Date.now() + 3_600_000 })
  const raw = await enter(broker, m)
  await broker.change(m, (record) => ({
    ...record,
    certificate: { ...record.certificate, supersededFrom: Date.now() + 100 },
  }))
  await raw.closed
  t.match(await broker.report('disconnected'), { device: 'M', reason: 'superseded' })
})

t.test('a certificate that is good for years does not overflow the timer', async (t) => {
  const broker = await open(t)
  const m = await broker.enroll('M', { notAfter: Date.now() + 400 * 86_400_000 })
  const raw = await enter(broker, m)
  const { reads } = broker.replica
  for (let n = 0; n < 20; n++) await raw.ping()
  t.equal(broker.replica.reads, reads, 'nor is it judged again and again')
  t.equal(raw.socket.destroyed, false)
  raw.socket.destroy()
})

t.test('a replica that cannot be read ends no open session', async (t) => {
  const broker = await open(t, { limits: { rejudgeMs: 10 } })
  const raw = await enter(broker, await broker.enroll('M'))
  broker.replica.failure = new Error('disk I/O error')
  const reads = broker.replica.reads
  await until(() => broker.replica.reads >= reads + 3)
  await raw.ping()
  raw.socket.destroy()
})

t.test('close of the broker ends every socket', async (t) => {
  const broker = await openTestBroker({ authority })
  const clients = [await enter(broker, await broker.enroll('A')), await openRaw(broker, {})]
  await broker.close()
  await Promise.all(clients.map(({ closed }) => closed))
  t.equal(broker.sessions.count(), 0)
})
