import { join } from 'node:path'
import Database from 'better-sqlite3'
import t from 'tap'
import type { FeedMessage } from '#shared/feed'
import { openReplica } from '../../broker/replica/replica.ts'
import type { Connection } from '../../broker/sessions.ts'
import {
  certificateChange,
  deviceChange,
  fingerprintOf,
  fleetChange,
  holdChange,
  issuerChange,
  membersChange,
  smallRegistry,
} from '../support/feed-changes.ts'
import { benchOf, closed, feedOf } from '../support/follower.ts'
import { stateFileOf } from '../support/state-files.ts'

t.test('a broker without a replica gets a snapshot, then changes, and resumes by its cursor', async (t) => {
  const feed = await feedOf(t)
  const bench = await benchOf(t, feed)
  await bench.follower.complete()
  t.ok(bench.replica.record(fingerprintOf('lamp')))
  t.same(feed.asked, [null])
  feed.commit(deviceChange('door'), certificateChange(fingerprintOf('door'), 'door'))
  await bench.reached(6)
  t.ok(bench.replica.record(fingerprintOf('door')))
  feed.cut()
  await feed.until('the stream is asked for again', () => feed.asked.length === 2)
  t.same(feed.asked[1], { epoch: 'epoch-1', position: 6 })
  feed.commit(deviceChange('door', { state: 'retired' }))
  await bench.reached(7)
  t.ok(bench.replica.lastHeardAt())
})

t.test('a hold closes the sessions in its scope, is reported, and nobody else is disturbed', async (t) => {
  const scopes = {
    device: 'lamp',
    batch: 'b1',
    fleet: 'default',
    issuer: 'aa',
    plan: 'h-plan',
  } as const
  for (const [kind, id] of Object.entries(scopes) as [keyof typeof scopes, string][]) {
    const feed = await feedOf(t, [
      ...smallRegistry(),
      deviceChange('lamp', { batch: 'b1' }),
      issuerChange('bb'),
      fleetChange('other'),
      deviceChange('door', { fleet: 'other' }),
      certificateChange(fingerprintOf('door'), 'door', { issuer: 'bb' }),
      membersChange('h-plan', ['lamp', 'ghost', 'spectre']),
    ])
    const bench = await benchOf(t, feed, { path: join(t.testdir(), `${kind}.db`) })
    await bench.follower.complete()
    const lamp = bench.connect('lamp')
    const door = bench.connect('door')
    bench.sessions.cleaned = () => new Promise(setImmediate).then(() => void bench.purged.push('cleaned'))
    const position = feed.commit(holdChange(`h-${kind}`, { kind, id }))
    const line = await bench.applied(`h-${kind}`)
    t.match(line, { position, sessionsClosed: 1, survivors: [] })
    t.ok(line.closeMs.max < 5_000)
    t.equal(lamp.refused, 'held')
    t.ok(lamp.socket.destroyed)
    t.equal(door.refused, null)
    t.notOk(door.socket.destroyed)
    await bench.follower.stop()
    t.same(bench.purged, ['cleaned', 'lamp'], 'what closing leaves behind is there before it is purged')
  }
})

t.test('no moment passes between the change of the replica and the refusal of the session', async (t) => {
  const feed = await feedOf(t)
  const bench = await benchOf(t, feed)
  await bench.follower.complete()
  const lamp = bench.connect('lamp')
  // Looks in every turn of the event loop, from microtasks too, for a session that is open under a hold.
  let isWatching = true
  let looks = 0
  const watch = () => {
    looks += 1
    const isHeld = bench.replica.record(fingerprintOf('lamp'))?.hold !== null
    if (isHeld && lamp.refused === null) t.fail('held and not refused')
    if (isWatching) setImmediate(() => queueMicrotask(watch))
  }
  watch()
  feed.commit(holdChange('h', { kind: 'device', id: 'lamp' }))
  await bench.applied('h')
  isWatching = false
  t.ok(looks > 1)
})

