import { readFileSync, renameSync, rmSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { createInterface } from 'node:readline'
import t, { type Test } from 'tap'
import { layout } from '#shared/layout'
import { openSqlite } from '#shared/sqlite'
import { segmentPaths } from '../../enrollment/registry/journal-lines.ts'
import { pruneJournal } from '../../enrollment/registry/journal-retention.ts'
import { openRegistry } from '../../enrollment/registry/open.ts'
import { MIGRATIONS } from '../../enrollment/registry/schema.ts'
import { pruneAll } from '../../enrollment/retention.ts'
import { enrollBroker, enrollDevice, startEnrollment } from '../support/enrollment.ts'
import { BEGIN, DAY_MS, device, planeOf } from '../support/registry-plane.ts'
import { snapshotOf } from '../support/registry-replica.ts'

const KEEP = { expiredMs: 10 * DAY_MS, changesMs: DAY_MS, auditMs: 5 * DAY_MS, journalMs: DAY_MS }
const { signal } = new AbortController()

async function registryOf(t: Test, more: { journal?: string } = {}) {
  const path = join(t.testdir({}), 'registry.db')
  const registry = await openRegistry(path, {
    trustDomain: 'plane.test',
    epoch: 'epoch-1',
    now: BEGIN,
    ...more,
  })
  t.teardown(() => registry.close())
  const plane = planeOf(registry)
  const log = { info: () => {} } as never // what is logged is not looked at
  const prune = () =>
    pruneAll({ registry, log, now: plane.now }, { retention: KEEP, pruneJournal: () => 0, signal })
  return { path, registry, plane, prune }
}

t.test('old changes and entries go, and the chain of what stays is verified as before', async (t) => {
  const { path, registry, plane, prune } = await registryOf(t)
  for (let day = 0; day < 8; day++) {
    await plane.enroll(`day-${day}`)
    await plane.hold(`hold-${day}`, device(`day-${day}`))
    plane.pass(DAY_MS)
  }
  const [before, state] = [
    await registry.listAudit(0, 1000),
    (await snapshotOf(registry, plane.now())).contents(plane.now()),
  ]
  const { position } = await registry.cursor()
  const pruned = await prune()
  t.ok(pruned.log > 0)
  const after = await registry.listAudit(0, 1000)
  t.ok(after.length < before.length)
  t.ok(after.every(({ at }) => at >= plane.now() - 5 * DAY_MS))
  t.equal((await registry.cursor()).position, position, 'numbers go on')
  const oldest = await registry.oldestPosition()
  t.equal((await registry.changesAfter(0, 1))[0]?.position, oldest + 1)
  t.ok((await registry.changesAfter(0, 1000)).every(({ at }) => at >= plane.now() - DAY_MS))
  t.equal(await registry.verifyAudit(), null)
  t.strictSame(
    (await snapshotOf(registry, plane.now())).contents(plane.now()),
    state,
    'a snapshot is what it was',
  )
  t.match(await prune(), { log: 0, certificates: 0 }, 'and there is nothing left to do')

  const rival = openSqlite(path, { busyTimeoutMs: 1000, migrations: MIGRATIONS })
  t.teardown(() => rival.close())
  const verdict = async (sql: string) => {
    rival.exec('SAVEPOINT tampering')
    rival.exec(sql)
    rival.exec('RELEASE tampering')
    return registry.verifyAudit()
  }
  const kept =
    rival.prepare<[], { value: string }>(`SELECT value FROM meta WHERE name = 'pruned'`).get()?.value ?? ''
  const first = after[0]?.sequence ?? 0
  const begin = `UPDATE meta SET value = json_set(value, '$.sequence', ${first}, '$.hash', '${after[0]?.hash}') WHERE name = 'pruned'`
  t.not(
    await verdict(`${begin}; DELETE FROM audit WHERE sequence = ${first}`),
    null,
    'a beginning that was made up is found',
  )
  rival.prepare(`UPDATE meta SET value = ? WHERE name = 'pruned'`).run(kept)
  t.equal(await verdict('DELETE FROM audit WHERE sequence = (SELECT MIN(sequence) FROM audit)'), first)
})

t.test(
  'expired certificates go, but none that keeps a device from coming back or an id from being taken',
  async (t) => {
    const { registry, plane, prune } = await registryOf(t)
    const lamp = await plane.enroll('lamp')
    const stolen = await plane.enroll('stolen')
    await plane.revoke('p', device('stolen'))
    plane.pass(20 * DAY_MS)
    const renewed = await plane.renew(lamp.fingerprint, 'second key')
    plane.pass(15 * DAY_MS)
    const third = await plane.renew(renewed.fingerprint, 'third key')
    t.match(await prune(), { certificates: 0 }, 'not within the time after they have expired')
    plane.pass(6 * DAY_MS)
    t.match(await prune(), { certificates: 1 })
    t.equal(await registry.findCredential(lamp), null)
    t.ok(await registry.findCredential(renewed))
    plane.pass(400 * DAY_MS)
    t.match(await prune(), { certificates: 1 })
    t.equal(await registry.findCredential(renewed), null)
    t.ok(await registry.findCredential(third), 'the newest of a device stays')
    t.ok(await registry.findCredential(stolen), 'a revoked one stays')
    await t.rejects(plane.begin('token of stolen', 'stolen', 'key of stolen'), { code: 'token_tombstone' })
    await plane.token('another')
    await t.rejects(plane.begin('another', 'lamp', 'key of a thief'), { code: 'id_taken' })
    t.equal((await registry.revokedBy(plane.issuer.id, 0)).length, 1)
    t.equal(await registry.verifyAudit(), null)
  },
)

t.test('a broker that was away for longer than the log reaches back takes a snapshot', async (t) => {
  const clock = { offsetMs: 0 }
  const service = await startEnrollment(t, { data: t.testdir({}), clock })
  const broker = await enrollBroker(service, 'b1')
  await enrollDevice(service, { id: 'lamp' })
  const { registry } = service.deps
  const { epoch, position } = await registry.cursor()
  await enrollDevice(service, { id: 'pump' })
  await enrollDevice(service, { id: 'valve' })
  const first = async (from: number) => {
    const client = service.adminClient(broker)
    const reply = await client.stream(`/v1/feed?epoch=${epoch}&position=${from}`)
    const { value } = await createInterface({ input: reply })[Symbol.asyncIterator]().next()
    client.close()
    return JSON.parse(value ?? '')
  }
  t.match(await first(position), { type: 'change', position: position + 1 })
  const of = { changesBefore: service.deps.now() + 1, auditBefore: 0, limit: 1000 }
  t.ok((await registry.pruneLogs(of, { now: service.deps.now(), by: 'plane' })) > 0)
  t.match(await first(position), { type: 'snapshot', epoch })
  const oldest = await registry.oldestPosition()
  t.match(await first(oldest), { type: 'change', position: oldest + 1 })
})

t.test(
  'entries that are cut off back to before the signed head are found, and so is a head that was forged',
  async (t) => {
    const base = t.testdir({})
    const service = await startEnrollment(t, { data: base })
    await enrollDevice(service, { id: 'lamp' })
    const { auditHead, registry } = layout(service.config.layout.root)
    await service.stop() // signs the newest entry
    const open = () => startEnrollment(t, { data: base })
    const again = await open()
    t.match(await again.admin.verifyAudit(), { ok: true, firstBad: null, head: { state: 'good' } })
    await again.stop()
    const signed = JSON.parse(readFileSync(auditHead, 'utf8'))

    const db = openSqlite(registry, { busyTimeoutMs: 1000, migrations: MIGRATIONS })
    const last = db
      .prepare<[], { position: number }>(
        'SELECT MAX(last_position) AS position FROM audit WHERE sequence < 5',
      )
      .get()
    db.exec(`DELETE FROM audit WHERE sequence >= 5; DELETE FROM changes WHERE position > ${last?.position};
    UPDATE sqlite_sequence SET seq = 4 WHERE name = 'audit';
    UPDATE sqlite_sequence SET seq = ${last?.position} WHERE name = 'changes'`)
    db.close()
    const cut = await open()
    const verdict = await cut.admin.verifyAudit()
    t.match(verdict, { ok: false, head: { state: 'good', sequence: signed.sequence } })
    t.type(verdict.firstBad, 'number')
    await cut.stop()
    t.strictSame(
      JSON.parse(readFileSync(auditHead, 'utf8')),
      signed,
      'the head that shows it is not written over',
    )

    writeFileSync(auditHead, JSON.stringify({ ...signed, sequence: 4 }))
    const forged = await open()
    t.match(await forged.admin.verifyAudit(), { ok: false, head: { state: 'forged' } })
    await forged.stop()
    t.match(JSON.parse(readFileSync(auditHead, 'utf8')), { sequence: 4 })
    rmSync(auditHead)
    const without = await open()
    await without.stop()
    t.match(JSON.parse(readFileSync(auditHead, 'utf8')), { issuer: signed.issuer })
  },
)

t.test(
  'the journal keeps what the backups within the time need, and everything without a backup',
  async (t) => {
    const directory = t.testdir({})
    for (const first of [1, 11, 21, 31])
      writeFileSync(join(directory, `${String(first).padStart(12, '0')}.log`), '')
    const left = () => segmentPaths(directory).map((path) => Number(path.slice(-16, -4)))
    const note = (madeAt: number, commit: number) =>
      writeFileSync(join(directory, `backup-${madeAt}.json`), JSON.stringify({ madeAt, commit }))
    t.equal(pruneJournal(directory, 1000), 0)
    note(100, 12)
    t.equal(pruneJournal(directory, 1000), 1, 'the newest backup is kept however old it is')
    t.strictSame(left(), [11, 21, 31])
    note(2000, 35)
    note(1500, 22)
    t.equal(pruneJournal(directory, 1000), 1)
    t.strictSame(left(), [21, 31])
    t.equal(pruneJournal(directory, 1600), 1)
    t.strictSame(left(), [31])
    renameSync(join(directory, 'backup-2000.json'), join(directory, 'note'))
    writeFileSync(join(directory, 'backup-3000.json'), 'damaged')
    t.equal(pruneJournal(directory, 5000), 0)
  },
)
