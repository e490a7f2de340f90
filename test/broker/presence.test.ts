/** Which devices are connected, as services hear it over MQTT. */
import { EventEmitter, once } from 'node:events'
import type { MqttClient } from 'mqtt'
import t, { type Test } from 'tap'
import { Presence, type PresenceMessage } from '../../broker/mqtt/presence.ts'
import type { Connection } from '../../broker/sessions.ts'
import { enrollDevice, newRequest, startEnrollment } from '../support/enrollment.ts'
import { connectAs, disconnected, invitedBroker, runBroker } from '../support/running-broker.ts'

interface Told {
  readonly topic: string
  readonly state: string | null
  readonly sequence: number
  readonly connection: string
  readonly serial: string
  readonly reason?: string
}

/** What arrives below `muster/presence`, as it comes; `next` waits for one more. */
function listen(client: MqttClient) {
  const heard: Told[] = []
  const arrivals = new EventEmitter()
  client.on('message', (topic, payload) => {
    heard.push({ topic, state: null, ...(payload.length === 0 ? {} : JSON.parse(payload.toString())) })
    arrivals.emit('told')
  })
  return async (count: number) => {
    const signal = AbortSignal.timeout(20_000)
    while (heard.length < count) await once(arrivals, 'told', { signal })
    return heard
  }
}

async function plane(t: Test) {
  const service = await startEnrollment(t)
  const args = [...(await invitedBroker(service, 'edge')), '--presence']
  const { key, csr } = await newRequest()
  const { certificate } = await service.admin.createService({ id: 'watcher', csr })
  return { service, args, watcher: { id: 'watcher', certificate, key } }
}

t.test(
  'a service hears who is connected, who comes and who goes and why; a device hears and says nothing there',
  async (t) => {
    const { service, args, watcher } = await plane(t)
    const broker = await runBroker(t, args)
    await service.admin.createFleet({ id: 'open', policy: { publish: ['#'], subscribe: ['#'] } })
    await service.admin.createBatch({ id: 'open', fleet: 'open' })
    const [one, two] = [
      await enrollDevice(service, { id: 'seen-1', batch: 'open' }),
      await enrollDevice(service, { id: 'seen-2', batch: 'open' }),
    ]
    const early = await connectAs(service, broker, one)
    const overheard: string[] = []
    const marked = Promise.withResolvers<void>()
    early.on('message', (topic) => {
      overheard.push(topic)
      if (topic === 'devices/seen-1/mark') marked.resolve()
    })
    await early.subscribeAsync('#', { qos: 1 }) // the policy of its fleet grants it
    const reader = await connectAs(service, broker, watcher)
    const told = listen(reader)
    await reader.subscribeAsync('muster/presence/#', { qos: 1 })
    t.match(await told(1), [
      { topic: 'muster/presence/seen-1', state: 'connected', serial: one.serial, connection: /^c\d+$/ },
    ])

    const late = await connectAs(service, broker, two)
    await told(2)
    for (const filter of ['muster/presence/seen-1', 'muster/#', 'muster/+/seen-1', 'muster']) {
      t.match(await late.subscribeAsync(filter).catch((error: Error) => error), Error, `${filter} is denied`)
    }
    const scope = { kind: 'device', id: 'seen-2' } as const
    const plan = await service.admin.proposePlan({ action: 'hold', scope, reason: 'unspecified' })
    await service.admin.applyPlan(plan.id, plan.counts.devices)
    await disconnected(late)
    const [, came, went, ended] = await told(4)
    t.match(came, { topic: 'muster/presence/seen-2', state: 'connected' })
    t.match(went, {
      topic: 'muster/presence/seen-2',
      state: 'disconnected',
      reason: 'held',
      connection: came?.connection ?? '',
    })
    t.ok(Number(went?.sequence) > Number(came?.sequence), 'the sequence rises')
    t.match(ended, { topic: 'muster/presence/seen-2', state: null }, 'and nothing stays retained of it')

    await early.publishAsync('devices/seen-1/mark', 'x', { qos: 1 })
    await marked.promise
    t.notOk(
      overheard.some((topic) => topic.startsWith('muster')),
      'a device hears nothing of it',
    )
    early.publish('muster/presence/seen-2', '{"state":"connected"}', { retain: true, qos: 1 })
    await disconnected(early)
    const after = await told(6)
    t.match(after.at(-2), { topic: 'muster/presence/seen-1', state: 'disconnected', reason: 'policy_pub' })
    t.notOk(broker.mqtt.registered().ids.includes('seen-1'), 'who publishes there is cut off')
    await reader.endAsync(true)
  },
)

t.test(
  'what a broker that was killed has left is ended at its next start, and sequences go on rising',
  async (t) => {
    const left = { device: 'd1', sequence: 5_000, at: 1, state: 'connected', connection: 'c1', serial: 'ab' }
    const sent: PresenceMessage[] = []
    const presence = new Presence({
      sessions: { select: () => [{ id: 'c9', kind: 'device', serial: 'cd' } as Connection] }, // what it reads of one
      retained: {
        matching: () => [
          {
            cmd: 'publish',
            topic: 'muster/presence/d1',
            payload: JSON.stringify(left),
            qos: 1,
            retain: true,
          },
          { cmd: 'publish', topic: 'muster/presence/d2', payload: 'not JSON', qos: 1, retain: true },
        ],
      },
      publish: (message) => sent.push(message),
      failed: (error) => t.fail(String(error)),
      now: () => 1_000,
    })
    presence.start()
    const seen = { fingerprint: 'ab', device: 'd1', at: 1_000 }
    presence.saw({ ...seen, type: 'connected', connection: 'c9', address: '', resumed: false })
    presence.saw({ ...seen, type: 'disconnected', connection: 'c1', reason: 'lost' })
    while (sent.length < 5) await new Promise(setImmediate)
    const payloads = sent.map(({ payload }) => (payload === '' ? null : JSON.parse(payload)))
    t.match(payloads, [
      { device: 'd1', state: 'disconnected', reason: 'broker-restarted', sequence: 5_001 },
      null,
      { device: 'd2', state: 'disconnected', sequence: 5_002 },
      null,
      { device: 'd1', state: 'connected', connection: 'c9', sequence: 5_003 },
    ])
    t.strictSame(
      sent.map(({ retain }) => retain),
      [false, true, false, true, true],
    )
  },
)

t.test('the end of a connection that another one replaced does not end the other', async (t) => {
  const sent: PresenceMessage[] = []
  const connections = ['c1', 'c2'].map((id) => ({ id, kind: 'device', serial: id }) as Connection) // as above
  const presence = new Presence({
    sessions: { select: () => connections },
    retained: { matching: () => [] },
    publish: (message) => sent.push(message),
    failed: (error) => t.fail(String(error)),
    now: () => 1_000,
  })
  const seen = { fingerprint: 'ab', device: 'd1', at: 1_000 }
  presence.saw({ ...seen, type: 'connected', connection: 'c1', address: '', resumed: false })
  presence.saw({ ...seen, type: 'connected', connection: 'c2', address: '', resumed: false })
  presence.saw({ ...seen, type: 'disconnected', connection: 'c1', reason: 'duplicate' })
  while (sent.length < 3) await new Promise(setImmediate)
  t.match(sent.at(-1), { retain: false, payload: /"disconnected".*"duplicate"/ })
  presence.saw({ ...seen, type: 'disconnected', connection: 'c2', reason: 'client' })
  while (sent.length < 5) await new Promise(setImmediate)
  t.match(sent.at(-1), { retain: true, payload: '' })
})
