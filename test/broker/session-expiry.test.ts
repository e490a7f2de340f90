/** Sessions whose clients stay away: when they end, when they must not, and what is left of them. */
import { fork } from 'node:child_process'
import { cpSync } from 'node:fs'
import { join } from 'node:path'
import { PassThrough } from 'node:stream'
import Database from 'better-sqlite3'
import t, { type Test } from 'tap'
import type { FleetRecord } from '#shared/feed'
import { openLog } from '#shared/log'
import type { PolicyLimits } from '#shared/policy/caps'
import { addReadings, openMeter } from '../../broker/metrics.ts'
import { expireSessions, keepExpiring } from '../../broker/store/session-expiry.ts'
import type { SessionStore } from '../../broker/store/session-store.ts'
import { STORE_MIGRATIONS } from '../../broker/store/store-schema.ts'
import { until } from '../support/broker.ts'
import { cut, type DurableBroker, openDurableBroker } from '../support/durable-broker.ts'
import { EXPIRY_S, fill, kept, openStore, takeUp } from '../support/expiry-store.ts'
import { enter, openRaw, publish, type RawClient, subscribe } from '../support/mqtt-clients.ts'
import { type TestIdentity, testAuthority } from '../support/pki.ts'
import fc from '../support/properties.ts'

const authority = await testAuthority()
t.teardown(() => authority.remove())

const HOUR_MS = 3_600_000
const DAY_MS = 24 * HOUR_MS
const log = openLog('test', 'silent', new PassThrough().resume())

/** A broker whose time passes as it is told. */
async function open(t: Test, options: { expireEveryMs?: number } = {}) {
  const clock = { ms: 0, wallMs: Date.now() }
  const path = join(t.testdir(), 'sessions.db')
  const times = { elapsed: () => clock.ms, now: () => clock.wallMs }
  const broker = await openDurableBroker(t, { authority, path, ...times, ...options })
  return { broker, clock }
}
function limited(limits: PolicyLimits) {
  return { publish: ['devices/${device.id}/#'], subscribe: ['devices/${device.id}/#'], limits }
}
/** It subscribes, and goes. */
async function visit(broker: DurableBroker, who: TestIdentity): Promise<void> {
  const raw = await enter(broker, who, false)
  await subscribe(raw, `devices/${who.id}/commands/#`)
  await leave(broker, raw, who)
}
async function leave(broker: DurableBroker, raw: RawClient, { id = '' }: TestIdentity): Promise<void> {
  await cut(raw)
  await until(() => !broker.mqtt.registered().ids.includes(id))
}
async function order(broker: DurableBroker, to: string, from: TestIdentity): Promise<void> {
  const raw = await enter(broker, from)
  const packet = publish(`devices/${to}/commands/x`, 'order', 1)
  raw.send(packet)
  await raw.next('puback', ({ messageId }) => messageId === packet.messageId)
  await leave(broker, raw, from)
}
/** Comes back; true when its session was there. */
async function isPresent(broker: DurableBroker, who: TestIdentity): Promise<boolean> {
  const raw = await openRaw(broker, who)
  const { sessionPresent } = await raw.connect({ clientId: who.id ?? '', clean: false })
  await leave(broker, raw, who)
  return sessionPresent
}
function rowsOf(broker: DurableBroker, client: string): Record<string, number> {
  const db = broker.database()
  const tables = ['sessions', 'subscriptions', 'queue', 'incoming']
  const count = (table: string) =>
    db.prepare<[string], number>(`SELECT count(*) FROM ${table} WHERE client = ?`).pluck().get(client) ?? -1
  const rows = Object.fromEntries(tables.map((table) => [table, count(table)]))
  db.close()
  return rows
}