t.test('a hold that was lifted before the broker heard of it disturbs nobody, and is answered', async (t) => {
  const feed = await feedOf(t)
  const bench = await benchOf(t, feed)
  await bench.follower.complete()
  const lamp = bench.connect('lamp')
  feed.streamFault = 'refuse'
  feed.cut()
  feed.commit(holdChange('h', { kind: 'device', id: 'lamp' }))
  feed.commit(holdChange('h', { kind: 'device', id: 'lamp' }, 'ended'))
  feed.streamFault = 'none'
  t.match(await bench.applied('h'), { sessionsClosed: 0, survivors: [] })
  t.equal(lamp.refused, null)
})

t.test('a lifted hold lets the same certificate in again', async (t) => {
  const feed = await feedOf(t)
  const bench = await benchOf(t, feed)
  await bench.follower.complete()
  feed.commit(holdChange('h', { kind: 'device', id: 'lamp' }))
  await bench.applied('h')
  t.ok(bench.replica.record(fingerprintOf('lamp'))?.hold)
  await bench.reached(feed.commit(holdChange('h', { kind: 'device', id: 'lamp' }, 'ended')))
  t.equal(bench.replica.record(fingerprintOf('lamp'))?.hold, null)
  t.equal(bench.connect('lamp').refused, null)
})

t.test('a revoked certificate ends its own session; the session of its successor stays', async (t) => {
  const feed = await feedOf(t, [...smallRegistry(), certificateChange('a2', 'lamp')])
  const bench = await benchOf(t, feed)
  await bench.follower.complete()
  const old = bench.connect('lamp')
  const successor = bench.connect('lamp', { fingerprint: 'a2' })
  feed.commit(
    certificateChange(fingerprintOf('lamp'), 'lamp', {
      state: 'revoked',
      revokedAt: 1,
      reason: 'unspecified',
    }),
  )
  await closed(old)
  t.equal(old.refused, 'revoked')
  t.equal(successor.refused, null)
  t.same(bench.purged, [], 'the MQTT session belongs to the successor now')
  feed.commit(certificateChange('a2', 'lamp', { state: 'revoked', revokedAt: 1, reason: 'unspecified' }))
  await closed(successor)
  await bench.follower.stop()
  t.same(bench.purged, ['lamp'])
})

t.test(
  'a rotated device that is offline keeps its MQTT session when its old certificate is revoked',
  async (t) => {
    const feed = await feedOf(t, [...smallRegistry(), certificateChange('a2', 'lamp')])
    const bench = await benchOf(t, feed)
    await bench.follower.complete()
    const revoked = { state: 'revoked', revokedAt: 1, reason: 'unspecified' } as const
    await bench.reached(feed.commit(certificateChange(fingerprintOf('lamp'), 'lamp', revoked)))
    await bench.follower.stop()
    t.same(bench.purged, [])
  },
)

t.test('a retired, forgotten or distrusted device is disconnected', async (t) => {
  const feed = await feedOf(t, [
    ...smallRegistry(['lamp', 'door', 'gate']),
    issuerChange('bb'),
    certificateChange(fingerprintOf('gate'), 'gate', { issuer: 'bb' }),
  ])
  const bench = await benchOf(t, feed)
  await bench.follower.complete()
  const [lamp, door, gate] = ['lamp', 'door', 'gate'].map((id) => bench.connect(id)) as [
    Connection,
    Connection,
    Connection,
  ]
  const before = bench.trustChanges()
  feed.commit(
    deviceChange('lamp', { state: 'retired' }),
    { kind: 'forgotten', device: 'door' },
    issuerChange('bb', { trusted: false }),
  )
  await Promise.all([lamp, door, gate].map(closed))
  t.same(
    [lamp, door, gate].map(({ refused }) => refused),
    ['retired', 'unrecorded', 'unrecorded'],
  )
  t.equal(bench.trustChanges(), before + 1)
  await bench.follower.stop()
  t.same(bench.purged.toSorted(), ['door', 'lamp'])
})

