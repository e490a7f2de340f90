import { once } from 'node:events'
import { join } from 'node:path'
import { PassThrough } from 'node:stream'
import Database from 'better-sqlite3'
import t from 'tap'
import type { StatusView } from '#shared/api'
import { openLog } from '#shared/log'
import { readMessages } from '../../broker/replica/feed-lines.ts'
import { Hearing } from '../../broker/replica/hearing.ts'
import { openReplica } from '../../broker/replica/replica.ts'
import { statusText } from '../../operator/commands/status.ts'
import { enrollDevice, type RunningEnrollment, startEnrollment } from '../support/enrollment.ts'
import { connectAs, disconnected, invitedBroker, runBroker } from '../support/running-broker.ts'
import { stateFileOf } from '../support/state-files.ts'

const UNKNOWN = { kind: 'quarantine', device: 'lamp' }

/** Asks until the broker is as it is awaited; a broker that cannot follow asks again within 5 s. */
async function brokerOf(
  { admin }: RunningEnrollment,
  isAwaited: (broker: StatusView['brokers'][number]) => boolean,
): Promise<StatusView> {
  const late = AbortSignal.timeout(60_000)
  while (!late.aborted) {
    const status = await admin.status()
    const [broker] = status.brokers
    if (broker && isAwaited(broker)) return status
  }
  throw new Error('the broker does not become what is awaited')
}

t.test(
  'a registry that is newer than its broker: nothing is skipped, and everybody says what to do',
  async (t) => {
    const service = await startEnrollment(t)
    const broker = await runBroker(t, await invitedBroker(service, 'north'))
    const lamp = await enrollDevice(service, { id: 'lamp' })
    const client = await connectAs(service, broker, lamp)
    const db = new Database(service.config.layout.registry)
    t.teardown(() => db.close())
    const insert = db.prepare('INSERT INTO changes (at, change) VALUES (?, ?)')
    const { lastInsertRowid } = insert.run(Date.now(), JSON.stringify(UNKNOWN))
    const { id, counts } = await service.admin.proposePlan({ action: 'hold', devices: ['lamp'] })
    await service.admin.applyPlan(id, counts.devices)

    await broker.says('does not know changes of the kind')
    const stuck = await brokerOf(service, ({ fault }) => fault !== undefined)
    t.match(stuck.brokers, [{ id: 'north', fault: /kind "quarantine"; fix: update this broker/ }])
    t.ok((stuck.brokers[0]?.behind ?? 0) > 0)
    t.match(
      statusText(stuck, Date.now()),
      /^ALARM {2}broker north: .*kind "quarantine"; fix: update this broker$/m,
    )
    t.match(await service.admin.listBrokers(), [{ fault: /quarantine/ }])
    t.match(await service.admin.showPlan(id), {
      receipt: { brokers: [{ broker: 'north', state: /pending|down/ }] },
    })
    t.ok(client.connected, 'what came after it is not in force, and the receipt says so')

    await brokerOf(service, ({ state }) => state === 'down') // and it asks again, now and then
    const complaints = broker.logged.filter(
      (line) => line.includes('change stream failed') && !line.includes('"level":20'),
    )
    t.equal(complaints.length, 1, 'once, as an error')
    t.match(complaints, [/"level":50/])

    const update = db.prepare('UPDATE changes SET change = ? WHERE position = ?')
    update.run(JSON.stringify({ kind: 'forgotten', device: 'nobody' }), lastInsertRowid) // as good as a newer broker
    await disconnected(client)
    const well = await brokerOf(service, ({ fault, state }) => fault === undefined && state === 'up')
    t.notMatch(statusText(well, Date.now()), /ALARM {2}broker/)
  },
)

t.test('a CA that a broker cannot use is an alarm, until it is taken away', async (t) => {
  const service = await startEnrollment(t)
  const broker = await runBroker(t, await invitedBroker(service, 'north'))
  const db = new Database(service.config.layout.registry)
  t.teardown(() => db.close())
  const change = (trusted: boolean) => {
    const issuer = { id: 'ab', pem: 'no certificate\u001b[2J', trusted }
    db.prepare('INSERT INTO changes (at, change) VALUES (?, ?)').run(
      Date.now(),
      JSON.stringify({ kind: 'issuer', issuer }),
    )
    service.deps.changed.ring()
  }
  change(true)
  await broker.says('TLS material refused')
  // It follows all the same.
  const faulty = await brokerOf(service, ({ fault, behind }) => fault !== undefined && behind === 0)
  t.match(statusText(faulty, Date.now()), /^ALARM {2}broker north: Cannot use what it was given: [ -~]+$/m)
  t.ok(service.logged.some((line) => line.includes('a broker cannot use')))
  change(false)
  await brokerOf(service, ({ fault }) => fault === undefined)
})

