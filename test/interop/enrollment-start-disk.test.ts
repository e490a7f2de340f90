import { rmSync } from 'node:fs'
import { join } from 'node:path'
import t, { type Test } from 'tap'
import { layout } from '#shared/layout'
import { asRoot, fillDisk, leaveOnDisk, smallDisk } from '../support/disk-faults.ts'
import { newRequest } from '../support/enrollment.ts'
import {
  type EnrollmentPlace,
  type ServingEnrollment,
  serveEnrollment,
  spawnEnrollment,
} from '../support/enrollment-process.ts'
import { freePortBase, scratch } from '../support/muster.ts'
import { faultsOf, replayFaults, Told } from '../support/registry-invariants.ts'

t.setTimeout(240_000)

async function enroll(service: ServingEnrollment, request: { token: string; csr: string }) {
  const client = service.client()
  return client.send('POST', '/v1/enroll', { json: request }).finally(() => client.close())
}

/** A start that fails says which directory, why, and what to do, and ends with 8. */
async function refusesToStart(t: Test, place: EnrollmentPlace, says: RegExp): Promise<void> {
  const { ready, ended, stderr } = spawnEnrollment(t, place)
  await t.rejects(ready)
  t.match(await ended, { status: 8 })
  t.match(stderr(), says)
  t.notMatch(stderr(), /this is a bug/)
}

t.test('a first start without room says so, and the next one makes good what it has left', async (t) => {
  const disk = smallDisk(t, 48)
  const place = { data: join(disk, 'data'), portBase: await freePortBase() }
  for (const octets of [0, 16 << 10, 300 << 10, 9 << 20]) {
    leaveOnDisk(join(disk, 'full'), octets)
    await refusesToStart(t, place, /no space is left; fix: make room/)
    rmSync(join(disk, 'full'))
  }
  const service = await serveEnrollment(t, place)
  const { token } = await service.admin.createToken({ batch: 'lab', uses: 1 })
  t.equal((await enroll(service, { token, csr: (await newRequest('disk-1')).csr })).status, 200)
  await service.kill()
  t.strictSame(replayFaults(place.data), [])
})

t.test('a start on a full disk, and on one that is read-only, loses nothing', async (t) => {
  const disk = smallDisk(t, 48)
  const place = { data: join(disk, 'data'), portBase: await freePortBase() }
  const told = new Told()
  const before = await serveEnrollment(t, place)
  const { token } = await before.admin.createToken({ batch: 'lab', uses: 1 })
  const request = { token, csr: (await newRequest('disk-1')).csr }
  const { serial, certificate } = JSON.parse((await enroll(before, request)).text)
  told.certificates.set(serial, certificate)
  await before.kill()
  fillDisk(join(disk, 'full'))
  await refusesToStart(t, place, /no space is left; fix: make room/)
  rmSync(join(disk, 'full'))
  asRoot('mount', '-o', 'remount,ro', disk)
  await refusesToStart(t, place, /it is read-only; fix: mount it for writing/)
  asRoot('mount', '-o', 'remount,rw', disk)
  const service = await serveEnrollment(t, place)
  t.match(JSON.parse((await enroll(service, request)).text), { serial })
  t.strictSame(faultsOf(place.data, told), [])
  await service.kill()
  t.strictSame(replayFaults(place.data), [])
})

t.test('a start on a disk that returns errors says so, and the next one serves', async (t) => {
  const place = { data: join(scratch(t), 'data'), portBase: await freePortBase() }
  const told = new Told()
  const before = await serveEnrollment(t, place)
  const { token } = await before.admin.createToken({ batch: 'lab', uses: 1 })
  const request = { token, csr: (await newRequest('disk-1')).csr }
  const { serial, certificate } = JSON.parse((await enroll(before, request)).text)
  told.certificates.set(serial, certificate)
  await before.kill()
  const { registry, journal, rootCertificate } = layout(place.data)
  const touched = [registry, `${registry}-wal`, join(journal, '000000000001.log'), rootCertificate]
  const files = touched.flatMap((path) => ['-P', path])
  for (const call of ['fsync', 'pwrite64', 'pread64', 'openat', 'ftruncate', 'read']) {
    const inject = ['-e', `trace=${call}`, '-e', `inject=${call}:error=EIO`]
    const under = ['strace', '-D', '-f', '-o', '/dev/null', ...inject, ...files]
    await refusesToStart(
      t,
      { ...place, under },
      /\(\w*(EIO|IOERR|CANTOPEN)\w*\): the disk fails; fix: .*ca restore/,
    )
  }
  const service = await serveEnrollment(t, place)
  t.match(JSON.parse((await enroll(service, request)).text), { serial })
  t.strictSame(faultsOf(place.data, told), [])
  await service.kill()
  t.strictSame(replayFaults(place.data), [])
})