t.test('a new policy is in force for open sessions with the change', async (t) => {
  const feed = await feedOf(t)
  const bench = await benchOf(t, feed)
  await bench.follower.complete()
  const lamp = bench.connect('lamp')
  t.ok(lamp.policy.mayPublish('devices/lamp/state'))
  await bench.reached(feed.commit(fleetChange('default', { publish: [] })))
  t.notOk(lamp.policy.mayPublish('devices/lamp/state'))
  t.equal(lamp.refused, null)
})

t.test('another epoch brings a snapshot, and every session is judged by it', async (t) => {
  const feed = await feedOf(t, smallRegistry(['lamp', 'door', 'gate']))
  const bench = await benchOf(t, feed)
  await bench.follower.complete()
  const [lamp, door, gate] = ['lamp', 'door', 'gate'].map((id) => bench.connect(id)) as [
    Connection,
    Connection,
    Connection,
  ]
  const news = bench.newsForAll()
  await bench.reached(feed.commit({ kind: 'trust', trust: { version: 2, roots: ['R'], links: [] } }))
  t.equal(bench.newsForAll(), news + 1, 'a bundle to trust is news for all')
  t.match(bench.replica.trust(), { version: 2 })
  feed.restore('epoch-2', [
    ...smallRegistry(['lamp', 'door']),
    fleetChange('default', { publish: ['${device.attributes.site}'] }),
    deviceChange('lamp', { attributes: { site: 'oslo' } }),
    holdChange('h', { kind: 'device', id: 'door' }),
  ])
  t.match(await bench.applied('h'), { sessionsClosed: 1, survivors: [], position: 0 })
  await closed(gate)
  t.same(
    [lamp, door, gate].map(({ refused }) => refused),
    [null, 'held', 'unrecorded'],
  )
  t.notOk(lamp.policy.mayPublish('devices/lamp/state'))
  t.ok(lamp.policy.mayPublish('oslo'), 'by what the snapshot says of the device')
  t.same(bench.replica.cursor(), { epoch: 'epoch-2', position: 0 })
  t.equal(bench.newsForAll(), news + 2, 'and so is a snapshot: windows may have moved')
  t.equal(bench.replica.trust(), null)
})

t.test(
  'a device that rotated while the broker was cut off keeps its session, a revoked one does not',
  async (t) => {
    const feed = await feedOf(t, smallRegistry(['lamp', 'door', 'gate']))
    const bench = await benchOf(t, feed)
    await bench.follower.complete()
    const all = ['lamp', 'door', 'gate'].map((id) => bench.connect(id))
    feed.restore('epoch-2', [
      ...smallRegistry(['lamp', 'door', 'gate']),
      certificateChange(fingerprintOf('lamp'), 'lamp', { state: 'superseded', supersededFrom: 1 }),
      certificateChange('0a', 'lamp', { state: 'active' }),
      certificateChange(fingerprintOf('door'), 'door', {
        state: 'revoked',
        revokedAt: 1,
        reason: 'unspecified',
      }),
      deviceChange('gate', { state: 'retired' }),
    ])
    await Promise.all(all.map(closed))
    t.same(
      all.map(({ refused }) => refused),
      ['superseded', 'revoked', 'retired'],
    )
    await bench.follower.stop()
    t.same(bench.purged, ['door', 'gate'])
  },
)

t.test('many holds at once share a review, which begins after the one that runs', async (t) => {
  const devices = Array.from({ length: 40 }, (_, index) => `d${index}`)
  const feed = await feedOf(t, smallRegistry(devices))
  const bench = await benchOf(t, feed)
  const { promise, resolve } = Promise.withResolvers<void>()
  bench.reviews.until = promise
  await bench.follower.complete()
  feed.commit(...devices.map((id) => holdChange(`h-${id}`, { kind: 'device', id })))
  for (const id of devices) await bench.applied(`h-${id}`)
  t.equal(bench.reviews.begun, 1, 'that of the snapshot')
  resolve()
  await bench.follower.stop()
  t.equal(bench.reviews.begun, 2)
})

