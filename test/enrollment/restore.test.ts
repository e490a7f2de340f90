import {
  appendFileSync,
  cpSync,
  existsSync,
  readdirSync,
  readFileSync,
  renameSync,
  rmSync,
  statSync,
  writeFileSync,
} from 'node:fs'
import { join } from 'node:path'
import { setTimeout } from 'node:timers/promises'
import t, { type Test } from 'tap'
import { layout } from '#shared/layout'
import { sha256Hex } from '#shared/pki/keys'
import { enroll } from '../../enrollment/enroll.ts'
import { openMaintenance } from '../../enrollment/maintenance.ts'
import { openArchive } from '../../enrollment/registry/archive.ts'
import { openRegistry } from '../../enrollment/registry/open.ts'
import { createToken } from '../../enrollment/tokens.ts'
import { enrollDevice, newRequest, type RunningEnrollment, startEnrollment } from '../support/enrollment.ts'
import fc from '../support/properties.ts'

const maintenance = openMaintenance()

/** A plane with one revoked device and a backup, after which another was enrolled and a third revoked. */
async function planeWithBackup(t: Test) {
  const base = t.testdir({})
  const service = await startEnrollment(t, { data: base })
  const data = service.config.layout.root
  const early = await enrollDevice(service, { id: 'early' })
  const stolen = await enrollDevice(service, { id: 'stolen' })
  await revoke(service, await enrollDevice(service, { id: 'first' }).then(({ id }) => id))
  const out = join(base, 'backup.tar')
  const made = maintenance.backup({ data, out, journal: null })
  const late = await enrollDevice(service, { id: 'late' })
  await revoke(service, 'stolen')
  const before = {
    cursor: await service.deps.registry.cursor(),
    crl: (await service.admin.status()).crl.number,
    audit: (await service.admin.listAudit({ after: 0, limit: 1000 })).length,
  }
  await service.stop()
  const restore = (more: { acceptLoss?: boolean; journal?: string } = {}) =>
    maintenance.restore({
      data,
      backup: out,
      journal: more.journal ?? null,
      acceptLoss: more.acceptLoss ?? false,
    })
  return { base, data, out, made, early, stolen, late, before, restore }
}

async function revoke(service: RunningEnrollment, device: string): Promise<void> {
  const { number } = (await service.admin.status()).crl
  const plan = await service.admin.proposePlan({
    action: 'revoke',
    scope: { kind: 'device', id: device },
    reason: 'keyCompromise',
    undoMs: 0,
  })
  await service.admin.applyPlan(plan.id, plan.counts.devices)
  const signal = AbortSignal.timeout(20_000)
  while (!signal.aborted && (await service.admin.status()).crl.number === number) await setTimeout(50)
}

t.test('an old backup and the journal lose nothing, and start a new epoch', async (t) => {
  const plane = await planeWithBackup(t)
  t.equal(statSync(plane.out).mode & 0o777, 0o600)
  rmSync(layout(plane.data).registry)
  for (const end of ['-wal', '-shm']) rmSync(`${layout(plane.data).registry}${end}`, { force: true })
  const again = startEnrollment(t, { data: plane.base })
  await t.rejects(
    again,
    { code: 'directory_unusable', message: /ca restore/ },
    'a registry that is gone is not made anew',
  )
  const restored = await plane.restore()
  t.match(restored, { lost: [], revokedAgain: [] })
  t.ok(restored.replayed > 0)
  const service = await startEnrollment(t, { data: plane.base })
  const { registry } = service.deps
  for (const { serial } of [plane.early, plane.late]) {
    t.equal((await registry.findCredential({ serial }))?.certificate.state, 'issued')
  }
  t.equal((await registry.findCredential({ serial: plane.stolen.serial }))?.certificate.state, 'revoked')
  t.equal(await registry.verifyAudit(), null)
  t.ok((await service.admin.listAudit({ after: 0, limit: 1000 })).length > plane.before.audit)
  const cursor = await registry.cursor()
  t.not(cursor.epoch, plane.before.cursor.epoch)
  t.ok(cursor.position >= plane.before.cursor.position)
  t.ok((await service.admin.status()).crl.number > plane.before.crl, 'CRL numbers rise')
})

