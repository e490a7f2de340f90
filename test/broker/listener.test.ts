import t from 'tap'
import { openTestBroker } from '../support/broker.ts'
import { connectDevice, refusalOf } from '../support/mqtt-clients.ts'
import { testAuthority } from '../support/pki.ts'

const authority = await testAuthority()
t.teardown(() => authority.remove())

t.test('an enrolled device connects, publishes to itself and is reported', async (t) => {
  const broker = await openTestBroker({ authority })
  t.teardown(() => broker.close())
  const device = await broker.enroll('dev-1')
  const client = await connectDevice(broker, device)
  const received = new Promise((resolve) =>
    client.once('message', (_, payload) => resolve(payload.toString())),
  )
  await client.subscribeAsync('devices/dev-1/#', { qos: 1 })
  await client.publishAsync('devices/dev-1/up', 'hello', { qos: 1 })
  t.equal(await received, 'hello')
  t.match(await broker.report('connected'), {
    device: 'dev-1',
    fingerprint: device.fingerprint,
    resumed: false,
  })
  t.equal(broker.sessions.count(), 1)
  await client.endAsync()
  t.match(await broker.report('disconnected'), { device: 'dev-1', reason: 'client' })
  t.equal(broker.sessions.count(), 0)
  t.same(broker.mqtt.registered(), { ids: [], counted: 0 })
})

t.test('a client without a certificate is told that it is not authorized', async (t) => {
  const broker = await openTestBroker({ authority })
  t.teardown(() => broker.close())
  t.equal(refusalOf(await connectDevice(broker, {}).catch((error) => error)), 5)
  t.match(await broker.report('refused'), { code: 'R-NOCERT', evidence: { address: '127.0.0.1' } })
})
