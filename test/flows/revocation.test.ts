import { copyFileSync, readdirSync, rmSync } from 'node:fs'
import { join } from 'node:path'
import t from 'tap'
import type { PlanRequest, Receipt } from '#shared/api'
import { openSqliteForReading } from '#shared/sqlite'
import { until } from '../support/broker.ts'
import { enrollDevice, startEnrollment } from '../support/enrollment.ts'
import { connectAs, disconnected, invitedBroker, runBroker } from '../support/running-broker.ts'

/** What mqtt.js rejects with when the broker says "not authorized" (MQTT 3.1.1 section 3.2.2.3). */
const NOT_AUTHORIZED = { code: 5 }

t.test('a revocation, from the operator to the socket', async (t) => {
  const service = await startEnrollment(t)
  const args = await invitedBroker(service, 'broker-1')
  const broker = await runBroker(t, args)
  const { admin } = service

  /** Applies the plan and waits until every broker has answered. */
  const apply = async (request: PlanRequest): Promise<{ id: string; receipt: Receipt }> => {
    const { id, counts } = await admin.proposePlan(request)
    await admin.applyPlan(id, counts.devices)
    return { id, receipt: await admin.receipt(id, 10_000) }
  }

  t.test('a held device is disconnected and refused, and returns with the same certificate', async (t) => {
    const lamp = await enrollDevice(service, { id: 'lamp' })
    const door = await enrollDevice(service, { id: 'door' })
    const client = await connectAs(service, broker, lamp)
    const other = await connectAs(service, broker, door)
    const { id, receipt } = await apply({ action: 'hold', scope: { kind: 'device', id: 'lamp' } })
    await disconnected(client)
    t.match(receipt, {
      sessionsClosed: 1,
      survivors: [],
      brokers: [{ broker: 'broker-1', state: 'applied' }],
    })
    await t.rejects(connectAs(service, broker, lamp), NOT_AUTHORIZED)
    t.ok(other.connected, 'nobody else notices')

    const { position } = (await admin.undoPlan(id)) && (await admin.status()).cursor
    await caughtUp(position)
    const again = await connectAs(service, broker, lamp)
    t.ok(again.connected)
    await Promise.all([again.endAsync(), other.endAsync()])
  })

  const caughtUp = async (position: number) => {
    const deadline = Date.now() + 10_000
    while ((broker.replica.cursor()?.position ?? 0) < position) {
      if (Date.now() > deadline) throw new Error(`The broker has not come to position ${position}`)
      await new Promise(setImmediate)
    }
  }

  t.test(
    'a device that is away loses its session with the hold, one that is not meant keeps it',
    async (t) => {
      for (const id of ['away', 'spared']) {
        const client = await connectAs(service, broker, await enrollDevice(service, { id }), { clean: false })
        await client.subscribeAsync(`devices/${id}/commands/#`, { qos: 1 })
        await client.endAsync()
      }
      const sessions = openSqliteForReading(join(args[1] ?? '', 'broker', 'sessions.db'), 1_000)
      t.teardown(() => sessions.close())
      const clients = sessions.prepare<[], string>('SELECT client FROM sessions ORDER BY client').pluck()
      t.strictSame(clients.all(), ['away', 'spared'])
      const { receipt } = await apply({ action: 'hold', scope: { kind: 'device', id: 'away' } })
      t.equal(receipt.sessionsClosed, 0)
      await until(() => clients.all().length < 2)
      t.strictSame(clients.all(), ['spared'])
    },
  )

  t.test('once the receipt says applied, no connection is accepted any more', async (t) => {
    const siren = await enrollDevice(service, { id: 'siren' })
    let isApplied = false
    let attempts = 0
    const accepted: boolean[] = []
    const hammer = async () => {
      for (let after = 0; after < 3; ) {
        const wasApplied = isApplied
        if (wasApplied) after += 1
        attempts += 1
        try {
          const client = await connectAs(service, broker, siren)
          accepted.push(wasApplied)
          client.end(true)
        } catch {
          // refused, or taken over by another attempt
        }
      }
    }
    const hammering = Promise.all(Array.from({ length: 4 }, hammer))
    const { receipt } = await apply({ action: 'revoke', scope: { kind: 'device', id: 'siren' }, undoMs: 0 })
    isApplied = true
    t.same(
      broker.sessions.select({ kind: 'device', id: 'siren' }).filter(({ refused }) => refused === null),
      [],
    )
    await hammering
    t.same(receipt.survivors, [])
    t.ok(attempts > 12)
    t.notOk(accepted.includes(true))
  })

  t.test('a batch is stopped as one: every session of it closes, no other', async (t) => {
    const ids = Array.from({ length: 12 }, (_, index) => `bulb-${index}`)
    const bulbs = await Promise.all(ids.map((id) => enrollDevice(service, { id, batch: 'bulbs' })))
    const clients = await Promise.all(bulbs.map((bulb) => connectAs(service, broker, bulb)))
    const gate = await connectAs(service, broker, await enrollDevice(service, { id: 'gate' }))
    const { receipt } = await apply({ action: 'revoke', scope: { kind: 'batch', id: 'bulbs' } })
    await Promise.all(clients.map(disconnected))
    t.match(receipt, { sessionsClosed: 12, survivors: [] })
    for (const bulb of bulbs.slice(0, 3)) await t.rejects(connectAs(service, broker, bulb), NOT_AUTHORIZED)
    t.ok(gate.connected)
    await gate.endAsync()
  })

  const retained = () => {
    const store = openSqliteForReading(join(args[1] ?? '', 'broker', 'sessions.db'), 1_000)
    const topics = store
      .prepare<[], string>('SELECT topic FROM retained WHERE owner IS NOT NULL ORDER BY topic')
      .pluck()
      .all()
    store.close()
    return topics
  }
  const retain = async (id: string, batch = 'lab') => {
    const device = await enrollDevice(service, { id, batch })
    const client = await connectAs(service, broker, device)
    await client.publishAsync(`devices/${id}/state`, 'on', { qos: 1, retain: true })
    return { device, client }
  }

  t.test(
    'retained messages stay, but for those of a plan that takes them, of its devices that are away too',
    async (t) => {
      for (const id of ['horn-1', 'horn-2']) {
        const { client } = await retain(id, 'horns')
        if (id === 'horn-2') await client.endAsync()
      }
      await (await retain('flag')).client.endAsync()
      await (await retain('tram')).client.endAsync()
      const all = ['flag', 'horn-1', 'horn-2', 'tram'].map((id) => `devices/${id}/state`)
      await apply({ action: 'hold', scope: { kind: 'device', id: 'flag' } })
      t.strictSame(retained(), all, 'telemetry that others go on reading')
      await apply({ action: 'hold', scope: { kind: 'batch', id: 'horns' }, purgeRetained: true })
      await until(() => retained().length === 2)
      t.strictSame(retained(), ['devices/flag/state', 'devices/tram/state'])
      await apply({ action: 'revoke', devices: ['flag', 'lamp'], undoMs: 0, purgeRetained: true })
      await until(() => retained().length === 1)
      t.strictSame(retained(), ['devices/tram/state'])
    },
  )

  t.test('a broker that was down is named, and applies the hold before it lets anybody in', async (t) => {
    const { device: bell, client } = await retain('bell')
    await client.endAsync()
    await broker.stop()
    const [store, before] = ['sessions.db', 'before.db'].map((name) => join(args[1] ?? '', 'broker', name))
    copyFileSync(store ?? '', before ?? '')
    const { id, counts } = await admin.proposePlan({ action: 'hold', devices: ['bell'], purgeRetained: true })
    await admin.applyPlan(id, counts.devices)
    t.match(await admin.receipt(id, 0), { brokers: [{ broker: 'broker-1', state: 'down' }] })

    const back = await runBroker(t, args)
    await t.rejects(connectAs(service, back, bell), NOT_AUTHORIZED)
    t.match(await admin.receipt(id, 10_000), { brokers: [{ state: 'applied', sessionsClosed: 0 }] })
    t.notOk(retained().includes('devices/bell/state'), 'and forgets what it has retained, as the plan says')

    await back.stop()
    copyFileSync(before ?? '', store ?? '') // as it would be after a crash between the hold and the purge
    t.ok(retained().includes('devices/bell/state'))
    await runBroker(t, args)
    t.notOk(retained().includes('devices/bell/state'), 'at the next start at the latest')
  })

  t.test(
    'what a hold took that came and went while a broker was away is gone when it has the state anew',
    async (t) => {
      const directory = join(args[1] ?? '', 'broker')
      const first = await runBroker(t, args)
      const keep = async (id: string) => {
        const device = await enrollDevice(service, { id })
        const client = await connectAs(service, first, device, { clean: false })
        await client.subscribeAsync(`devices/${id}/commands/#`, { qos: 1 })
        await client.publishAsync(`devices/${id}/state`, 'before', { qos: 1, retain: true })
        return { device, client }
      }
      const crane = await keep('crane')
      const winch = await keep('winch')
      await Promise.all([crane.client.endAsync(), winch.client.endAsync()])
      await first.stop()
      const { id, counts } = await admin.proposePlan({
        ...{ action: 'hold', devices: ['crane'], purgeRetained: true },
      })
      await admin.applyPlan(id, counts.devices)
      await admin.undoPlan(id)
      // No change is left to follow: the whole state has to be told.
      for (const name of readdirSync(directory)) {
        if (name.startsWith('broker.db')) rmSync(join(directory, name))
      }
      const back = await runBroker(t, args)
      await until(() => !sessionsOf(directory).includes('crane'))
      t.ok(sessionsOf(directory).includes('winch'))
      await until(() => !retained().includes('devices/crane/state'))
      t.ok(retained().includes('devices/winch/state'))
      // What it retains from now on is its own, whatever the broker is told again.
      const again = await connectAs(service, back, crane.device)
      await again.publishAsync('devices/crane/state', 'after', { qos: 1, retain: true })
      await again.endAsync()
      await back.stop()
      for (const name of readdirSync(directory)) {
        if (name.startsWith('broker.db')) rmSync(join(directory, name))
      }
      await (await runBroker(t, args)).stop()
      t.ok(retained().includes('devices/crane/state'))
      t.ok(sessionsOf(directory).includes('winch'))
    },
  )
})

/** Client ids of the sessions that a broker keeps. */
function sessionsOf(directory: string): string[] {
  const store = openSqliteForReading(join(directory, 'sessions.db'), 1_000)
  const clients = store.prepare<[], string>('SELECT client FROM sessions ORDER BY client').pluck().all()
  store.close()
  return clients
}
