import { closeSync, openSync, rmSync, statSync, writeSync } from 'node:fs'
import { join } from 'node:path'
import t, { type Test } from 'tap'
import { layout } from '#shared/layout'
import { openSqlite } from '#shared/sqlite'
import { RESERVE_OCTETS } from '../../enrollment/registry/reserve.ts'
import { MIGRATIONS } from '../../enrollment/registry/schema.ts'
import { breakDisk, type DiskFault, fillDisk, smallDisk } from '../support/disk-faults.ts'
import { newRequest } from '../support/enrollment.ts'
import { type ServingEnrollment, serveEnrollment, spawnEnrollment } from '../support/enrollment-process.ts'
import { freePortBase, scratch } from '../support/muster.ts'
import { faultsOf, replayFaults, Told } from '../support/registry-invariants.ts'

t.setTimeout(240_000)

/** Put in force on a full disk. */
const HOLDS = 20
const FIRST_SEGMENT = '000000000001.log'

interface Place {
  readonly data: string
  readonly portBase: number
}

async function newPlace(t: Test): Promise<Place> {
  return { data: join(scratch(t), 'data'), portBase: await freePortBase() }
}

/** Files of the registry, and the newest of its journal. */
function filesOf({ data }: Place) {
  const { registry, journal } = layout(data)
  return { db: registry, wal: `${registry}-wal`, journal: join(journal, FIRST_SEGMENT) }
}

/** Enrolls until it gets the certificate; tells what the answers before it were. */
async function enroll(service: ServingEnrollment, request: { token: string; csr: string }) {
  const client = service.client()
  return client.send('POST', '/v1/enroll', { json: request }).finally(() => client.close())
}

/** The same request over EST. */
async function enrollByEst(service: ServingEnrollment, { token, der }: { token: string; der: Buffer }) {
  const client = service.client()
  const headers = {
    'content-type': 'application/pkcs10',
    authorization: `Basic ${Buffer.from(`:${token}`).toString('base64')}`,
  }
  const body = der.toString('base64')
  return client.send('POST', '/.well-known/est/simpleenroll', { body, headers }).finally(() => client.close())
}

/** What needs no write is answered whatever the disk does. */
async function checkReads(t: Test, service: ServingEnrollment): Promise<void> {
  t.match(await service.admin.status(), { trustDomain: 'muster.local' }, 'status')
  t.ok((await service.admin.listDevices()).devices.length > 0, 'devices')
  const client = service.client()
  for (const path of ['/healthz', '/v1/ca', '/.well-known/est/cacerts', '/.well-known/est/csrattrs'])
    t.equal((await client.send('GET', path)).status, 200, path)
}

const FAULTS: Readonly<Record<string, (files: ReturnType<typeof filesOf>) => DiskFault>> = {
  'no space for the database': ({ wal }) => ({ calls: 'pwrite64', error: 'ENOSPC', paths: [wal] }),
  'no space for the journal': ({ journal }) => ({ calls: 'pwrite64', error: 'ENOSPC', paths: [journal] }),
  'a database that cannot be synced': ({ wal }) => ({ calls: 'fsync', error: 'EIO', paths: [wal] }),
  'a journal that cannot be synced': ({ journal }) => ({ calls: 'fsync', error: 'EIO', paths: [journal] }),
  'a disk that became read-only': ({ db, wal, journal }) => ({
    calls: 'pwrite64,ftruncate',
    error: 'EROFS',
    paths: [db, wal, journal],
  }),
}

/** Three requests of one fault: the renewal of a device that is enrolled, and two that enroll. */
async function requestsOf(service: ServingEnrollment, of: { token: string; name: string; told: Told }) {
  const { token, name, told } = of
  const keep = (text: string) => {
    const { serial, certificate } = JSON.parse(text)
    told.certificates.set(serial, certificate)
    return certificate as string // of the reply to an enrollment
  }
  const first = await newRequest(`${name}-1`)
  const certificate = keep((await enroll(service, { token, csr: first.csr })).text)
  const [next, second, third] = await Promise.all([1, 2, 3].map((number) => newRequest(`${name}-${number}`)))
  const renewing = service.client({ key: first.key, certificate })
  return {
    keep,
    renew: () => renewing.send('POST', '/v1/renew', { json: { csr: next?.csr } }),
    json: () => enroll(service, { token, csr: second?.csr ?? '' }),
    est: () => enrollByEst(service, { token, der: third?.der ?? Buffer.alloc(0) }),
  }
}

t.test('what the disk refuses is refused whole, heals by itself, and reads go on', async (t) => {
  const place = await newPlace(t)
  const service = await serveEnrollment(t, place)
  const told = new Told()
  const { token } = await service.admin.createToken({ batch: 'lab', uses: 15 })
  for (const [index, [title, fault]] of Object.entries(FAULTS).entries()) {
    await t.test(title, async (t) => {
      const requests = await requestsOf(service, { token, name: `disk-${index}`, told })
      const heal = await breakDisk(t, service.child.pid ?? 0, fault(filesOf(place)))
      const refusal = { status: 503, headers: { 'retry-after': '5' } }
      for (let time = 0; time < 2; time++) {
        t.match(await requests.json(), { ...refusal, text: /"code":"unavailable"/ })
        t.match(await requests.est(), { ...refusal, headers: { 'content-type': /^text\/plain/ } })
        t.match(await requests.renew(), refusal)
      }
      await t.rejects(service.admin.createToken({ batch: 'lab', uses: 1 }), { code: 'unavailable' })
      await checkReads(t, service)
      await heal()
      await enrollAtLast(requests.json)
      t.equal((await requests.est()).status, 200, 'and over EST')
      for (const request of [requests.json, requests.renew]) requests.keep((await request()).text)
      t.strictSame(faultsOf(place.data, told), [])
    })
  }
  await service.kill()
  t.strictSame(replayFaults(place.data), [])
})