t.test('what came before a message that is not understood counts', async (t) => {
  const alive = { type: 'alive', epoch: 'e', position: 1, at: 1 }
  const lines = [alive, alive, { type: 'change', position: 2, at: 1, change: UNKNOWN }, alive]
  const body = async function* () {
    yield Buffer.from(lines.map((line) => `${JSON.stringify(line)}\n`).join(''))
  }
  const read: unknown[] = []
  const reading = async () => {
    for await (const messages of readMessages(body())) read.push(...messages)
  }
  await t.rejects(reading(), { code: 'invalid_request', message: /update this broker/ })
  t.strictSame(read, [alive, alive])
})

t.test(
  'a policy with a part that the broker does not know is not skipped, nor taken for another',
  async (t) => {
    const rules = { publish: ['#'], subscribe: [] }
    const fleet = (policy: unknown) => ({ kind: 'fleet', fleet: { id: 'lab', policy, policyEpoch: 2 } })
    const lamp = { id: 'lamp', kind: 'device', fleet: 'lab', batch: null, state: 'active' }
    for (const [change, says] of [
      [
        fleet({ ...rules, limits: { subscriptions: 2, naps: 3 } }),
        /"limits\.naps" in the policy of fleet "lab"; fix: update/,
      ],
      [fleet({ ...rules, naps: {} }), /"naps" in the policy of fleet "lab"; fix: update this broker/],
      [
        { kind: 'device', device: { ...lamp, policy: { ...rules, limits: { queueBytes: 2 ** 40 } } } },
        /"limits\.queueBytes" in the policy of device "lamp"; fix: update this broker/,
      ],
      [fleet({ ...rules, limits: { ['x'.repeat(9_000)]: 1 } }), /^.{1,200}$/s],
      [fleet(null), /does not know the policy of fleet "lab"; fix: update this broker/],
      [{ kind: 'fleet', fleet: 7 }, /not in the schema/],
      [{ kind: '__proto__' }, /does not know changes of the kind/],
    ] as const) {
      const body = async function* () {
        yield Buffer.from(`${JSON.stringify({ type: 'change', position: 2, at: 1, change })}\n`)
      }
      await t.rejects(readMessages(body()).next(), { code: 'invalid_request', message: says })
    }
  },
)

t.test('a broker says no more than a line about what it does not understand', async (t) => {
  const service = await startEnrollment(t)
  for (const kind of ['x'.repeat(5_000), 'a\nb\u001b[2J\u0000', '"', '']) {
    const body = async function* () {
      yield Buffer.from(`${JSON.stringify({ type: 'change', position: 2, at: 1, change: { kind } })}\n`)
    }
    await t.rejects(readMessages(body()).next(), { code: 'invalid_request', message: /^.{1,200}$/s })
  }
  service.deps.brokerFaults.heard('north', 'once')
  service.deps.brokerFaults.heard('north', 'once')
  t.equal(service.logged.filter((line) => line.includes('a broker cannot follow')).length, 1)
})

t.test('the alarm says whether the registry is silent, or cannot be followed', async (t) => {
  for (const [fault, says] of [
    [null, 'the registry is silent'],
    ['it says too much', 'the registry cannot be followed'],
  ] as const) {
    const lines = new PassThrough()
    const hearing = new Hearing({
      replica: { heard: () => {}, lastHeardAt: () => 0 },
      now: Date.now,
      log: openLog('broker', 'error', lines),
      fault: () => fault,
      alarmMs: 1,
      storeEveryMs: 0,
    })
    const keepsAlive = setInterval(() => {}, 1_000) // the alarm itself does not
    hearing.start()
    const [line] = await once(lines, 'data')
    clearInterval(keepsAlive)
    hearing.stop()
    t.match(String(line), says)
  }
})

t.test('a disk that refuses the time when the registry was heard does not cost the stream', async (t) => {
  const path = join(t.testdir(), 'broker.db')
  const replica = openReplica(path)
  t.teardown(() => replica.close())
  const lines = new PassThrough()
  const hearing = new Hearing({
    ...{ replica, now: () => 7, log: openLog('broker', 'warn', lines), fault: () => null },
    ...{ alarmMs: 60_000, storeEveryMs: 0 },
  })
  const other = new Database(stateFileOf(path))
  other.exec('BEGIN IMMEDIATE')
  hearing.heard()
  t.match(String(lines.read()), /cannot store when the registry was heard/)
  t.equal(replica.lastHeardAt(), 7, 'it counts all the same')
  other.close()
  hearing.heard()
  t.equal(lines.read(), null)
})