t.test(
  'a session ends when its client stays away for longer than its policy allows, and it is said why',
  async (t) => {
    const { broker, clock } = await open(t)
    const brief = await broker.enroll('brief', {
      fleet: 'brief',
      policy: limited({ sessionExpirySeconds: 86_400 }),
    })
    const usual = await broker.enroll('usual')
    const always = await broker.enroll('always', {
      fleet: 'always',
      policy: limited({ sessionExpirySeconds: 0 }),
    })
    const backend = await broker.enroll('backend', { kind: 'service' })
    for (const one of [brief, usual, always]) {
      await visit(broker, one)
      await order(broker, one.id ?? '', backend)
    }
    clock.ms += DAY_MS
    await broker.mqtt.expire()
    t.equal(broker.store.sessions.count, 3, 'as long as it may stay away, it may')
    clock.ms += 1_000
    await broker.mqtt.expire()
    t.same(rowsOf(broker, 'brief'), { sessions: 0, subscriptions: 0, queue: 0, incoming: 0 })
    t.same(rowsOf(broker, 'usual'), { sessions: 1, subscriptions: 1, queue: 1, incoming: 0 })
    const evidence = { limit: 'sessionExpirySeconds', allowed: 86_400, client: 'brief', messages: 1 }
    t.match(broker.refusals('R-QUOTA'), [
      { device: 'brief', evidence: { ...evidence, rule: 'fleet limits.sessionExpirySeconds' } },
    ])
    t.match(broker.logged(), /session has ended: its client stayed away/)
    t.match(await metricsOf(broker), /muster_broker_expired_sessions_total 1\n/)
    t.match(await metricsOf(broker), /muster_broker_kept_sessions 2\n/)
    clock.ms += 90 * DAY_MS
    await broker.mqtt.expire()
    t.same(rowsOf(broker, 'usual'), { sessions: 0, subscriptions: 0, queue: 0, incoming: 0 })
    t.match(broker.refusals('R-QUOTA')[1]?.evidence, { limit: 'sessionExpirySeconds', allowed: 7_776_000 })
    t.same(await isPresent(broker, brief), false)
    t.same(await isPresent(broker, always), true, '0 is for ever')
    t.equal(broker.store.sessions.queues.totals().messages, 1, 'its message is all that is left')
  },
)
async function metricsOf({ store, mqtt, sessions }: DurableBroker): Promise<string> {
  const meter = openMeter()
  const replica = { cursor: () => null, silentMs: () => 0, spool: { size: () => 0 } as never } // not read here
  const purger = { counts: () => ({ waiting: 0, failed: 0 }) }
  const rest = { certificate: () => authority.rootPem, tlsFaults: () => 0, now: Date.now, purger }
  addReadings(meter, { store, mqtt, sessions, replica, ...rest })
  return meter.metrics.text()
}

t.test('a session whose client is connected never ends, nor one that is taken up just then', async (t) => {
  const { broker, clock } = await open(t)
  const [there, back] = [await broker.enroll('there'), await broker.enroll('back')]
  const raw = await enter(broker, there, false)
  await visit(broker, back)
  clock.ms += 400 * DAY_MS
  const connecting = openRaw(broker, back)
  await broker.mqtt.expire()
  t.notOk(broker.store.sessions.get('back'), 'it came a moment too late')
  await cut(await connecting)
  for (let round = 0; round < 3; round++) {
    clock.ms += 400 * DAY_MS
    await broker.mqtt.expire()
  }
  t.ok(broker.store.sessions.get('there'))
  clock.ms += 400 * DAY_MS
  await leave(broker, raw, there)
  clock.ms += 90 * DAY_MS
  await broker.mqtt.expire()
  t.ok(broker.store.sessions.get('there'), 'it is away since it has gone, not since it came')

  takeUp(broker.store, 'half-way') // CONNECT was judged; the client is not registered yet
  await broker.mqtt.expire()
  t.ok(broker.store.sessions.get('half-way'))
})

t.test('how long a client has been away survives restarts, whatever the clock says meanwhile', async (t) => {
  const { broker, clock } = await open(t)
  const lamp = await broker.enroll('lamp', {
    fleet: 'lab',
    policy: limited({ sessionExpirySeconds: 36_000 }),
  })
  await visit(broker, lamp)
  let running = broker
  for (const wallMs of [0, Date.now() + 20_000 * DAY_MS, -1e12, Date.now()]) {
    clock.ms += 2.25 * HOUR_MS
    await running.mqtt.expire()
    clock.wallMs = wallMs
    running.replica.heardAt = wallMs // the registry is there
    await running.mqtt.expire()
    t.ok(running.store.sessions.get('lamp'), 'a clock that is wrong, or was, ends nothing')
    await running.close()
    clock.ms = wallMs // that of the machine begins anew, too
    running = await running.restart()
    running.replica.heardAt = wallMs
    await running.mqtt.expire()
    t.ok(running.store.sessions.get('lamp'), 'while the broker is down nobody is away')
  }
  clock.ms += HOUR_MS + 2_000
  await running.mqtt.expire()
  t.notOk(running.store.sessions.get('lamp'), 'ten hours, in five runs')
})

