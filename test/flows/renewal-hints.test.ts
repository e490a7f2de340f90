import type { MqttClient } from 'mqtt'
import t from 'tap'
import { type RenewalHint, readHint } from '#shared/renewal-hint'
import { enrollDevice, newRequest, startEnrollment } from '../support/enrollment.ts'
import { connectAs, disconnected, invitedBroker, runBroker } from '../support/running-broker.ts'

const DAY_MS = 86_400_000

/** Subscribes, and gives the first message that comes; the time limit of the test is its deadline. */
async function heard(client: MqttClient, filter: string) {
  const { promise, resolve } = Promise.withResolvers<{
    topic: string
    retain: boolean
    hint: RenewalHint | null
  }>()
  client.once('message', (topic, payload, { retain }) => resolve({ topic, retain, hint: readHint(payload) }))
  await client.subscribeAsync(filter, { qos: 1 })
  return promise
}

t.test('a device reads its window in the reply, over JSON, in the EST header and over MQTT', async (t) => {
  const service = await startEnrollment(t)
  const broker = await runBroker(t, await invitedBroker(service, 'north'))
  const device = await enrollDevice(service, { id: 'd1' })
  const { status, text } = await service.client(device).send('GET', '/v1/renewal')
  t.equal(status, 200)
  const window = JSON.parse(text)
  const { renewAfter, renewBefore, notAfter } = window
  t.match(window, { device: 'd1', serial: device.serial })
  const life = notAfter - Date.now()
  const share = (at: number) => (at - Date.now()) / life
  t.ok(share(renewAfter) > 0.65 && share(renewAfter) < 0.78, `from ${share(renewAfter)}`)
  t.ok(Math.abs(share(renewBefore) - 0.9) < 0.01, `to ${share(renewBefore)}`)
  t.match(await service.admin.showDevice('d1'), { certificates: [{ renewAfter, renewBefore }] })

  const client = await connectAs(service, broker, device)
  const { topic, retain, hint } = await heard(client, 'devices/d1/#')
  t.equal(topic, 'devices/d1/muster/renewal')
  t.ok(retain)
  t.strictSame(hint, { serial: device.serial, renewAfter, renewBefore, notAfter })
  await client.endAsync(true)

  const { token } = await service.admin.createToken({ batch: 'lab', uses: 1 })
  const { der } = await newRequest('d2')
  const headers = {
    authorization: `Basic ${Buffer.from(`x:${token}`).toString('base64')}`,
    'content-type': 'application/pkcs10',
  }
  const est = await service
    .client()
    .send('POST', '/.well-known/est/simpleenroll', { headers, body: der.toString('base64') })
  const [, after = '', before = ''] =
    /^after=(\S+), before=(\S+)$/.exec(est.rawHeaders['Muster-Renewal'] ?? '') ?? []
  const detail = await service.admin.showDevice('d2')
  const shown = detail.certificates.map((one) => [one.renewAfter, one.renewBefore])
  t.strictSame(shown, [[Date.parse(after), Date.parse(before)]])
})

t.test('a renewal has a window of its own, and the answer to a repeated request the same', async (t) => {
  const service = await startEnrollment(t)
  const device = await enrollDevice(service, { id: 'd1' })
  const json = { csr: (await newRequest('d1')).csr }
  const renew = async () =>
    JSON.parse((await service.client(device).send('POST', '/v1/renew', { json })).text)
  const first = await renew()
  t.ok(first.renewAfter > Date.now() + 19 * DAY_MS && first.renewAfter < first.renewBefore)
  t.strictSame(await renew(), first)
})

t.test('nobody but the broker publishes below muster, whatever the policy says', async (t) => {
  const service = await startEnrollment(t)
  const broker = await runBroker(t, await invitedBroker(service, 'north'))
  await service.admin.createFleet({ id: 'loose', policy: { publish: ['#'], subscribe: ['#'] } })
  await service.admin.createBatch({ id: 'loose-1', fleet: 'loose' })
  const topics = [
    'devices/d1/muster/renewal',
    'devices/d1/muster/trust',
    'devices/loose2/muster/trust',
    'devices/d2/muster',
    'devices/d2/muster/x',
    'devices//muster/renewal',
  ]
  for (const [index, topic] of topics.entries()) {
    const device = await enrollDevice(service, { id: `loose${index}`, batch: 'loose-1' })
    const client = await connectAs(service, broker, device)
    client.publish(topic, '{}', { retain: true })
    await disconnected(client)
  }
  const device = await enrollDevice(service, { id: 'd1', batch: 'loose-1' })
  const client = await connectAs(service, broker, device)
  await client.publishAsync('devices/d1/musters', 'x', { qos: 1 })
  await client.publishAsync('devices/muster/renewal', 'x', { qos: 1 })
  t.ok(client.connected, 'only that one level is reserved')
  const { hint } = await heard(client, 'devices/d1/muster/#')
  t.equal(hint?.serial, device.serial, 'what the device hears is the broker')
  await client.endAsync(true)
})
