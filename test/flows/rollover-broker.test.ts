import { EventEmitter, once } from 'node:events'
import t from 'tap'
import { readTrust, trustTopic } from '#shared/trust-bundle'
import { enrollDevice, startEnrollment } from '../support/enrollment.ts'
import { connectAs, disconnected, invitedBroker, runBroker } from '../support/running-broker.ts'

t.test('while the root is replaced, who is connected stays, and both generations come in', async (t) => {
  const service = await startEnrollment(t)
  const { admin } = service
  const broker = await runBroker(t, await invitedBroker(service, 'edge-1'))
  const old = await enrollDevice(service, { id: 'old' })
  const connected = await connectAs(service, broker, old)
  t.teardown(() => connected.end(true))

  await admin.startRollover({ root: true })
  await admin.cutOverRollover({ threshold: 0 })
  const young = await enrollDevice(service, { id: 'young' })
  const { certificates } = await admin.showDevice('young')
  t.not(certificates[0]?.issuer, (await admin.showDevice('old')).certificates[0]?.issuer)
  const second = await connectAs(service, broker, young)
  t.teardown(() => second.end(true))
  t.ok(connected.connected, 'the open connection stays')
  await connected.subscribeAsync('devices/old/news')
  const heard = new Promise((resolve) => connected.once('message', (_, payload) => resolve(String(payload))))
  await connected.publishAsync('devices/old/news', 'still here', { qos: 1 })
  t.equal(await heard, 'still here')
  await connected.endAsync()
  const again = await connectAs(service, broker, old)
  t.ok(again.connected, 'the old certificate is good until the rollover is finished')
  await again.endAsync()

  t.match(await admin.abortRollover(), { state: 'aborting' })
  t.ok(second.connected, 'what the new CA signed stays good after an abort')
  await second.endAsync()
  const third = await connectAs(service, broker, young)
  await third.endAsync()
  const late = await enrollDevice(service, { id: 'late' })
  const fourth = await connectAs(service, broker, late)
  t.ok(fourth.connected)
  await fourth.endAsync()
})

t.test('a CA that is no longer trusted opens no door', async (t) => {
  const service = await startEnrollment(t)
  const { admin, deps } = service
  const broker = await runBroker(t, await invitedBroker(service, 'edge-1'))
  const device = await enrollDevice(service, { id: 'lamp' })
  const client = await connectAs(service, broker, device)
  t.teardown(() => client.end(true))
  const { id, pem } = deps.authority.device
  await admin.startRollover()
  await deps.registry.recordIssuer({ id, pem, trusted: false }, { now: Date.now(), by: 'operator:test' })
  await disconnected(client)
  await t.rejects(connectAs(service, broker, device), { code: 5 })
})

t.test('one session lives through every step of a rollover, and hears of each new bundle', async (t) => {
  const service = await startEnrollment(t)
  const { admin, deps } = service
  const broker = await runBroker(t, await invitedBroker(service, 'edge-1'))
  const old = await connectAs(service, broker, await enrollDevice(service, { id: 'old' }))
  t.teardown(() => old.end(true))
  const { id } = await admin.startRollover({ root: true })
  await admin.cutOverRollover({ threshold: 0 })
  const client = await connectAs(service, broker, await enrollDevice(service, { id: 'young' }))
  t.teardown(() => client.end(true))
  let closed = 0
  for (const one of [old, client]) one.on('close', () => closed++)
  const versions: (number | undefined)[] = []
  const heard = new EventEmitter()
  client.on('message', (topic, payload) => {
    if (topic !== trustTopic('young')) return
    versions.push(readTrust(payload)?.version)
    heard.emit('bundle')
  })
  const first = once(heard, 'bundle')
  await client.subscribeAsync('devices/young/#', { qos: 1 })
  await first
  await admin.abortRollover()
  await admin.cutOverRollover({ threshold: 0 })
  for (const one of [old, client])
    await one.publishAsync(`devices/${one.options.clientId}/telemetry`, 'x', { qos: 1 })
  t.equal(closed, 0, 'start, cut-over, abort and cut-over again')

  // a month later, when the certificates of the old CA have ended
  const later = Date.now() + 31 * 86_400_000
  const third = once(heard, 'bundle')
  await deps.registry.finishRollover(id, { now: later, by: 'operator:test' })
  await deps.authority.follow(() => deps.registry.listRollovers(), Date.now())
  await third
  await disconnected(old)
  await client.publishAsync('devices/young/telemetry', 'still here', { qos: 1 })
  t.ok(client.connected)
  t.equal(closed, 1, 'only who had a certificate of the CA that is gone')
  t.strictSame(versions, [2, 3])
})
