import {
  appendFileSync,
  cpSync,
  mkdirSync,
  readdirSync,
  readFileSync,
  truncateSync,
  writeFileSync,
} from 'node:fs'
import { join } from 'node:path'
import t, { type Test } from 'tap'
import { openSqlite } from '#shared/sqlite'
import { Journal } from '../../../enrollment/registry/journal.ts'
import { readSegment, segmentPaths } from '../../../enrollment/registry/journal-lines.ts'
import { openRegistry } from '../../../enrollment/registry/open.ts'
import { placeOf, replayJournal } from '../../../enrollment/registry/replay.ts'
import { MIGRATIONS } from '../../../enrollment/registry/schema.ts'
import { Store } from '../../../enrollment/registry/store.ts'
import fc from '../../support/properties.ts'
import { contents } from '../../support/registry-contents.ts'
import { BEGIN, device, type Plane, planeOf } from '../../support/registry-plane.ts'

const options = { trustDomain: 'plane.test', epoch: 'epoch-1', now: BEGIN }
/** A registry with a journal in a directory of its own. */
function place(t: Test) {
  const root = t.testdir({})
  const [path, journal] = [join(root, 'registry.db'), join(root, 'journal')]
  const open = () => openRegistry(path, { ...options, journal })
  return { root, path, journal, open }
}

/** Something of everything that a registry does. */
async function live(plane: Plane, name: string): Promise<void> {
  await plane.broker(`broker-${name}`)
  const devices = await Promise.all([1, 2, 3, 4].map((n) => plane.enroll(`${name}-${n}`)))
  const [first] = devices
  if (first === undefined) throw new Error('no device')
  await plane.report([plane.connected(first)], { broker: `broker-${name}` })
  const renewed = await plane.renew(first.fingerprint, `next key of ${name}`)
  await plane.report([plane.connected(renewed), plane.disconnected(renewed)], { broker: `broker-${name}` })
  await plane.hold(`hold-${name}`, device(`${name}-3`))
  await plane.registry.undoPlan(`hold-${name}`, plane.act())
  await plane.revoke(`revoke-${name}`, device(`${name}-1`, `${name}-2`))
  await plane.service(`service-${name}`, `service key ${name}`)
  await plane.begin(`token of ${name}-4`, `${name}-4`, 'other').catch(() => {}) // an intent that fails is in no journal
  await plane.registry.createApiToken({ name, hash: `hash ${name}`, expiresAt: null, ...plane.act() })
  await plane.registry.cancelApiToken(name, plane.act())
  await plane.registry.createApiToken({ name, hash: `again ${name}`, expiresAt: null, ...plane.act() })
}

t.test('an old copy and the journal make the database as it is', async (t) => {
  const { root, path, journal, open } = place(t)
  let registry = await open()
  await live(planeOf(registry, 'a'), 'a')
  await registry.close()
  const copy = join(root, 'copy.db')
  cpSync(path, copy)
  registry = await open()
  await live(planeOf(registry, 'b'), 'b')
  await registry.createFleet({ id: 'toys', synthetic: true }, { now: BEGIN, by: 'operator:test' })
  await registry.clearSynthetic({ now: BEGIN, by: 'operator:test' })
  await registry.close()
  const { from, to } = replayJournal(copy, journal)
  t.ok(to.number > from.number)
  t.strictSame(placeOf(copy), placeOf(path))
  t.strictSame(contents(copy), contents(path))
  const restored = await openRegistry(copy, { ...options, journal })
  t.equal(await restored.verifyAudit(), null)
  await planeOf(restored, 'c').enroll('c-1')
  await restored.close()
})

t.test('a journal that is cut anywhere loses the line that was cut, and no other', async (t) => {
  const { root, path, journal, open } = place(t)
  const empty = await open()
  await empty.close()
  const copy = join(root, 'begin.db')
  cpSync(path, copy)
  const registry = await open()
  await live(planeOf(registry, 'a'), 'a')
  await registry.close()
  const [segment = ''] = segmentPaths(journal)
  const octets = readFileSync(segment)
  const whole = readSegment(segment)
  const first = octets.indexOf(0x0a, octets.indexOf(0x0a) + 1) + 1 // the copy has got so far
  let runs = 0
  const cut = fc.record({
    at: fc.integer({ min: first, max: octets.length }),
    junk: fc.uint8Array({ maxLength: 40 }),
  })
  await fc.assert(
    fc.asyncProperty(cut, async ({ at, junk }) => {
      const directory = join(root, `cut-${++runs}`)
      mkdirSync(join(directory, 'journal'), { recursive: true })
      const [db, torn] = [join(directory, 'registry.db'), join(directory, 'journal', '000000000001.log')]
      cpSync(copy, db)
      writeFileSync(torn, octets.subarray(0, at))
      appendFileSync(
        torn,
        Buffer.from(junk).filter((octet) => octet !== 0x0a),
      )
      const lines = octets.subarray(0, at).filter((octet) => octet === 0x0a).length - 1
      const { to } = replayJournal(db, join(directory, 'journal'))
      t.same(to, whole?.commits[lines - 1]?.place, `cut at ${at}`)
      // and a registry that goes on there overwrites what was cut
      const on = await openRegistry(db, { ...options, journal: join(directory, 'journal') })
      await planeOf(on, 'later').token('later')
      await on.close()
      t.equal(readSegment(torn)?.commits.length, lines + 1)
    }),
    { numRuns: 40 },
  )
})

