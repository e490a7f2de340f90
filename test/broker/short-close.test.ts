/** A client that leaves nothing is gone in one turn; of any other one nothing is touched, and the long way is taken. */
import t from 'tap'
import type { MqttClient } from '../../broker/mqtt/mqtt-client.ts'
import { closeShort } from '../../broker/mqtt/short-close.ts'
import { openTestBroker, until } from '../support/broker.ts'
import { openRaw } from '../support/mqtt-clients.ts'
import { testAuthority } from '../support/pki.ts'

/** What Aedes has of a client that is connected, and what has been done with it. */
function clientOf(different: object = {}) {
  const done: string[] = []
  const conn = { listenerCount: () => 0, destroy: () => void done.push('destroyed') }
  const state = {
    closed: false,
    connected: true,
    clean: true,
    will: null,
    subscriptions: Object.create(null),
  }
  const timers = { _paused: false, _keepaliveTimer: null, _drainTimer: null }
  const client = { conn, ...state, ...timers, ...different }
  const deps = {
    broker: { unregisterClient: () => void done.push('unregistered') },
    store: { cleanIncoming: async () => void done.push('half-received messages forgotten') },
  }
  const before = { ...client }
  closeShort(deps, client as unknown as MqttClient) // as much of it as is looked at
  return { client, before, done }
}

t.test(
  'a clean session without anything is closed, out of the register, and its socket destroyed',
  async (t) => {
    const { client, done } = clientOf()
    t.match(client, { closed: true, connected: false, _paused: true })
    t.strictSame(done, ['unregistered', 'half-received messages forgotten', 'destroyed'])
  },
)

const REASONS = {
  'a client that is closed already': { closed: true },
  'a client that is not connected yet': { connected: false },
  'a session that is kept': { clean: false },
  'a client with a will': { will: { topic: 'x' } },
  'a client with a subscription': { subscriptions: { 'devices/dev-1/#': { qos: 0 } } },
  'a client that Aedes gives time to read': { _drainTimer: {} },
  'a client for which a writer waits': { conn: { listenerCount: () => 1, destroy() {} } },
}
for (const [who, different] of Object.entries(REASONS)) {
  t.test(`${who} is left to the long way, untouched`, async (t) => {
    const { client, before, done } = clientOf(different)
    t.strictSame(client, before)
    t.strictSame(done, [])
  })
}

t.test('a client that has said nothing and hangs up is out of the register, and is told of', async (t) => {
  const authority = await testAuthority()
  t.teardown(() => authority.remove())
  const broker = await openTestBroker({ authority })
  t.teardown(() => broker.close())
  const raw = await openRaw(broker, await broker.enroll('dev-1'))
  t.equal((await raw.connect({ clientId: 'dev-1' })).returnCode, 0)
  t.strictSame(broker.mqtt.registered(), { ids: ['dev-1'], counted: 1 })
  raw.socket.end()
  t.match(await broker.report('disconnected'), { device: 'dev-1', reason: 'lost' })
  await until(() => broker.mqtt.registered().counted === 0)
  t.strictSame(broker.mqtt.registered(), { ids: [], counted: 0 })
  t.equal(broker.sessions.count(), 0)
})
