import { spawnSync } from 'node:child_process'
import { existsSync, rmSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import t from 'tap'
import { lockDirectory } from '#shared/sqlite'
import { startEnrollment } from '../support/enrollment.ts'
import { underClock } from '../support/fake-clock.ts'
import { scratch } from '../support/muster.ts'
import { MUSTER } from '../support/plane.ts'

/** Starts the service under another clock, which it must refuse. */
function startAt(at: string, data: string) {
  const command = [MUSTER, 'enrollment', '--data', data, '--port-base', '19000']
  const options = { env: underClock(at), encoding: 'utf8', timeout: 60_000 } as const
  const { status, stderr } = spawnSync(process.execPath, command, options)
  return { status, stderr }
}

t.test('what a killed process under another clock has left behind ends no later one', async (t) => {
  const { pid } = spawnSync('true')
  const [stale, live] = [pid, process.pid].map((id) => `/dev/shm/faketime_shm_${id}`) as [string, string] // of two
  for (const path of [stale, live]) writeFileSync(path, '')
  t.teardown(() => rmSync(live, { force: true }))
  underClock('+1d')
  t.notOk(existsSync(stale), 'its pid may come again')
  t.ok(existsSync(live), 'this process is there')
})

t.test('a machine whose clock was never set makes no CA', async (t) => {
  const data = join(scratch(t), 'data')
  const { status, stderr } = startAt('@1970-01-02 00:00:00', data)
  t.equal(status, 8)
  t.match(stderr, /Cannot sign: the clock says 1970-01-0\d.*set the clock/)
  t.notOk(existsSync(join(data, 'ca', 'root.crt')))
})

t.test('a clock that has gone back signs nothing, and spoils nothing', async (t) => {
  const base = scratch(t)
  const service = await startEnrollment(t, { data: base })
  await service.stop()
  lockDirectory(join(service.config.layout.enrollment, 'lock.db')).release()
  const { status, stderr } = startAt('-2d', service.config.layout.root)
  t.equal(status, 8)
  t.match(stderr, /Cannot sign/)
  await t.resolves(startEnrollment(t, { data: base }))
})