t.test('a commit that was cut short after the journal had it is made good at the next start', async (t) => {
  const { root, path, journal, open } = place(t)
  const registry = await open()
  const plane = planeOf(registry)
  await plane.enroll('d1')
  cpSync(path, join(root, 'before.db')) // the database as a crash before the commit leaves it
  cpSync(`${path}-wal`, join(root, 'before.db-wal'))
  await plane.enroll('d2')
  await registry.close()
  const again = await openRegistry(join(root, 'before.db'), { ...options, journal })
  t.match(await again.showDevice('d2', BEGIN), { state: 'active' })
  t.equal(await again.verifyAudit(), null)
  await again.close()
  t.strictSame(contents(join(root, 'before.db')), contents(path))
})

t.test('a journal with a gap, with a damaged line, or of another registry is refused', async (t) => {
  const { root, path, journal, open } = place(t)
  const registry = await open()
  cpSync(path, join(root, 'copy.db'))
  cpSync(`${path}-wal`, join(root, 'copy.db-wal'))
  await live(planeOf(registry), 'a')
  await registry.close()
  const [segment = ''] = segmentPaths(journal)
  const text = readFileSync(segment, 'utf8')
  const lines = text.split('\n')
  const refusal = { code: 'directory_unusable' }
  for (const damaged of [
    lines.toSpliced(4, 1),
    lines.with(4, (lines[4] ?? '').replace('number', 'nomber')),
    lines.toSpliced(4, 2, lines[5] ?? '', lines[4] ?? ''),
  ]) {
    writeFileSync(segment, damaged.join('\n'))
    t.throws(() => replayJournal(join(root, 'copy.db'), journal), {
      ...refusal,
      message: /line of commit 4 is damaged/,
    })
  }
  writeFileSync(segment, text)

  const foreign = await openRegistry(join(root, 'other.db'), { ...options, journal: join(root, 'other') })
  await live(planeOf(foreign, 'x'), 'x')
  await foreign.close()
  t.throws(() => replayJournal(path, join(root, 'other')), {
    ...refusal,
    message: /another registry|missing/,
  })
  await t.rejects(openRegistry(join(root, 'gone.db'), { ...options, journal }), {
    ...refusal,
    message: /it is gone.*ca restore/,
  })
})

t.test('a disk that refuses the journal refuses the intents, and needs no restart', async (t) => {
  const { path, journal, open } = place(t)
  const registry = await open()
  const plane = planeOf(registry)
  await plane.enroll('d1')
  const before = readdirSync(journal)
  const disk = await refusingDisk(t)
  await t.rejects(plane.enroll('d2'), { code: 'unavailable' })
  await t.rejects(plane.token('d3'), { code: 'unavailable' })
  disk.refuses = false
  await plane.enroll('d4')
  await registry.close()
  t.strictSame(readdirSync(journal), before)
  const copy = `${path}.copy`
  cpSync(path, copy)
  truncateSync(copy, 0)
  t.equal(replayJournal(copy, journal).to.number, placeOf(path).number)
  t.strictSame(contents(copy), contents(path), 'the journal has what was acknowledged, and nothing else')
})

t.test('an intent that fails after it has written is in no journal, though its group is', async (t) => {
  const { db, store, journal } = storeWithJournal(t)
  const write = (name: string, fails: boolean) =>
    store.write({ now: BEGIN, by: 'operator:test' }, (log) => {
      db.prepare('INSERT INTO meta (name, value) VALUES (?, ?)').run(name, 'x')
      log.audit({ action: 'test', subject: name })
      if (fails) throw new RangeError('refused')
    })
  await Promise.allSettled([write('kept', false), write('never', true)])
  await store.close()
  const text = readFileSync(segmentPaths(journal)[0] ?? '', 'utf8')
  t.match(text, /"kept"/)
  t.notMatch(text, /"never"/)
})

function storeWithJournal(t: Test) {
  const { path, journal } = place(t)
  const db = openSqlite(path, { busyTimeoutMs: 0, migrations: MIGRATIONS })
  return { db, journal, store: new Store(db, { journal: new Journal(db, journal) }) }
}

t.test('of a group that was refused nothing stays behind a shorter one', async (t) => {
  const { path, journal, open } = place(t)
  const registry = await open()
  const plane = planeOf(registry)
  await plane.enroll('d1')
  const disk = await refusingDisk(t)
  const refused = await Promise.allSettled(
    Array.from({ length: 20 }, (_, at) => plane.token(`refused-${at}`)),
  )
  t.notOk(refused.some(({ status }) => status === 'fulfilled'))
  disk.refuses = false
  await plane.token('kept')
  await registry.close()
  t.notMatch(readFileSync(segmentPaths(journal)[0] ?? '', 'utf8'), /refused-19/)
  const again = await open()
  t.match((await again.listTokens({ now: BEGIN })).map(({ id }) => id).toSorted(), ['kept', 'token of d1'])
  await again.close()
  t.equal(placeOf(path).number, readSegment(segmentPaths(journal)[0] ?? '')?.commits.at(-1)?.place.number)
})

/** Every sync of this process that goes through node:fs fails while `refuses` is true: SQLite's own do not. */
async function refusingDisk(t: Test): Promise<{ refuses: boolean }> {
  const fs = await import('node:fs')
  const { syncBuiltinESMExports } = await import('node:module')
  const real = fs.default.fsyncSync
  const disk = { refuses: true }
  fs.default.fsyncSync = (file: number) => {
    if (disk.refuses)
      throw Object.assign(new Error('EIO: i/o error, fsync'), { code: 'EIO', syscall: 'fsync' })
    real(file)
  }
  syncBuiltinESMExports()
  t.teardown(() => {
    fs.default.fsyncSync = real
    syncBuiltinESMExports()
  })
  return disk
}