t.test(
  'a snapshot that is cut in the middle lets the older state serve until a whole one has come',
  async (t) => {
    const feed = await feedOf(t)
    const bench = await benchOf(t, feed)
    await bench.follower.complete()
    feed.cutSnapshotAfter = 2
    feed.restore('epoch-2', smallRegistry(['door']))
    await feed.until('three attempts', () => feed.asked.length >= 4)
    t.ok(bench.replica.record(fingerprintOf('lamp')))
    t.same(bench.replica.cursor(), { epoch: 'epoch-1', position: 4 })
    feed.cutSnapshotAfter = Number.POSITIVE_INFINITY
    await bench.reached(0)
    t.equal(bench.replica.record(fingerprintOf('lamp')), null)
    t.ok(bench.replica.record(fingerprintOf('door')))
  },
)

t.test('changes that are delivered twice, and late, change nothing', async (t) => {
  const feed = await feedOf(t)
  const bench = await benchOf(t, feed)
  await bench.follower.complete()
  feed.commit(holdChange('h', { kind: 'device', id: 'lamp' }))
  feed.commit(holdChange('h', { kind: 'device', id: 'lamp' }, 'ended'))
  await bench.reached(6)
  const lamp = bench.connect('lamp')
  feed.sendAgain(1, 6)
  await bench.reached(feed.commit(deviceChange('door')))
  t.equal(lamp.refused, null)
  t.equal(bench.replica.record(fingerprintOf('lamp'))?.hold, null)
})

t.test(
  'a certificate that was enrolled milliseconds ago is waited for, also over a cut of the stream',
  async (t) => {
    const feed = await feedOf(t)
    const bench = await benchOf(t, feed)
    await bench.follower.complete()
    const waited = bench.follower.waitForRecord(fingerprintOf('door'))
    feed.cut()
    feed.commit(certificateChange(fingerprintOf('door'), 'door'), deviceChange('door'))
    t.match(await waited, { device: { id: 'door' } })
    t.match(
      await bench.follower.waitForRecord(fingerprintOf('door')),
      { device: { id: 'door' } },
      'known at once',
    )
  },
)

t.test('a change that is passed over is asked for, and what follows it waits', async (t) => {
  const feed = await feedOf(t, smallRegistry(['lamp', 'door']))
  const bench = await benchOf(t, feed)
  await bench.follower.complete()
  const [lamp, door] = [bench.connect('lamp'), bench.connect('door')]
  const position = feed.position()
  const line = (message: FeedMessage) => `${JSON.stringify(message)}\n`
  const later = { type: 'change', position: position + 2, at: 1, change: deviceChange('lamp') } as const
  feed.sendRaw(line(later))
  await feed.until('asked again', () => feed.asked.length === 2)
  t.same(feed.asked[1], { epoch: 'epoch-1', position })
  feed.sendRaw(line({ type: 'alive', epoch: 'epoch-1', position: position + 1, at: 1 }))
  await feed.until('asked again', () => feed.asked.length === 3)
  t.same(feed.asked[2], { epoch: 'epoch-1', position }, 'also the last one')
  feed.commit(holdChange('h', { kind: 'device', id: 'lamp' }))
  await bench.applied('h')
  t.same([lamp.refused, door.refused], ['held', null])
})

t.test('a snapshot that the disk refuses again and again is asked for ever more slowly', async (t) => {
  const path = join(t.testdir(), 'broker.db')
  const feed = await feedOf(t)
  const bench = await benchOf(t, feed, { path })
  await bench.follower.complete()
  bench.replica.stage = () => {
    throw new Error('disk full')
  }
  feed.restore('epoch-2', smallRegistry(['door']))
  await feed.until('five attempts', () => feed.asked.length >= 6)
  t.equal(bench.logged.filter((line) => line.includes('change stream failed')).length, 1, 'said once')
})

