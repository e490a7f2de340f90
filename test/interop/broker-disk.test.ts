import { dirname, join } from 'node:path'
import t from 'tap'
import { openSqliteForReading } from '#shared/sqlite'
import { startBrokerProcess } from '../support/broker-process.ts'
import { breakDisk } from '../support/disk-faults.ts'
import { enrollDevice, startEnrollment } from '../support/enrollment.ts'
import { connectAs, disconnected, invitedBroker } from '../support/running-broker.ts'
import { stateFileOf } from '../support/state-files.ts'

t.setTimeout(240_000)

/** Replica of a broker that was started with these options. */
function replicaOf([, data = '']: readonly string[]): string {
  return join(data, 'broker', 'broker.db')
}

t.test('a broker that is killed while changes arrive comes back with all of them, each time', async (t) => {
  const service = await startEnrollment(t)
  let args = await invitedBroker(service, 'broker-1')
  const [, data = ''] = args
  for (let kill = 1; kill <= 3; kill++) {
    const broker = await startBrokerProcess(t, args)
    args = ['--data', data, '--port', '0'] // the invitation is spent
    const devices = Array.from({ length: 20 }, (_, at) => `kill-${kill}-${at}`)
    const arriving = Promise.all(devices.map((id) => enrollDevice(service, { id })))
    if (kill % 2 === 0) await arriving
    else await new Promise(setImmediate)
    await broker.kill()
    const [known, held] = await arriving
    if (known === undefined || held === undefined) throw new Error('no devices')
    const plan = await service.admin.proposePlan({ action: 'hold', devices: [held.id] })
    await service.admin.applyPlan(plan.id, 1)
    const again = await startBrokerProcess(t, args)
    const client = await connectAs(service, again, known)
    await t.rejects(connectAs(service, again, held), 'held while no broker was there')
    await client.endAsync(true)
    await again.kill()
  }
})

t.test('a broker whose disk is full admits whom it knows, enforces holds, says so, and heals', async (t) => {
  const service = await startEnrollment(t)
  const args = await invitedBroker(service, 'broker-1')
  const broker = await startBrokerProcess(t, args)
  const known = await enrollDevice(service, { id: 'known-1' })
  const held = await enrollDevice(service, { id: 'held-1' })
  const before = await connectAs(service, broker, held)
  const state = stateFileOf(replicaOf(args))
  const heal = await breakDisk(t, broker.process.pid ?? 0, {
    calls: 'pwrite64',
    error: 'ENOSPC',
    paths: [state, `${state}-wal`],
  })
  const client = await connectAs(service, broker, known)
  const plan = await service.admin.proposePlan({ action: 'hold', scope: { kind: 'device', id: held.id } })
  await service.admin.applyPlan(plan.id, 1)
  await disconnected(before)
  await t.rejects(connectAs(service, broker, held), 'the hold is in force from memory')
  const [line] = (await service.admin.receipt(plan.id, 0)).brokers
  t.not(line?.state, 'applied', 'and not said to be applied')
  await client.endAsync(true)
  await heal()
  const receipt = await service.admin.receipt(plan.id, 30_000)
  t.match(receipt, { brokers: [{ state: 'applied' }] }, 'without a restart')
  const later = await enrollDevice(service, { id: 'later-1' })
  await (await connectAs(service, broker, later)).endAsync(true)
})

t.test(
  'what a hold takes from a disk that is full goes once there is room, and nobody says before that it has',
  async (t) => {
    const service = await startEnrollment(t)
    const args = await invitedBroker(service, 'broker-1')
    const broker = await startBrokerProcess(t, args)
    const held = await enrollDevice(service, { id: 'held-2' })
    const before = await connectAs(service, broker, held, { clean: false })
    await before.subscribeAsync('devices/held-2/commands/#', { qos: 1 })
    await before.publishAsync('devices/held-2/state', 'on', { qos: 1, retain: true })
    const path = join(dirname(replicaOf(args)), 'sessions.db')
    const rows = () => {
      const store = openSqliteForReading(path, 1_000)
      const count = (table: string) =>
        store.prepare<[], number>(`SELECT count(*) FROM ${table}`).pluck().get()
      const counts = [count('sessions'), count("retained WHERE owner = 'held-2'")]
      store.close()
      return counts
    }
    const heal = await breakDisk(t, broker.process.pid ?? 0, {
      calls: 'pwrite64',
      error: 'ENOSPC',
      paths: [path, `${path}-wal`],
    })
    const plan = await service.admin.proposePlan({
      ...{ action: 'hold', scope: { kind: 'device', id: held.id }, purgeRetained: true },
    })
    await service.admin.applyPlan(plan.id, 1)
    await disconnected(before)
    const line = async () => (await service.admin.receipt(plan.id, 0)).brokers[0]
    const late = AbortSignal.timeout(60_000)
    const alarm = async () => (await service.admin.status()).brokers[0]?.fault
    while ((await alarm()) === undefined && !late.aborted);
    t.match(await alarm(), /^Cannot forget what holds and revocations take: .*full; fix: make room/)
    t.match(await line(), { state: 'applied', purging: true }, 'closed, and not forgotten')
    t.strictSame(rows(), [1, 1])
    await heal()
    t.match(await service.admin.receipt(plan.id, 60_000), { brokers: [{ state: 'applied', purging: false }] })
    t.strictSame(rows(), [0, 0], 'without a restart')
    while ((await alarm()) !== undefined && !late.aborted);
    t.equal(await alarm(), undefined)
  },
)
