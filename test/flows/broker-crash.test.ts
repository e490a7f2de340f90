import { connect, type MqttClient } from 'mqtt'
import t from 'tap'
import { enrollService, killUnderLoad } from '../support/broker-kills.ts'
import { startBrokerProcess } from '../support/broker-process.ts'
import { enrollDevice, type RunningEnrollment, startEnrollment } from '../support/enrollment.ts'
import { type ClientPair, invitedBroker } from '../support/running-broker.ts'

t.test('a broker that is killed under load loses no message that it has acknowledged', async (t) => {
  const { acknowledged, arrived } = await killUnderLoad(t, 3)
  t.ok(acknowledged.size > 100, `${acknowledged.size} acknowledged`)
  t.strictSame(
    [...acknowledged].filter((number) => !arrived.has(number)),
    [],
  )
})

/** A client as people configure it: it keeps its session and comes back by itself. */
function stay(service: RunningEnrollment, port: number, who: ClientPair): MqttClient {
  const client = connect({
    protocol: 'mqtts',
    host: 'localhost',
    port,
    ca: service.root,
    cert: who.certificate + service.deps.authority.device.pem,
    key: who.key,
    clientId: who.id,
    clean: false,
    reconnectPeriod: 100,
  })
  client.on('error', () => {}) // refused while the broker is away
  return client
}

t.test('commands at QoS 2 arrive exactly once, although the broker is killed among them', async (t) => {
  const service = await startEnrollment(t)
  const args = await invitedBroker(service, 'broker-1')
  let broker = await startBrokerProcess(t, args)
  const { port } = broker
  const lamp = stay(service, port, await enrollDevice(service, { id: 'lamp' }))
  const backend = stay(service, port, await enrollService(service, 'backend'))
  t.teardown(() => Promise.all([lamp.endAsync(true), backend.endAsync(true)]))
  const arrived: string[] = []
  const all = Promise.withResolvers<void>()
  lamp.on('message', (topic, payload) => {
    arrived.push(`${topic} ${payload}`)
    if (arrived.length >= 60) all.resolve()
  })
  await lamp.subscribeAsync('devices/lamp/commands/#', { qos: 2 })
  await lamp.publishAsync('devices/lamp/state', 'on', { qos: 1, retain: true })
  const sent: Promise<unknown>[] = []
  for (let n = 0; n < 60; n++) {
    sent.push(backend.publishAsync('devices/lamp/commands/step', `${n}`, { qos: 2 }))
    if (n % 20 !== 10) continue
    await Promise.race(sent.slice(-5)) // the rest is somewhere between PUBLISH and PUBCOMP, on both sides
    await broker.kill()
    broker = await startBrokerProcess(t, [...args.slice(0, -1), `${port}`])
  }
  await Promise.all([...sent, all.promise])
  t.strictSame(
    arrived.toSorted(),
    Array.from({ length: 60 }, (_, n) => `devices/lamp/commands/step ${n}`).toSorted(),
  )
  const state = new Promise<string>((resolve) => backend.on('message', (_, payload) => resolve(`${payload}`)))
  await backend.subscribeAsync('devices/lamp/state', { qos: 1 })
  t.equal(await state, 'on', 'what was retained is there')
})