t.test('a certificate that never comes is given up at the deadline', async (t) => {
  const feed = await feedOf(t)
  const bench = await benchOf(t, feed, { limits: { recordWaitMs: 20 } })
  await bench.follower.complete()
  t.equal(await bench.follower.waitForRecord('ff'), null)
})

t.test(
  'a broker that starts while enrollment is down knows its devices and its holds, and catches up later',
  async (t) => {
    const path = join(t.testdir(), 'broker.db')
    const feed = await feedOf(t, smallRegistry(['lamp', 'door']))
    const before = await benchOf(t, feed, { path })
    await before.follower.complete()
    feed.commit(holdChange('h', { kind: 'device', id: 'door' }))
    await before.applied('h')
    await before.follower.stop()
    feed.streamFault = 'refuse'
    feed.cut()

    const after = await benchOf(t, feed, { path })
    await after.follower.complete()
    t.equal(after.replica.record(fingerprintOf('lamp'))?.hold, null)
    t.equal(after.replica.record(fingerprintOf('door'))?.hold?.id, 'h')
    t.same(after.reports, [], 'the line of the receipt was stored before')
    const lamp = after.connect('lamp')
    const position = feed.commit(holdChange('h2', { kind: 'device', id: 'lamp' }))
    feed.streamFault = 'none'
    t.match(await after.applied('h2'), { position, sessionsClosed: 1 })
    t.equal(lamp.refused, 'held')
  },
)

t.test('what changed while the broker was down is in force when its first attempt is over', async (t) => {
  const path = join(t.testdir(), 'broker.db')
  const feed = await feedOf(t)
  const before = await benchOf(t, feed, { path })
  await before.follower.complete()
  await before.follower.stop()
  feed.commit(holdChange('h', { kind: 'device', id: 'lamp' }))
  const after = await benchOf(t, feed, { path })
  await after.follower.complete()
  t.equal(after.replica.record(fingerprintOf('lamp'))?.hold, null, 'it could serve already')
  await after.follower.attempted()
  t.equal(after.replica.record(fingerprintOf('lamp'))?.hold?.id, 'h')

  feed.streamFault = 'refuse'
  feed.cut()
  const alone = await benchOf(t, feed, { path })
  await alone.follower.attempted()
  t.ok(alone.replica.record(fingerprintOf('lamp')), 'a registry that is down is not waited for')
})

t.test('a hold whose receipt line was lost with the process is reported at the next start', async (t) => {
  const path = join(t.testdir(), 'broker.db')
  const replica = openReplica(path)
  replica.beginSnapshot()
  await replica.finishSnapshot({ epoch: 'epoch-1', position: 0 })
  replica.endSnapshot()
  replica.apply([{ type: 'change', position: 1, at: 0, change: holdChange('h', { kind: 'fleet', id: 'x' }) }])
  replica.close()
  const feed = await feedOf(t, [holdChange('h', { kind: 'fleet', id: 'x' })])
  const bench = await benchOf(t, feed, { path })
  t.match(bench.reports, [{ type: 'applied', hold: 'h', position: 1, sessionsClosed: 0, survivors: [] }])
})

t.test('a hold that the disk refuses stops its session, and is reported when it is stored', async (t) => {
  const path = join(t.testdir(), 'broker.db')
  const feed = await feedOf(t)
  const bench = await benchOf(t, feed, { path })
  await bench.follower.complete()
  const lamp = bench.connect('lamp')
  const other = new Database(stateFileOf(path))
  other.exec('BEGIN IMMEDIATE')
  feed.commit(holdChange('h', { kind: 'device', id: 'lamp' }))
  await closed(lamp)
  t.equal(lamp.refused, 'held')
  t.ok(bench.replica.record(fingerprintOf('lamp'))?.hold, 'and it cannot return')
  t.same(bench.reports, [])
  other.close()
  t.match(await bench.applied('h'), { position: 5, sessionsClosed: 0 })
})