t.test('no session ends while nobody is taken in, nor by a policy that cannot be read', async (t) => {
  const { broker, clock } = await open(t)
  const lamp = await broker.enroll('lamp')
  await visit(broker, lamp)
  clock.ms += 89 * DAY_MS
  await broker.mqtt.expire()
  for (const heardAt of [null, clock.wallMs - 2 * DAY_MS]) {
    broker.replica.heardAt = heardAt // never, as when what was noted of it lies ahead of the clock; or not for two days
    clock.ms += 400 * DAY_MS
    await broker.mqtt.expire()
    t.ok(broker.store.sessions.get('lamp'), 'it could not come')
  }
  broker.replica.heardAt = clock.wallMs
  clock.ms += HOUR_MS
  await broker.mqtt.expire()
  t.ok(broker.store.sessions.get('lamp'), 'that time does not count afterwards')
  clock.ms += DAY_MS
  const { device } = broker.replica
  broker.replica.device = () => {
    throw new Error('disk I/O error')
  }
  await broker.mqtt.expire()
  t.ok(broker.store.sessions.get('lamp'), 'its policy may say that it stays')
  broker.replica.device = device
  await broker.mqtt.expire()
  t.notOk(broker.store.sessions.get('lamp'))
})

t.test('while a broker waits for its first state nobody is away', async (t) => {
  let ms = 0
  const store = openStore(join(t.testdir(), 'sessions.db'), () => ms)
  await fill(store, 'lamp', 1)
  ms += 2 * EXPIRY_S * 1_000
  const deps = { store, log, isConnected: () => false, expired: () => {} }
  keepExpiring(deps)() // from here on somebody may come
  await expireSessions(deps)
  t.ok(store.sessions.get('lamp'))
  ms += EXPIRY_S * 1_000 + 1
  await expireSessions(deps)
  t.notOk(store.sessions.get('lamp'))
  await store.destroy()
})

t.test('however short the limit is, nobody is away who was there within the last minute', async (t) => {
  const { broker, clock } = await open(t)
  const lamp = await broker.enroll('lamp', { fleet: 'lab', policy: limited({ sessionExpirySeconds: 1 }) })
  await visit(broker, lamp)
  clock.ms += 59_000
  await broker.mqtt.expire()
  t.ok(broker.store.sessions.get('lamp'))
  clock.ms += 1_000
  await broker.mqtt.expire()
  t.notOk(broker.store.sessions.get('lamp'))
})

t.test('a limit that a policy changes counts at the next look', async (t) => {
  const { broker, clock } = await open(t)
  const lamp = await broker.enroll('lamp', {
    fleet: 'lab',
    policy: limited({ sessionExpirySeconds: 86_400 }),
  })
  const setLimits = (limits: PolicyLimits) => {
    const record = broker.replica.records.get(lamp.fingerprint)
    if (record === undefined) throw new TypeError('not enrolled')
    const fleet: FleetRecord = { ...record.fleet, policy: limited(limits) }
    broker.replica.put({ ...record, device: { ...record.device }, fleet })
  }
  await visit(broker, lamp)
  setLimits({ sessionExpirySeconds: 2 * 86_400 })
  clock.ms += 1.5 * DAY_MS
  await broker.mqtt.expire()
  t.ok(broker.store.sessions.get('lamp'), 'longer than it was when it went')
  setLimits({ sessionExpirySeconds: 3_600 })
  await broker.mqtt.expire()
  t.notOk(broker.store.sessions.get('lamp'))
})

t.test('a broker looks at its sessions by itself, now and then', async (t) => {
  const { broker, clock } = await open(t, { expireEveryMs: 1 })
  const lamp = await broker.enroll('lamp')
  await visit(broker, lamp)
  clock.ms += 91 * DAY_MS
  await until(() => broker.store.sessions.expired === 1)
  await visit(broker, lamp)
  clock.ms += 91 * DAY_MS
  await until(() => broker.store.sessions.expired === 2)
  t.notOk(broker.store.sessions.get('lamp'))
})