t.test(
  'without the journal nothing is restored, unless the loss is accepted, and then nothing is un-revoked',
  async (t) => {
    const plane = await planeWithBackup(t)
    const { registry, journal } = layout(plane.data)
    const [kept, database] = [join(plane.base, 'kept-journal'), readFileSync(registry)]
    cpSync(journal, kept, { recursive: true })
    rmSync(journal, { recursive: true })
    await t.rejects(plane.restore(), {
      code: 'check_failed',
      message: /no journal.*1 certificate\(s\), 1 revocation/,
    })
    t.ok(readFileSync(registry).equals(database), 'and the registry that was there is as it was')
    rmSync(registry)
    for (const end of ['-wal', '-shm']) rmSync(`${registry}${end}`, { force: true })
    await t.rejects(plane.restore(), { code: 'check_failed', message: /1 revocation/ }, 'the CRL remembers')
    const restored = await plane.restore({ acceptLoss: true })
    t.match(restored, { revokedAgain: [plane.stolen.serial] })
    const service = await startEnrollment(t, { data: plane.base })
    t.equal(
      (await service.deps.registry.findCredential({ serial: plane.stolen.serial }))?.certificate.state,
      'revoked',
    )
    t.equal(await service.deps.registry.findCredential({ serial: plane.late.serial }), null)
    const { id } = service.deps.authority.device
    t.equal((await service.deps.registry.revokedBy(id, 0)).length, 2)
    await service.stop()

    t.test('a journal with a gap names what is lost', async (t) => {
      rmSync(journal, { recursive: true })
      cpSync(kept, journal, { recursive: true })
      const [segment = ''] = readdirSync(journal).filter((name) => name.endsWith('.log'))
      const lines = readFileSync(join(journal, segment), 'utf8').split('\n')
      writeFileSync(join(journal, segment), lines.toSpliced(plane.made.commit + 1, 1).join('\n'))
      await t.rejects(plane.restore(), { code: 'check_failed', message: /damaged/ })
      const result = await plane.restore({ acceptLoss: true })
      t.strictSame(result.lost, [plane.late.serial])
      t.ok(
        readdirSync(journal).some((name) => name.startsWith('before-')),
        'what does not go on is set aside',
      )
      const after = await openRegistry(registry, {
        trustDomain: 'muster.local',
        epoch: 'x',
        now: Date.now(),
        journal,
      })
      t.equal(await after.verifyAudit(), null)
      await after.close()
    })
  },
)

t.test('a journal whose end is missing is noticed by what else remembers', async (t) => {
  const plane = await planeWithBackup(t)
  const { journal } = layout(plane.data)
  const [segment = ''] = readdirSync(journal).filter((name) => name.endsWith('.log'))
  const lines = readFileSync(join(journal, segment), 'utf8').split('\n')
  writeFileSync(join(journal, segment), `${lines.slice(0, plane.made.commit + 2).join('\n')}\n`)
  await t.rejects(plane.restore(), {
    code: 'check_failed',
    message: /not the newest.*1 certificate\(s\), 1 revocation/,
  })
})

t.test('a running plane is not restored over, nor one of another authority', async (t) => {
  const plane = await planeWithBackup(t)
  const service = await startEnrollment(t, { data: plane.base })
  await t.rejects(plane.restore(), { code: 'directory_in_use' })
  await service.stop()
  const other = await startEnrollment(t, { data: join(plane.base, 'other') })
  await other.stop()
  const into = maintenance.restore({
    data: other.config.layout.root,
    backup: plane.out,
    journal: layout(plane.data).journal,
    acceptLoss: true,
  })
  await t.rejects(into, { code: 'conflict', message: /another authority/ })
})