t.test(
  'a commit whose sync failed, and a crash: no start finds it without its line in the journal',
  async (t) => {
    const place = await newPlace(t)
    const { wal, journal } = filesOf(place)
    const service = await serveEnrollment(t, place)
    const { token } = await service.admin.createToken({ batch: 'lab', uses: 2 })
    const request = { token, csr: (await newRequest('disk-1')).csr }
    const pid = service.child.pid ?? 0
    const heal = await breakDisk(t, pid, { calls: 'fsync', error: 'EIO', paths: [wal] })
    t.match(
      await enroll(service, request),
      { status: 503 },
      'its commit is whole in the WAL, and not in force',
    )
    await heal()
    await breakDisk(t, pid, { calls: 'pwrite64', error: 'EIO', paths: [journal] })
    t.match(await enroll(service, request), { status: 503 }, 'its line is gone from the journal')
    await service.kill()
    t.strictSame(replayFaults(place.data), [])
    const again = await serveEnrollment(t, place)
    t.equal((await enroll(again, request)).status, 200)
    t.strictSame(faultsOf(place.data, new Told()), [])
    await again.kill()
    t.strictSame(replayFaults(place.data), [])
  },
)

t.test(
  'a registry that another process has locked: 503 after some seconds, and reads meanwhile',
  async (t) => {
    const place = await newPlace(t)
    const service = await serveEnrollment(t, place)
    const { token } = await service.admin.createToken({ batch: 'lab', uses: 1 })
    const request = { token, csr: (await newRequest('disk-1')).csr }
    const other = openSqlite(layout(place.data).registry, { busyTimeoutMs: 5_000, migrations: MIGRATIONS })
    t.teardown(() => other.close())
    other.exec('BEGIN IMMEDIATE')
    const refused = enroll(service, request)
    t.match(await service.admin.status(), { trustDomain: 'muster.local' })
    t.match(await refused, { status: 503, headers: { 'retry-after': '5' } })
    other.exec('ROLLBACK')
    t.equal((await enroll(service, request)).status, 200)
  },
)

t.test('a registry that is damaged is not served, and the start says how to restore it', async (t) => {
  const place = await newPlace(t)
  const { db } = filesOf(place)
  const service = await serveEnrollment(t, place)
  await service.stop()
  openSqlite(db, { busyTimeoutMs: 5_000, migrations: MIGRATIONS }).close() // from here on nothing is in the WAL
  for (const at of [4096, 0]) {
    const file = openSync(db, 'r+')
    writeSync(file, Buffer.alloc(60_000, 'x'), 0, 60_000, at)
    closeSync(file)
    const { ready, ended, stderr } = spawnEnrollment(t, place)
    await t.rejects(ready)
    t.match(await ended, { status: 8 })
    t.match(stderr(), /is damaged \(SQLITE_(NOTADB|CORRUPT).*muster ca restore/)
  }
})

t.test('a disk that refuses counts against nobody, however often he comes back', async (t) => {
  const place = await newPlace(t)
  const service = await serveEnrollment(t, place)
  const { token } = await service.admin.createToken({ batch: 'lab', uses: 1 })
  const request = { token, csr: (await newRequest('disk-1')).csr }
  const { wal } = filesOf(place)
  const fault = { calls: 'pwrite64', error: 'ENOSPC', paths: [wal] } as const
  const heal = await breakDisk(t, service.child.pid ?? 0, fault)
  const client = service.client()
  const statuses = new Set<number>()
  for (let time = 0; time < 320; time++)
    statuses.add((await client.send('POST', '/v1/enroll', { json: request })).status)
  t.strictSame([...statuses], [503])
  await heal()
  t.equal((await enroll(service, request)).status, 200)
})

t.test('on a full disk nobody enrolls, a hold is put in force, and space heals both', async (t) => {
  const disk = smallDisk(t, 48)
  const place = { data: join(disk, 'data'), portBase: await freePortBase() }
  const told = new Told()
  const service = await serveEnrollment(t, place)
  const { token } = await service.admin.createToken({ batch: 'lab', uses: 2 })
  const first = await enroll(service, { token, csr: (await newRequest('disk-1')).csr })
  const { serial, certificate } = JSON.parse(first.text)
  told.certificates.set(serial, certificate)
  fillDisk(join(disk, 'full'))
  const second = { token, csr: (await newRequest('disk-2')).csr }
  t.match(await enroll(service, second), { status: 503, headers: { 'retry-after': '5' } })
  for (let hold = 0; hold < HOLDS; hold++) {
    const { id, counts } = await service.admin.proposePlan({ action: 'hold', devices: ['disk-1'] })
    t.match(await service.admin.applyPlan(id, counts.devices), { state: 'applied' })
    told.applied.add(id)
  }
  t.equal(statSync(join(place.data, 'journal', 'reserve')).size, 0, 'it took what is reserved for it')
  t.match(await enroll(service, second), { status: 503 }, 'which is for nobody else')
  t.strictSame(faultsOf(place.data, told), [])
  rmSync(join(disk, 'full'))
  await enrollAtLast(() => enroll(service, second))
  t.equal(statSync(join(place.data, 'journal', 'reserve')).size, RESERVE_OCTETS, 'and it is reserved again')
  await service.kill()
  t.strictSame(replayFaults(place.data), [])
})

/** The service looks for room once a second; it has hung when it finds none in five thousand requests. */
async function enrollAtLast(request: () => Promise<{ status: number }>): Promise<void> {
  for (let time = 0; time < 5_000; time++) if ((await request()).status === 200) return
  throw new Error('it does not heal')
}
