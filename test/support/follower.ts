/** A follower with a replica and sessions of its own, and the registry that it follows. */
import { once } from 'node:events'
import { join } from 'node:path'
import { PassThrough } from 'node:stream'
import t, { type Test } from 'tap'
import type { Change, Report } from '#shared/feed'
import { openJsonClient } from '#shared/json-client'
import { openLog } from '#shared/log'
import { Follower, type FollowLimits } from '../../broker/replica/follower.ts'
import { openReplica, type Replica } from '../../broker/replica/replica.ts'
import { type Connection, openConnection, Sessions } from '../../broker/sessions.ts'
import { openTestFeed, type TestFeed } from './feed.ts'
import { fingerprintOf, smallRegistry } from './feed-changes.ts'
import { testAuthority, testIdentity } from './pki.ts'

const authority = await testAuthority()
t.teardown(() => authority.remove())
const server = await testIdentity(authority, 'enrollment', { kind: 'server' })
const broker = await testIdentity(authority, 'broker-1', { kind: 'broker' })

/** Short times, so that tests need not wait; the order of events is what they check. */
const FAST: Partial<FollowLimits> = { backoffFirstMs: 1, backoffMostMs: 5, recordWaitMs: 5_000 }

export interface Bench {
  readonly replica: Replica
  readonly sessions: Sessions
  readonly follower: Follower
  readonly reports: Report[]
  readonly purged: string[]
  /** How many have begun; each takes as long as `until` does. */
  readonly reviews: { begun: number; until: Promise<void> }
  /** Where the newest orders to forget stood, each time that there might have been others. */
  readonly ordered: Record<string, number>[]
  readonly logged: string[]
  readonly trustChanges: () => number
  /** How often all devices were to hear what is new. */
  readonly newsForAll: () => number
  /** Opens a session of the device, as the gate would. */
  connect(device: string, fields?: Partial<Connection>): Connection
  /** Resolves when the cursor has come to this position. */
  reached(position: number): Promise<void>
  applied(hold: string): Promise<Extract<Report, { type: 'applied' }>>
}

export interface BenchOptions {
  readonly limits?: Partial<FollowLimits>
  readonly path?: string
  now?(): number
}

/** A registry that has said this much. */
export async function feedOf(
  t: Test,
  changes: readonly Change[] = smallRegistry(),
  port = 0,
): Promise<TestFeed> {
  const feed = await openTestFeed({ authority, server, port })
  t.teardown(() => feed.close())
  feed.commit(...changes)
  return feed
}

/** A follower of the feed with a replica and sessions of its own, started and caught up. */
export async function benchOf(
  t: Test,
  feed: { readonly url: string },
  options: BenchOptions = {},
): Promise<Bench> {
  const replica = openReplica(options.path ?? join(t.testdir(), 'broker.db'))
  const now = options.now ?? Date.now
  const sessions = new Sessions({ now })
  const client = openJsonClient({
    url: feed.url,
    ca: authority.rootPem,
    certificate: broker.chainPem,
    key: broker.keyPem,
  })
  const watchers = new Set<() => void>()
  const changed = () => {
    for (const watcher of watchers) watcher()
  }
  const until = async (what: string, holds: () => boolean) => {
    const { promise, resolve, reject } = Promise.withResolvers<void>()
    const look = () => holds() && resolve()
    const timer = setTimeout(() => reject(new Error(`Not within 10 s: ${what}`)), 10_000)
    watchers.add(look)
    look()
    await promise.finally(() => {
      clearTimeout(timer)
      watchers.delete(look)
    })
  }
  const reports: Report[] = []
  const purged: string[] = []
  const reviews = { begun: 0, until: Promise.resolve() }
  const ordered: Record<string, number>[] = []
  const logged: string[] = []
  let trustChanges = 0
  let newsForAll = 0
  const follower = new Follower({
    replica,
    sessions,
    open: (path, signal) => client.stream(path, signal),
    report(report) {
      reports.push(report)
      if (report.type === 'applied') replica.markReported(report.hold)
      changed()
    },
    purge: async (devices) => void purged.push(...devices),
    review() {
      reviews.begun++
      return reviews.until
    },
    ordered: () => void ordered.push(Object.fromEntries(replica.orders.newest())),
    trustChanged: () => void trustChanges++,
    newsForAll: () => void newsForAll++,
    moved: changed,
    now,
    random: () => 0,
    log: openLog(
      'test',
      'info',
      new PassThrough().on('data', (line) => logged.push(String(line))),
    ),
    limits: { ...FAST, ...options.limits },
  })
  t.teardown(async () => {
    await follower.stop()
    await client.close()
    replica.close()
  })
  follower.start()
  return {
    replica,
    sessions,
    follower,
    reports,
    purged,
    reviews,
    ordered,
    logged,
    trustChanges: () => trustChanges,
    newsForAll: () => newsForAll,
    connect: (device, fields = {}) => open({ replica, sessions, changed }, device, fields),
    reached: (position) => until(`position ${position}`, () => replica.cursor()?.position === position),
    async applied(hold) {
      const ofHold = (report: Report) => report.type === 'applied' && report.hold === hold
      await until(`a receipt for ${hold}`, () => reports.some(ofHold))
      return reports.find(ofHold) as Extract<Report, { type: 'applied' }> // ofHold asked for the type
    },
  }
}

let opened = 0
function open(
  bench: Pick<Bench, 'replica' | 'sessions'> & { changed(): void },
  device: string,
  fields: Partial<Connection>,
): Connection {
  const fingerprint = fields.fingerprint ?? fingerprintOf(device)
  const record = bench.replica.record(fingerprint)
  if (record === null) throw new TypeError(`${device} is not known`)
  const connection = openConnection({
    id: `c${++opened}`,
    socket: new PassThrough(),
    fingerprint,
    serial: record.certificate.serial,
    device,
    kind: record.device.kind,
    batch: record.device.batch,
    fleet: record.fleet.id,
    issuer: record.certificate.issuer,
    address: '127.0.0.1',
    openedAt: 0,
    policy: bench.sessions.policyFor(record, '127.0.0.1'),
    ...fields,
  })
  bench.sessions.add(connection)
  connection.socket.once('close', () => bench.sessions.remove(connection))
  return connection
}

/** Resolves when its socket has closed. */
export async function closed(connection: Connection): Promise<void> {
  if (!connection.socket.closed)
    await once(connection.socket, 'close', { signal: AbortSignal.timeout(10_000) })
}
