import { fork } from 'node:child_process'
import { once } from 'node:events'
import { mkdtempSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { PassThrough } from 'node:stream'
import { setImmediate } from 'node:timers/promises'
import Database from 'better-sqlite3'
import t, { type Test } from 'tap'
import type { Report, ReportBatch } from '#shared/feed'
import { openJsonClient } from '#shared/json-client'
import { openLog } from '#shared/log'
import { openReplica, type Replica } from '../../broker/replica/replica.ts'
import { Reporter, type ReportLimits } from '../../broker/replica/reports.ts'
import { Spool } from '../../broker/replica/spool.ts'
import { openTestFeed, type TestFeed } from '../support/feed.ts'
import { type TestAuthority, type TestIdentity, testAuthority, testIdentity } from '../support/pki.ts'

let authority: TestAuthority
let server: TestIdentity
let broker: TestIdentity

t.before(async () => {
  authority = await testAuthority()
  server = await testIdentity(authority, 'enrollment', { kind: 'server' })
  broker = await testIdentity(authority, 'broker-1', { kind: 'broker' })
})
t.teardown(() => authority.remove())

const FAST: Partial<ReportLimits> = { gatherMs: 5, heartbeatMs: 60_000, backoffFirstMs: 1, backoffMostMs: 5 }

const SPOOL =
  'CREATE TABLE spool (id INTEGER PRIMARY KEY AUTOINCREMENT, type TEXT, report TEXT, boot TEXT, sequence INTEGER)'

interface Bench {
  readonly replica: Replica
  readonly reporter: Reporter
  readonly stored: string[]
  readonly logged: string[]
}

async function feedOf(t: Test, port = 0): Promise<TestFeed> {
  const feed = await openTestFeed({ authority, server, port })
  t.teardown(() => feed.close())
  return feed
}

function benchOf(
  t: Test,
  feed: { url: string },
  options: {
    path?: string
    boot?: string
    sessions?: () => number
    isStarted?: boolean
    limits?: Partial<ReportLimits>
  } = {},
): Bench {
  const path = options.path ?? join(mkdtempSync(join(t.testdir(), 'spool-')), 'broker.db')
  const replica = openReplica(path)
  const client = openJsonClient(profileOf(feed.url))
  const stored: string[] = []
  const logged: string[] = []
  const reporter = new Reporter({
    store: replica.spool,
    send: (batch) => client.send('POST', '/v1/feed/reports', batch),
    state: () => ({
      applied: replica.cursor(),
      sessions: options.sessions?.() ?? 0,
      url: 'mqtts://localhost:1',
    }),
    stored: (hold) => void stored.push(hold),
    boot: options.boot ?? 'boot-1',
    now: Date.now,
    random: () => 0,
    log: openLog(
      'test',
      'info',
      new PassThrough().on('data', (line) => logged.push(String(line))),
    ),
    limits: { ...FAST, ...options.limits },
  })
  if (options.isStarted ?? true) reporter.start()
  t.teardown(async () => {
    await reporter.stop()
    await client.close()
    replica.close()
  })
  return { replica, reporter, stored, logged }
}

function profileOf(url: string) {
  return { url, ca: authority.rootPem, certificate: broker.chainPem, key: broker.keyPem }
}

function connected(device: string, at = 1): Report {
  const session = { fingerprint: 'aa', address: '127.0.0.1', connection: device, resumed: false }
  return { type: 'connected', at, device, ...session }
}

function refused(device: string, clientId = ''): Report {
  const by = { fingerprint: 'aa', address: '127.0.0.1' }
  return { type: 'refused', at: 1, code: 'R-IDMISMATCH', evidence: { clientId }, device, ...by }
}

function applied(hold: string): Report {
  const closeMs = { p50: 0, p95: 0, max: 0 }
  return { type: 'applied', at: 1, hold, position: 1, sessionsClosed: 0, closeMs, survivors: [] }
}

t.test('reports are delivered in order, in batches that count up from one', async (t) => {
  const feed = await feedOf(t)
  const { reporter, replica } = benchOf(t, feed, { sessions: () => 7, isStarted: false })
  reporter.report(connected('lamp'))
  reporter.report(connected('door'))
  reporter.start()
  await feed.until('both have come', () => feed.reports.length === 2)
  reporter.report(refused('gate'))
  await feed.until('the third has come', () => feed.reports.length === 3)
  t.strictSame(feed.reports, [connected('lamp'), connected('door'), refused('gate')])
  t.same(
    feed.batches.map(({ sequence }) => sequence),
    [1, 2],
  )
  t.match(feed.batches[0], { boot: 'boot-1', sessions: 7, applied: null, url: 'mqtts://localhost:1' })
  await reporter.stop()
  t.equal(replica.spool.size(), 0)
})

t.test('a receipt line does not wait for others, and takes along what was waiting', async (t) => {
  const feed = await feedOf(t)
  const { reporter, stored } = benchOf(t, feed, { limits: { gatherMs: 60_000 } })
  await feed.until('the first, empty batch has come', () => feed.batches.length === 1)
  reporter.report(connected('lamp'))
  reporter.report(applied('h'))
  t.same(stored, ['h'], 'it is on disk before anything else happens')
  await feed.until('the receipt line has come', () => feed.reports.length === 2)
  t.equal(feed.batches.length, 2)
})

t.test('a change of cursor or sessions, and silence, send an empty batch', async (t) => {
  const feed = await feedOf(t)
  const { reporter } = benchOf(t, feed, { limits: { heartbeatMs: 20 } })
  await feed.until('three heartbeats', () => feed.batches.length >= 3)
  t.same(
    feed.batches.slice(0, 3).map(({ sequence }) => sequence),
    [1, 2, 3],
  )
  await reporter.stop()

  const quiet = benchOf(t, feed, { boot: 'boot-2' })
  await feed.until('the first', () => feed.batches.some(({ boot }) => boot === 'boot-2'))
  quiet.reporter.changed()
  await feed.until('the second', () =>
    feed.batches.some(({ boot, sequence }) => boot === 'boot-2' && sequence === 2),
  )
})

t.test('a batch that was taken without a reply is sent again under its name and counted once', async (t) => {
  const feed = await feedOf(t)
  const { reporter } = benchOf(t, feed)
  feed.reportFault = 'lose-reply'
  reporter.report(applied('h1'))
  await feed.until('it was sent twice', () => feed.batches.length >= 2)
  reporter.report(applied('h2'))
  feed.reportFault = 'none'
  await feed.until('the next has come too', () => feed.reports.length === 2)
  t.strictSame(feed.reports, [applied('h1'), applied('h2')])
})

t.test('an empty batch without a reply does not give its name to reports', async (t) => {
  const feed = await feedOf(t)
  feed.reportFault = 'lose-reply'
  const { reporter } = benchOf(t, feed)
  await feed.until('an empty batch was sent', () => feed.batches.length >= 1)
  reporter.report(applied('h'))
  feed.reportFault = 'none'
  await feed.until('the receipt line has come', () => feed.reports.length === 1)
  const contents = new Map<number, Set<number>>()
  for (const { sequence, reports } of feed.batches) {
    contents.set(sequence, (contents.get(sequence) ?? new Set()).add(reports.length))
  }
  t.ok([...contents.values()].every((sizes) => sizes.size === 1))
})

t.test('reports wait for a registry that is down', async (t) => {
  const feed = await feedOf(t)
  const { reporter, replica, logged } = benchOf(t, feed)
  feed.reportFault = 'refuse'
  for (let index = 0; index < 50; index += 1) reporter.report(connected(`d${index}`))
  reporter.report(applied('h'))
  t.equal(replica.spool.size(), 51)
  feed.reportFault = 'none'
  await feed.until('all have come', () => feed.reports.length === 51)
  t.ok(logged.filter((line) => line.includes('cannot deliver')).length <= 1, 'one line for an outage')
})

t.test('a long spool goes out in batches that a listener takes', async (t) => {
  const feed = await feedOf(t)
  const { reporter } = benchOf(t, feed)
  for (let index = 0; index < 2_500; index += 1) reporter.report(refused(`d${index}`, 'x'.repeat(100)))
  reporter.report(applied('h'))
  await feed.until('all have come', () => feed.reports.length === 2_501)
  t.ok(feed.batches.every(({ reports }) => reports.length <= 1_000))
  t.ok(feed.batches.every((batch) => JSON.stringify(batch).length < 65_536))
  t.same(feed.reports.map((report) => (report.type === 'refused' ? report.device : report.type)).slice(-2), [
    'd2499',
    'applied',
  ])
})

t.test('a report that is not in the schema is logged and does not hold up the others', async (t) => {
  const feed = await feedOf(t)
  const { reporter, logged } = benchOf(t, feed)
  reporter.report({ ...connected('lamp'), at: Number.NaN })
  reporter.report(connected('x'.repeat(65)))
  reporter.report(applied('h'))
  await feed.until('the good one has come', () => feed.reports.length === 1)
  t.equal(logged.filter((line) => line.includes('not in the schema')).length, 2)
})

t.test('reports that the disk refuses are kept in memory until it takes them', async (t) => {
  const feed = await feedOf(t)
  const path = join(mkdtempSync(join(t.testdir(), 'spool-')), 'broker.db')
  const { reporter, logged, stored } = benchOf(t, feed, { path })
  const other = new Database(path)
  other.exec('BEGIN IMMEDIATE')
  reporter.report(applied('h'))
  t.same(stored, [])
  t.ok(logged.some((line) => line.includes('cannot store reports')))
  other.close()
  await feed.until('it has come', () => feed.reports.length === 1)
  t.same(stored, ['h'])
})

t.test('a full spool drops sessions first, then refusals, and never a receipt line', async (t) => {
  const db = new Database(':memory:')
  t.teardown(() => db.close())
  db.exec(SPOOL)
  const spool = new Spool(db, 10)
  spool.add([applied('h1'), connected('lamp'), refused('door'), connected('gate')])
  spool.add(Array.from({ length: 7 }, (_, index) => applied(`more${index}`)))
  const types = () => db.prepare('SELECT type FROM spool').pluck().all()
  t.equal(spool.size(), 10)
  spool.add([applied('h2')])
  t.notOk(types().includes('connected'))
  spool.add([applied('h3')])
  spool.add([applied('h4')])
  t.equal(spool.size(), types().length)
  t.ok(
    types().every((type) => type === 'applied'),
    'more than it should hold, rather than without a receipt',
  )
})

t.test('a batch that the registry has goes with the next write, and by its name before that', async (t) => {
  const replica = openReplica(join(mkdtempSync(join(t.testdir(), 'spool-')), 'broker.db'))
  t.teardown(() => replica.close())
  const { spool } = replica
  const [first, second] = [
    { boot: 'b', sequence: 1 },
    { boot: 'b', sequence: 2 },
  ]
  const { batch } = spool.take([connected('lamp'), refused('door')], first)
  t.strictSame(batch, { ...first, reports: [connected('lamp'), refused('door')] })
  if (batch !== null) spool.taken(batch)
  t.equal(spool.size(), 0)
  t.strictSame(spool.take([], second).batch, null, 'it is not sent again')

  const again = spool.take([connected('gate')], second)
  t.strictSame(again.batch, { ...second, reports: [connected('gate')] })
  if (again.batch !== null) spool.taken(again.batch)
  spool.add([applied('h')])
  t.equal(spool.size(), 1)
  t.strictSame(spool.take([connected('lamp')], { boot: 'b', sequence: 3 }).batch?.reports, [
    applied('h'),
    connected('lamp'),
  ])
})

t.test('after a crash a batch is sent again under its name, also one that the registry had', async (t) => {
  const path = join(mkdtempSync(join(t.testdir(), 'spool-')), 'broker.db')
  const before = openReplica(path)
  const name = { boot: 'before', sequence: 7 }
  const { batch } = before.spool.take([applied('h')], name)
  if (batch !== null) before.spool.taken(batch)
  before.close()
  const after = openReplica(path)
  t.teardown(() => after.close())
  const resent = after.spool.take([connected('lamp')], { boot: 'after', sequence: 1 }).batch
  t.strictSame(resent, { ...name, reports: [applied('h')] })
  if (resent !== null) after.spool.taken(resent)
  const next = { boot: 'after', sequence: 1 }
  t.strictSame(after.spool.take([], next).batch, { ...next, reports: [connected('lamp')] })
})

t.test('what is too long for one batch waits for the next, in order', async (t) => {
  const replica = openReplica(join(mkdtempSync(join(t.testdir(), 'spool-')), 'broker.db'))
  t.teardown(() => replica.close())
  const all = Array.from({ length: 700 }, (_, index) => refused(`d${index}`, 'x'.repeat(100)))
  const sent: Report[] = []
  let fresh: Report[] = all
  for (let sequence = 1; ; sequence++) {
    const { batch } = replica.spool.take(fresh, { boot: 'b', sequence })
    fresh = []
    if (batch === null) break
    t.ok(batch.reports.length < all.length)
    sent.push(...batch.reports)
    replica.spool.taken(batch)
  }
  t.strictSame(sent, all)
})

/** A reporter over a spool whose disk, registry and notes fail as a test says. */
function failing(t: Test, { noted, capacity }: { noted?: (hold: string) => void; capacity?: number } = {}) {
  const db = new Database(':memory:')
  db.exec(SPOOL)
  const spool = new Spool(db, capacity)
  const sent: ReportBatch[] = []
  const faults = { disk: false, registry: false }
  const onDisk = <T>(work: () => T): T => {
    if (faults.disk) throw new Error('disk is full')
    return work()
  }
  const reporter = new Reporter({
    store: {
      add: (reports) => onDisk(() => spool.add(reports)),
      take: (reports, name) => onDisk(() => spool.take(reports, name)),
      taken: (batch) => spool.taken(batch),
      size: () => spool.size(),
    },
    async send(batch) {
      sent.push(structuredClone(batch))
      if (faults.registry) throw new Error('no answer')
      return { sequence: batch.sequence }
    },
    ...{ state: () => ({ applied: null, sessions: 0, url: '' }), stored: noted ?? (() => {}) },
    ...{ boot: 'b', now: Date.now, random: () => 0, log: openLog('test', 'silent') },
    limits: { ...FAST, heartbeatMs: 1 },
  })
  t.teardown(async () => {
    await reporter.stop()
    db.close()
  })
  /** Resolves when the test has seen it. */
  const until = async (isSeen: () => boolean) => {
    while (!isSeen()) await setImmediate()
  }
  return { reporter, spool, sent, faults, until }
}

t.test('what is under way keeps its name also when the disk fills up meanwhile', async (t) => {
  const { reporter, sent, faults, until } = failing(t)
  faults.registry = true
  reporter.report(applied('h1'))
  reporter.start()
  await until(() => sent.length > 0)
  faults.disk = true
  reporter.report(applied('h2'))
  await until(() => sent.length > 2)
  const contents = new Set(sent.map(({ sequence, reports }) => `${sequence} ${JSON.stringify(reports)}`))
  t.strictSame([...contents], [`1 ${JSON.stringify([applied('h1')])}`], 'never an empty batch under its name')
})

t.test('the name of a batch that was dropped from a full spool is not used for others', async (t) => {
  const { reporter, spool, sent, faults, until } = failing(t, { capacity: 2 })
  faults.registry = true
  reporter.report(connected('lamp'))
  reporter.start()
  await until(() => sent.length > 2)
  spool.add([applied('h'), applied('h')])
  faults.registry = false
  await until(() => sent.some(({ sequence, reports }) => sequence === 2 && reports.length > 0))
  const names = new Map(sent.map(({ sequence, reports }) => [sequence, JSON.stringify(reports)]))
  t.equal(names.get(1), JSON.stringify([connected('lamp')]))
  t.equal(names.get(2), JSON.stringify([applied('h'), applied('h')]))
})

t.test('a receipt line whose note fails is in the spool once', async (t) => {
  const { reporter, spool } = failing(t, {
    noted() {
      throw new Error('disk is full')
    },
  })
  reporter.report(applied('h1'))
  reporter.report(applied('h2'))
  t.equal(spool.size(), 2)
})

t.test('while the disk refuses, receipt lines stay in memory before all others', async (t) => {
  const { reporter, spool, faults } = failing(t)
  faults.disk = true
  reporter.report(applied('h'))
  for (let index = 0; index < 10_500; index++) reporter.report(connected('lamp'))
  faults.disk = false
  reporter.report(applied('last'))
  t.equal(spool.size(), 10_000 + 1, 'the capacity, and the one with which the disk took them')
  t.match(spool.take([], { boot: 'b', sequence: 1 }).batch?.reports[0], { type: 'applied', hold: 'h' })
})

t.test('a row that is no report is taken out, and holds up nobody', async (t) => {
  const path = join(mkdtempSync(join(t.testdir(), 'spool-')), 'broker.db')
  openReplica(path).close()
  const db = new Database(path)
  db.exec(`INSERT INTO spool (type, report) VALUES ('applied', '{"type":'), ('refused', '')`)
  db.close()
  const feed = await feedOf(t)
  const { reporter, replica, logged } = benchOf(t, feed, { path })
  reporter.report(applied('h'))
  await feed.until('the good one has come', () => feed.reports.length === 1)
  t.ok(logged.some((line) => line.includes('could not be read')))
  await reporter.stop()
  t.equal(replica.spool.size(), 0)
})

t.test(
  'reports survive the death of the broker, and a batch that was under way is counted once',
  async (t) => {
    const feed = await feedOf(t)
    const directory = mkdtempSync(join(t.testdir(), 'killed-'))
    const path = join(directory, 'broker.db')
    const profile = join(directory, 'profile.json')
    writeFileSync(
      profile,
      JSON.stringify({ ...profileOf(feed.url), reports: [applied('h1'), connected('lamp')] }),
    )
    feed.reportFault = 'lose-reply'
    const victim = fork(join(import.meta.dirname, '..', 'support', 'spool-victim.ts'), [path, profile])
    await once(victim, 'message')
    await feed.until('a batch has arrived without a reply', () => feed.batches.length >= 1)
    victim.kill('SIGKILL')
    await once(victim, 'exit')
    feed.reportFault = 'none'

    const { reporter } = benchOf(t, feed, { path, boot: 'boot-2' })
    reporter.report(applied('h2'))
    await feed.until('the new one has come', () =>
      feed.reports.some((one) => one.type === 'applied' && one.hold === 'h2'),
    )
    t.same(
      feed.reports.filter(({ type }) => type === 'applied').map((one) => one.type === 'applied' && one.hold),
      ['h1', 'h2'],
    )
    const boots = feed.batches.map(({ boot }: ReportBatch) => boot)
    t.equal(boots.lastIndexOf('victim') < boots.indexOf('boot-2'), true, 'what was under way goes first')
  },
)