t.test(
  'a session that cannot be deleted stays whole, and ends when the disk takes writes again',
  async (t) => {
    const { broker, clock } = await open(t)
    const [lamp, backend] = [await broker.enroll('lamp'), await broker.enroll('backend', { kind: 'service' })]
    await visit(broker, lamp)
    await order(broker, 'lamp', backend)
    clock.ms += 91 * DAY_MS
    const db = broker.database()
    db.exec(`CREATE TRIGGER broken BEFORE DELETE ON sessions BEGIN SELECT RAISE(ABORT, 'disk full'); END`)
    await broker.mqtt.expire()
    t.match(kept(broker.store, 'lamp'), { isThere: true, filters: 1, queue: 1 })
    t.equal(broker.store.sessions.expired, 0)
    t.same(broker.refusals(), [])
    db.exec('DROP TRIGGER broken')
    db.close()
    await broker.mqtt.expire()
    t.match(kept(broker.store, 'lamp'), { isThere: false, filters: 0, queue: 0 })
    t.equal(broker.store.sessions.expired, 1)
  },
)

t.test('thousands of sessions end some in each turn of the event loop, never all in one', async (t) => {
  let elapsedMs = 0
  const store = openStore(join(t.testdir(), 'sessions.db'), () => elapsedMs)
  t.teardown(() => store.destroy())
  for (let n = 0; n < 3_000; n++) takeUp(store, `away-${n}`)
  for (let n = 0; n < 3_000; n++) takeUp(store, `there-${n}`)
  await fill(store, 'full', 1_000)
  elapsedMs = (EXPIRY_S + 1) * 1_000
  const [ended, looked] = [[0], [0]] // of each turn
  let isOver = false
  const count = () => {
    ended.push(0)
    looked.push(0)
    if (!isOver) setImmediate(count)
  }
  const add = (counts: number[]) => counts.push((counts.pop() ?? 0) + 1)
  setImmediate(count)
  await expireSessions({
    store,
    log,
    isConnected(client) {
      add(looked)
      return client.startsWith('there-')
    },
    expired: () => add(ended),
  })
  isOver = true
  t.equal(store.sessions.count, 3_000)
  t.ok(Math.max(...looked) <= 200, `${Math.max(...looked)} in one turn`)
  t.ok(Math.max(...ended) <= 100, `${Math.max(...ended)} in one turn`)
  t.equal(store.sessions.expired, 3_001)
})

t.test('sessions of a version that did not count begin to be away with the update', async (t) => {
  const path = join(t.testdir(), 'sessions.db')
  const db = new Database(path)
  db.pragma('journal_mode = wal')
  db.exec(STORE_MIGRATIONS[0])
  db.exec(`INSERT INTO sessions VALUES ('lamp', 'lamp', 'device', 'lab', 'print')`)
  db.pragma('user_version = 1')
  db.close()
  let elapsedMs = 1e12
  const store = openStore(path, () => elapsedMs)
  t.teardown(() => store.destroy())
  const expire = () => expireSessions({ store, log, isConnected: () => false, expired: () => {} })
  elapsedMs += EXPIRY_S * 1_000
  await expire()
  t.ok(store.sessions.get('lamp'))
  elapsedMs += 1_000
  await expire()
  t.notOk(store.sessions.get('lamp'))
})

t.test(
  'a broker that is killed while sessions end has ended each of them wholly, and no other',
  async (t) => {
    const path = join(t.testdir(), 'sessions.db')
    const store = openStore(path, () => 0)
    const names = Array.from({ length: 400 }, (_, n) => `${n % 2 === 0 ? 'gone' : 'there'}-${n}`)
    for (const name of names) await fill(store, name, 3)
    await store.destroy()
    const victim = fork(join(import.meta.dirname, '..', 'support', 'expiry-victim.ts'), [path])
    const said = new Set<string>()
    await new Promise<void>((resolve) => {
      victim.on('message', (client) => {
        said.add(String(client))
        if (said.size === 60) victim.kill('SIGKILL')
      })
      victim.on('exit', () => resolve())
    })
    const left = openStore(path, () => 0)
    t.teardown(() => left.destroy())
    const whole = { isThere: true, filters: 1, queue: 3 }
    const nothing = { isThere: false, filters: 0, queue: 0 }
    for (const name of names) {
      const found = kept(left, name)
      if (name.startsWith('there')) t.same(found, whole, name)
      else t.same(found, said.has(name) || !found.isThere ? nothing : whole, name)
    }
    t.ok(said.size >= 60)
  },
)

