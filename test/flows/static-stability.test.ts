import { randomBytes } from 'node:crypto'
import { PassThrough } from 'node:stream'
import t, { type Test } from 'tap'
import { type AdminClient, openAdminClient, readOperatorProfile } from '#shared/admin-client'
import type { Receipt } from '#shared/api'
import { openLog } from '#shared/log'
import { Lifecycle } from '#shared/service'
import { startPlane } from '../../enrollment/plane.ts'
import { until } from '../support/broker.ts'
import { startBrokerProcess } from '../support/broker-process.ts'
import { enrollDevice, type RunningEnrollment, startEnrollment } from '../support/enrollment.ts'
import { testIdentity } from '../support/pki.ts'
import { connectAs, disconnected, invitedBroker, runBroker } from '../support/running-broker.ts'

const NOT_AUTHORIZED = { code: 5 }
const HOUR_MS = 3_600_000

/** Starts a stopped service again, with its data and on its ports; returns its operator. */
async function startAgain(t: Test, service: RunningEnrollment): Promise<AdminClient> {
  const log = openLog('enrollment', 'silent', new PassThrough().resume())
  const lifecycle = new Lifecycle(log)
  t.teardown(() => lifecycle.stop())
  await startPlane(service.config, { log, lifecycle, now: Date.now, random: randomBytes, reached: () => {} })
  const admin = openAdminClient(readOperatorProfile(service.whereabouts.operatorProfile))
  t.teardown(() => admin.close())
  return admin
}

/** Holds the device and waits for the receipt; the broker has delivered all that it had to say before. */
async function hold(admin: AdminClient, device: string): Promise<Receipt> {
  const { id, counts } = await admin.proposePlan({ action: 'hold', scope: { kind: 'device', id: device } })
  await admin.applyPlan(id, counts.devices)
  return admin.receipt(id, 10_000)
}

t.test('a certificate that was enrolled milliseconds ago connects at once', async (t) => {
  const service = await startEnrollment(t)
  const broker = await runBroker(t, await invitedBroker(service, 'broker-1'))
  for (const id of ['lamp', 'door', 'gate']) {
    const client = await connectAs(service, broker, await enrollDevice(service, { id }))
    t.ok(client.connected)
    await client.endAsync()
  }
})

t.test(
  'a broker that was killed serves known devices while enrollment is down, and catches up',
  async (t) => {
    const service = await startEnrollment(t)
    const args = await invitedBroker(service, 'broker-1')
    const first = await startBrokerProcess(t, args)
    const [lamp, door] = await Promise.all(['lamp', 'door'].map((id) => enrollDevice(service, { id })))
    if (!lamp || !door) throw new TypeError('two were enrolled')
    await (await connectAs(service, first, lamp)).endAsync()
    await (await connectAs(service, first, door)).endAsync()
    await first.kill()
    await service.stop()

    const second = await startBrokerProcess(t, args)
    const client = await connectAs(service, second, lamp)
    t.ok(client.connected, 'the replica is enough')
    const stranger = await testIdentity(service.deps.authority, 'stranger')
    const pair = { id: 'stranger', certificate: stranger.pem, key: stranger.keyPem }
    await t.rejects(connectAs(service, second, pair), NOT_AUTHORIZED, 'a chain that verifies is not enough')

    const admin = await startAgain(t, service)
    t.match(await hold(admin, 'lamp'), { sessionsClosed: 1, brokers: [{ state: 'applied' }] })
    await disconnected(client)
    await t.rejects(connectAs(service, second, lamp), NOT_AUTHORIZED)
    t.match(await admin.explain(stranger.fingerprint), {
      lastRefusals: [{ code: 'R-UNRECORDED', by: 'broker-1' }],
    })
  },
)

t.test(
  'a broker that has not heard the registry for too long keeps its sessions and takes no new ones',
  async (t) => {
    const service = await startEnrollment(t)
    const clock = { offsetMs: 0 }
    const broker = await runBroker(
      t,
      [...(await invitedBroker(service, 'broker-1')), '--max-staleness', '24h'],
      clock,
    )
    const lamp = await enrollDevice(service, { id: 'lamp' })
    const door = await enrollDevice(service, { id: 'door' })
    const client = await connectAs(service, broker, lamp)
    await (await connectAs(service, broker, door)).endAsync()
    await service.stop()

    clock.offsetMs = 23 * HOUR_MS
    await (await connectAs(service, broker, door)).endAsync()
    clock.offsetMs = 25 * HOUR_MS
    await t.rejects(connectAs(service, broker, door), NOT_AUTHORIZED)
    t.ok(client.connected)

    const admin = await startAgain(t, service)
    t.match(await hold(admin, 'lamp'), { sessionsClosed: 1 })
    t.match((await admin.explain('door')).lastRefusals[0], { code: 'R-STALE', by: 'broker-1' })
    await (await connectAs(service, broker, door)).endAsync()
  },
)

t.test(
  'a broker whose clock was ahead when it heard the registry does not trust that once it is right',
  async (t) => {
    const service = await startEnrollment(t)
    const args = await invitedBroker(service, 'broker-1')
    const ahead = { offsetMs: 0 }
    const first = await runBroker(t, args, ahead)
    const lamp = await enrollDevice(service, { id: 'lamp' })
    await (await connectAs(service, first, lamp)).endAsync()
    ahead.offsetMs = 48 * HOUR_MS
    await enrollDevice(service, { id: 'door' }) // its change is stored with the time of the broker's clock
    await until(() => first.replica.device('door') !== null)
    await first.stop()
    await service.stop()

    const second = await runBroker(t, args)
    await t.rejects(connectAs(service, second, lamp), NOT_AUTHORIZED, 'when it was heard is not known')
    await startAgain(t, service)
    await until(() => second.replica.silentMs(Date.now()) < HOUR_MS)
    await (await connectAs(service, second, lamp)).endAsync()
  },
)