t.test('a backup moves a plane to an empty machine, with the journal and the passphrase', async (t) => {
  const plane = await planeWithBackup(t)
  const data = join(plane.base, 'elsewhere', 'plane')
  await maintenance.restore({
    data,
    backup: plane.out,
    journal: layout(plane.data).journal,
    acceptLoss: false,
  })
  t.notOk(existsSync(join(data, 'ca', 'passphrase')), 'the passphrase is in no backup')
  await t.rejects(startEnrollment(t, { data: join(plane.base, 'elsewhere') }), { code: 'passphrase_wrong' })
  cpSync(join(plane.data, 'ca', 'passphrase'), join(data, 'ca', 'passphrase'))
  cpSync(layout(plane.data).journal, layout(data).journal, { recursive: true })
  const service = await startEnrollment(t, { data: join(plane.base, 'elsewhere') })
  t.equal(
    (await service.deps.registry.findCredential({ serial: plane.late.serial }))?.certificate.state,
    'issued',
  )
})

t.test('no secret is in a backup, and one that was touched is refused', async (t) => {
  const plane = await planeWithBackup(t)
  const content = readFileSync(plane.out)
  const passphrase = readFileSync(join(plane.data, 'ca', 'passphrase'), 'utf8').trim()
  t.notOk(content.includes(passphrase))
  t.notOk(
    content.includes('BEGIN PRIVATE KEY') ||
      content.includes(plane.late.token) ||
      content.includes(plane.early.token),
  )
  t.throws(() => maintenance.backup({ data: plane.data, out: plane.out, journal: null }), {
    code: 'conflict',
  })
  const touched = join(plane.base, 'touched.tar')
  const size = openArchive(plane.out).manifest.files.reduce((sum, { octets }) => sum + octets, 1024)
  const touch = fc.record({ at: fc.integer({ min: 0, max: size }), bit: fc.integer({ min: 0, max: 7 }) })
  fc.assert(
    fc.property(touch, ({ at, bit }) => {
      const copy = Buffer.from(content)
      copy[at] = (copy[at] ?? 0) ^ (1 << bit)
      writeFileSync(touched, copy)
      try {
        // padding and the parts of a header that say nothing may differ; what is restored may not
        const archive = openArchive(touched)
        t.strictSame(archive.manifest, openArchive(plane.out).manifest)
      } catch (error) {
        t.match(error, { code: 'check_failed' })
      }
      writeFileSync(touched, content.subarray(0, at))
      t.throws(() => openArchive(touched), { code: 'check_failed' })
    }),
    { numRuns: 100 },
  )
  writeFileSync(touched, 'not a backup')
  t.throws(() => openArchive(touched), { code: 'check_failed' })
  appendFileSync(touched, Buffer.alloc(4096))
  t.throws(() => openArchive(touched), { code: 'check_failed' })
})

t.test('a backup from before the clock was ahead is the way back from what was issued then', async (t) => {
  const base = t.testdir({})
  const service = await startEnrollment(t, { data: base })
  const data = service.config.layout.root
  const early = await enrollDevice(service, { id: 'early' })
  const backup = join(base, 'backup.tar')
  maintenance.backup({ data, out: backup, journal: null })
  await service.stop()
  const ahead = await startEnrollment(t, { data: base, clock: { offsetMs: 60 * 86_400_000 } })
  const { token } = await createToken(ahead.deps, { batch: 'lab', uses: 1, by: 'operator:test' })
  const { der: csr } = await newRequest('future')
  const channel = { tlsUnique: null, why: 'no connection' } as const
  await enroll(ahead.deps, { tokenHash: sha256Hex(token), csr, label: null, channel })
  await ahead.stop()
  const refused = {
    code: 'clock_wrong',
    message: /a certificate was issued for .*wait until .*restore a backup/,
  }
  await t.rejects(startEnrollment(t, { data: base }), refused)
  await t.rejects(
    startEnrollment(t, { data: base, clockIsRight: true }),
    refused,
    'whatever the operator says',
  )
  renameSync(layout(data).journal, join(base, 'journal-of-the-future'))
  const restored = await maintenance.restore({ data, backup, journal: null, acceptLoss: true })
  t.equal(restored.lost.length, 1, 'what was issued in the future is named')
  const after = await startEnrollment(t, { data: base })
  t.equal((await after.deps.registry.findCredential({ serial: early.serial }))?.certificate.state, 'issued')
  await enrollDevice(after, { id: 'today' })
})