type Step =
  | { readonly do: 'come' | 'go'; readonly client: string }
  | { readonly do: 'wait'; readonly hours: number }
  | { readonly do: 'look' | 'restart' | 'crash' }
const steps: fc.Arbitrary<Step> = fc.oneof(
  fc.record({ do: fc.constantFrom('come' as const, 'go' as const), client: fc.constantFrom('a', 'b', 'c') }),
  fc.record({ do: fc.constant('wait' as const), hours: fc.integer({ min: 0, max: 12 }) }),
  fc.record({ do: fc.constantFrom('look' as const, 'look' as const, 'restart' as const, 'crash' as const) }),
)

/** It was noted as away, and came back. */
const RETURNED: readonly Step[] = [
  { do: 'come', client: 'a' },
  { do: 'go', client: 'a' },
  { do: 'wait', hours: 6 },
  { do: 'look' },
  { do: 'come', client: 'a' },
  { do: 'crash' },
  { do: 'wait', hours: 6 },
  { do: 'look' },
]

/** What a session may be expected to do, told from the steps alone. */
interface Known {
  isThere: boolean
  /** Hours of the broker's life since its client was there. */
  away: number
  /** Runs that ended in that time: each may forget an hour. */
  ends: number
}

t.test(
  'however clients come and go and brokers end, no session ends too early, and none more than an hour a run too late',
  async (t) => {
    await fc.assert(
      fc.asyncProperty(fc.array(steps, { maxLength: 60 }), async (asked) => {
        await new Life(t).live(asked)
      }),
      { numRuns: 60, examples: [[RETURNED]] },
    )
    t.pass()
  },
)

class Life {
  readonly #directory: string
  readonly #known = new Map<string, Known>()
  #path: string
  #ms = 0
  #runs = 0
  #store: SessionStore

  constructor(t: Test) {
    this.#directory = t.testdir()
    this.#path = join(this.#directory, 'sessions.db')
    this.#store = this.#open()
  }

  async live(asked: readonly Step[]): Promise<void> {
    for (const step of asked) await this.#take(step)
    await this.#store.destroy()
  }

  #open(): SessionStore {
    return openStore(this.#path, () => this.#ms)
  }

  async #take(step: Step): Promise<void> {
    if (step.do === 'come') {
      takeUp(this.#store, step.client)
      this.#known.set(step.client, { isThere: true, away: 0, ends: 0 })
    } else if (step.do === 'go') {
      const known = this.#known.get(step.client)
      if (known?.isThere !== true) return
      known.isThere = false
      this.#store.sessions.left(step.client)
    } else if (step.do === 'wait') {
      this.#ms += step.hours * HOUR_MS
      for (const known of this.#known.values()) if (!known.isThere) known.away += step.hours
    } else if (step.do === 'look') await this.#look()
    else await this.#end(step.do)
  }

  async #look(): Promise<void> {
    await expireSessions({
      store: this.#store,
      log,
      isConnected: (client) => this.#known.get(client)?.isThere === true,
      expired: () => {},
    })
    for (const [client, { away, ends }] of this.#known) {
      const limit = EXPIRY_S / 3_600
      const isKept = this.#store.sessions.get(client) !== undefined
      if (away <= limit && !isKept) throw new Error(`${client} ended after ${away} h`)
      if (away > limit + ends && isKept) throw new Error(`${client} is there after ${away} h`)
      if (!isKept) this.#known.delete(client)
    }
  }

  /** All clients lose their connection. A broker that crashed leaves what it had committed. */
  async #end(how: 'restart' | 'crash'): Promise<void> {
    await new Promise((resolve) => this.#store.group.push(null, resolve))
    const [from, to] = [this.#path, join(this.#directory, `${++this.#runs}.db`)]
    if (how === 'crash') {
      for (const end of ['', '-wal']) cpSync(from + end, to + end)
      this.#path = to
    }
    await this.#store.destroy()
    this.#ms = this.#runs * 1_000_000
    for (const known of this.#known.values()) {
      known.isThere = false
      known.ends++
    }
    this.#store = this.#open()
  }
}