t.test('what ends somebody ends him also while the disk refuses it, and nobody else', async (t) => {
  const path = join(t.testdir(), 'broker.db')
  const ids = ['lamp', 'door', 'gate', 'horn', 'bell']
  const of = { issuer: 'bb' }
  const feed = await feedOf(t, [
    ...smallRegistry(ids),
    issuerChange('bb'),
    certificateChange('0b', 'horn', of),
  ])
  const bench = await benchOf(t, feed, { path })
  await bench.follower.complete()
  const open = [...ids.filter((id) => id !== 'horn').map((id) => bench.connect(id))]
  open.push(bench.connect('horn', { fingerprint: '0b', issuer: 'bb' }))
  const other = new Database(stateFileOf(path))
  other.exec('BEGIN IMMEDIATE')
  const revoked = { state: 'revoked', revokedAt: 1, reason: 'unspecified' } as const
  const last = feed.commit(
    certificateChange(fingerprintOf('lamp'), 'lamp', revoked),
    deviceChange('door', { state: 'retired' }),
    { kind: 'forgotten', device: 'gate' },
    issuerChange('bb', { trusted: false }),
  )
  await Promise.all(open.filter(({ device }) => device !== 'bell').map(closed))
  const refused = ['revoked', 'retired', 'unrecorded', null, 'unrecorded']
  t.same(
    open.map((connection) => connection.refused),
    refused,
  )
  t.equal(bench.replica.record(fingerprintOf('lamp'))?.certificate.state, 'revoked', 'and cannot return')
  other.close()
  await bench.reached(last)
  t.equal(bench.replica.record(fingerprintOf('door'))?.device.state, 'retired')
  await bench.reached(feed.commit(deviceChange('door')))
  t.equal(bench.replica.record(fingerprintOf('door'))?.device.state, 'active', 'what is stored counts again')
})

t.test('a hold that comes after many changes that the disk refuses stops its session, too', async (t) => {
  const path = join(t.testdir(), 'broker.db')
  const feed = await feedOf(t, smallRegistry(['lamp', 'door', 'gate']))
  const bench = await benchOf(t, feed, { path })
  await bench.follower.complete()
  const [lamp, door, gate] = ['lamp', 'door', 'gate'].map((id) => bench.connect(id)) as [
    Connection,
    Connection,
    Connection,
  ]
  const other = new Database(stateFileOf(path))
  other.exec('BEGIN IMMEDIATE')
  feed.commit(
    ...Array.from({ length: 1_600 }, (_, index) => deviceChange(`d${index}`)),
    membersChange('plan', ['door']),
    holdChange('plan', { kind: 'plan', id: 'plan' }),
    holdChange('h', { kind: 'device', id: 'lamp' }),
  )
  await Promise.all([lamp, door].map(closed))
  t.same([lamp.refused, door.refused, gate.refused], ['held', 'held', null])
  t.match(bench.replica.record(fingerprintOf('door'))?.hold, { id: 'plan' }, 'and it cannot return')
  t.same(bench.reports, [])
  other.close()
  await bench.applied('plan')
  await bench.applied('h')
  t.equal(bench.replica.cursor()?.position, feed.position())
})

t.test('holds and revocations in a snapshot that the disk refuses stop their sessions, too', async (t) => {
  const steps = ['beginSnapshot', 'stage', 'finishSnapshot', 'endSnapshot'] as const
  const ids = [...steps, ...steps.map((step) => `revoked-${step}`)]
  const feed = await feedOf(t, smallRegistry(ids))
  const bench = await benchOf(t, feed)
  await bench.follower.complete()
  for (const step of steps) {
    const [connection, other] = [bench.connect(step), bench.connect(`revoked-${step}`)]
    const ended = certificateChange(fingerprintOf(other.device), other.device, { state: 'revoked' })
    const held = holdChange(step, { kind: 'device', id: step })
    bench.replica[step] = () => {
      throw new Error('disk full')
    }
    feed.restore(`without ${step}`, [...smallRegistry(ids), ended, held])
    await Promise.all([connection, other].map(closed))
    t.equal(other.refused, 'revoked')
    t.ok(bench.replica.record(fingerprintOf(step))?.hold, `${step}: and it cannot return`)
    t.same(bench.reports, [])
    Reflect.deleteProperty(bench.replica, step)
    await bench.applied(step)
    bench.reports.length = 0
  }
})

