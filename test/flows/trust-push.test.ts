import { X509Certificate } from 'node:crypto'
import { readFileSync } from 'node:fs'
import { join } from 'node:path'
import type { MqttClient } from 'mqtt'
import t, { type Test } from 'tap'
import { isDeviceId } from '#shared/identity/device'
import { readTrust, type TrustRecord, trustTopic } from '#shared/trust-bundle'
import { systemClock } from '../../device-sim/clock.ts'
import { Credentials } from '../../device-sim/credential.ts'
import { Device } from '../../device-sim/device.ts'
import { openEnrollClient } from '../../device-sim/enroll-client.ts'
import { openLink } from '../../device-sim/mqtt-link.ts'
import { hearingTrust } from '../../device-sim/trust-news.ts'
import { enrollDevice, type RunningEnrollment, startEnrollment } from '../support/enrollment.ts'
import { connectAs, invitedBroker, runBroker, type TestBrokerProcess } from '../support/running-broker.ts'

/** Bundles that a client hears, in order; the time limit of the test is its deadline. */
function bundlesOf(client: MqttClient, device: string) {
  const waiting: ((bundle: TrustRecord) => void)[] = []
  const heard: TrustRecord[] = []
  client.on('message', (topic, payload) => {
    const bundle = topic === trustTopic(device) ? readTrust(payload) : null
    if (bundle === null) return
    const first = waiting.shift()
    if (first) first(bundle)
    else heard.push(bundle)
  })
  return {
    next: () =>
      new Promise<TrustRecord>((resolve) => {
        const first = heard.shift()
        if (first) resolve(first)
        else waiting.push(resolve)
      }),
    heard,
  }
}

t.test('devices that are connected hear of a rollover at once, the others when they connect', async (t) => {
  const service = await startEnrollment(t)
  const { admin } = service
  const broker = await runBroker(t, await invitedBroker(service, 'north'))
  const [awake, asleep] = [
    await enrollDevice(service, { id: 'awake' }),
    await enrollDevice(service, { id: 'asleep' }),
  ]
  const client = await connectAs(service, broker, awake)
  const bundles = bundlesOf(client, 'awake')
  await client.subscribeAsync('devices/awake/muster/#', { qos: 1 })

  await admin.startRollover({ root: true })
  const published = await bundles.next()
  const { roots, links } = service.deps.authority.bundle
  t.strictSame(published, { version: 2, roots, links }, 'both roots, and what links them')
  t.equal(roots.length, 2)
  t.equal(links.length, 2)

  const late = await connectAs(service, broker, asleep)
  const lateBundles = bundlesOf(late, 'asleep')
  await late.subscribeAsync('devices/asleep/muster/#', { qos: 1 })
  t.strictSame(await lateBundles.next(), published)

  await admin.abortRollover()
  t.match(await bundles.next(), { version: 3, roots: [roots[0]], links: [] })
  t.match(await lateBundles.next(), { version: 3 })
  t.match(await admin.rolloverStatus(), { rollover: { state: 'aborted' } })
  await Promise.all([client.endAsync(true), late.endAsync(true)])

  await broker.stop()
  const again = await runBroker(t, ['--data', join(service.data, 'north'), '--port', '0'])
  const third = await connectAs(service, again, awake)
  const fromDisk = bundlesOf(third, 'awake')
  await third.subscribeAsync('devices/awake/muster/#', { qos: 1 })
  t.match(await fromDisk.next(), { version: 3 }, 'after a restart of the broker, too')
  await third.endAsync(true)
})

t.test('before the first rollover there is nothing to tell', async (t) => {
  const service = await startEnrollment(t)
  const broker = await runBroker(t, await invitedBroker(service, 'north'))
  const client = await connectAs(service, broker, await enrollDevice(service, { id: 'd1' }))
  const topics: string[] = []
  const heard = new Promise<void>((resolve) =>
    client.on('message', (topic) => {
      topics.push(topic)
      if (topic === 'devices/d1/end') resolve()
    }),
  )
  await client.subscribeAsync('devices/d1/#', { qos: 1 })
  await client.publishAsync('devices/d1/end', '', { qos: 1 })
  await heard
  t.strictSame(topics, ['devices/d1/muster/renewal', 'devices/d1/end'])
  await client.endAsync(true)
})

/** A simulated device that listens to what the broker says of the bundle. */
function simulated(
  t: Test,
  of: {
    service: RunningEnrollment
    broker: TestBrokerProcess
    id: string
    heard(): void
    enrollment?: string
  },
) {
  const { service, broker, id } = of
  if (!isDeviceId(id)) throw new TypeError(id)
  const signal = AbortSignal.timeout(60_000)
  const enrollClient = openEnrollClient({
    ...{ clock: systemClock, random: Math.random, signal, patienceMs: 0 },
    url: of.enrollment ?? service.whereabouts.enrollment,
  })
  const device: Device = new Device(id, {
    credentials: Credentials.open(join(service.data, id)),
    deps: {
      broker: broker.url,
      ca: service.root,
      clock: systemClock,
      random: Math.random,
      enrollClient,
      openLink: hearingTrust(openLink, async (_, bundle) => {
        await device.heardTrust(bundle)
        of.heard()
      }),
      reached: () => {},
    },
  })
  t.teardown(() => device.stop())
  return { device, stored: () => JSON.parse(readFileSync(join(service.data, id, 'trust.json'), 'utf8')) }
}

t.test('a simulated device applies the bundle durably, and the plane sees that it has it', async (t) => {
  const service = await startEnrollment(t)
  const { admin } = service
  const broker = await runBroker(t, await invitedBroker(service, 'north'))
  const { promise, resolve } = Promise.withResolvers<void>()
  const { device, stored } = simulated(t, { service, broker, id: 'sim-1', heard: resolve })
  await device.enroll((await admin.createToken({ batch: 'lab', uses: 1 })).token)
  await device.connect(AbortSignal.timeout(30_000))
  await admin.startRollover({ root: true })
  await promise
  const { version, roots } = stored()
  t.equal(version, 2)
  t.strictSame(roots, [...service.deps.authority.bundle.roots])
  t.match(await admin.rolloverStatus(), { adoption: { devices: 1, adopted: 1, waiting: [] } })
  t.match(await admin.cutOverRollover(), { state: 'cut-over' }, 'without any renewal in between')
})

t.test('a device that reaches the broker only has the new root all the same', async (t) => {
  const service = await startEnrollment(t)
  const { admin } = service
  const broker = await runBroker(t, await invitedBroker(service, 'north'))
  const first = Promise.withResolvers<void>()
  const home = simulated(t, { service, broker, id: 'sim-1', heard: () => {} })
  await home.device.enroll((await admin.createToken({ batch: 'lab', uses: 1 })).token)
  await home.device.stop()
  const cutOff = simulated(t, {
    ...{ service, broker, id: 'sim-1', heard: first.resolve },
    enrollment: 'https://localhost:1',
  })
  await cutOff.device.connect(AbortSignal.timeout(30_000))
  await admin.startRollover({ root: true })
  await first.promise
  t.strictSame(cutOff.stored().roots, [...service.deps.authority.bundle.roots])
  t.equal(cutOff.stored().version, 1, 'it has not been counted, and asks again')
  t.match(await admin.rolloverStatus(), { adoption: { adopted: 0, waiting: ['sim-1'] } })
  const { subject } = new X509Certificate(cutOff.stored().roots[1])
  t.equal(subject, new X509Certificate(service.root).subject)
})