t.test('a message that the broker does not understand is not skipped: it stops the stream', async (t) => {
  const lines: [string, string | Uint8Array][] = [
    [
      'another kind',
      '{"type":"change","position":5,"at":1,"change":{"kind":"quarantine","device":"lamp"}}\n',
    ],
    ['no JSON', 'hello\n'],
    ['broken UTF-8', Buffer.from([0x7b, 0xff, 0x7d, 0x0a])],
    ['another epoch', '{"type":"alive","epoch":"epoch-9","position":4,"at":1}\n'],
    ['a snapshot that was not begun', '{"type":"snapshot-end","epoch":"epoch-1","position":9}\n'],
    ['a position below zero', '{"type":"alive","epoch":"epoch-1","position":-1,"at":1}\n'],
    ['an endless line', 'x'.repeat((1 << 20) + 1)],
  ]
  const feed = await feedOf(t)
  const bench = await benchOf(t, feed)
  await bench.follower.complete()
  for (const [name, bytes] of lines) {
    await feed.until('a stream is open', () => feed.streams() === 1)
    const asked = feed.asked.length
    feed.sendRaw(bytes)
    await feed.until(`${name} ends the stream`, () => feed.asked.length > asked)
  }
  t.same(bench.replica.cursor(), { epoch: 'epoch-1', position: 4 })
  await bench.reached(feed.commit(deviceChange('door')))
})

t.test('a message in many pieces is one message', async (t) => {
  const feed = await feedOf(t)
  const bench = await benchOf(t, feed)
  await bench.follower.complete()
  await feed.until('a stream is open', () => feed.streams() === 1)
  const line = JSON.stringify({
    type: 'change',
    position: 5,
    at: 1,
    change: fleetChange('fleet', { publish: ['ä/#'] }),
  })
  for (const byte of Buffer.from(`${line}\n`)) feed.sendRaw(Uint8Array.of(byte))
  await bench.reached(5)
  t.same(bench.replica.fleet('fleet')?.policy.publish, ['ä/#'])
})

t.test('a silent stream is taken for dead, and the log says once that the registry is silent', async (t) => {
  const feed = await feedOf(t)
  const bench = await benchOf(t, feed, { limits: { silenceMs: 30, alarmMs: 60 } })
  await bench.follower.complete()
  feed.streamFault = 'refuse'
  const asked = feed.asked.length
  await feed.until('the silent stream was dropped', () => feed.streams() === 0)
  await feed.until('the alarm', () => bench.logged.some((line) => line.includes('the registry is silent')))
  feed.streamFault = 'none'
  await feed.until('the stream is back', () => feed.asked.length > asked)
  await feed.until('all clear', () => bench.logged.some((line) => line.includes('heard again')))
})

t.test('thousands of changes are applied in slices, so that the event loop turns in between', async (t) => {
  const ids = Array.from({ length: 2_500 }, (_, index) => `d${index}`)
  const feed = await feedOf(t, smallRegistry(ids))
  const bench = await benchOf(t, feed)
  await bench.follower.complete()
  for (const id of ids) bench.connect(id)
  let turns = 0
  const count = () => {
    turns += 1
    if (turns > 0) setImmediate(count)
  }
  count()
  feed.commit(...ids.map((id) => certificateChange(fingerprintOf(id), id, { state: 'active' })))
  feed.commit(membersChange('h', ids.slice(0, 1_000)), membersChange('h', ids.slice(1_000, 2_000)))
  feed.commit(holdChange('h', { kind: 'plan', id: 'h' }))
  const line = await bench.applied('h')
  const during = turns
  turns = Number.NEGATIVE_INFINITY
  t.ok(during >= 9, 'the event loop turned between the slices')
  t.match(line, { sessionsClosed: 2_000, survivors: [] })
  t.equal(bench.sessions.count(), 500)
})
