import { spawnSync } from 'node:child_process'
import { existsSync } from 'node:fs'
import { join } from 'node:path'
import t from 'tap'
import { lockDirectory } from '#shared/sqlite'
import { startEnrollment } from '../support/enrollment.ts'
import { PLAIN_NODE, scratch } from '../support/muster.ts'
import { MUSTER } from '../support/plane.ts'

/** Starts the service under another clock, which it must refuse; libfaketime stands between it and the kernel. */
function startAt(at: string, data: string) {
  const command = ['env', ...PLAIN_NODE, MUSTER, 'enrollment', '--data', data, '--port-base', '19000']
  const { status, stderr } = spawnSync('faketime', [at, ...command], { encoding: 'utf8', timeout: 60_000 })
  return { status, stderr }
}

t.test('a machine whose clock was never set makes no CA', async (t) => {
  const data = join(scratch(t), 'data')
  const { status, stderr } = startAt('1970-01-02 00:00:00', data)
  t.equal(status, 8)
  t.match(stderr, /Cannot sign: the clock says 1970-01-0\d.*set the clock/)
  t.notOk(existsSync(join(data, 'ca', 'root.crt')))
})

t.test('a clock that has gone back signs nothing, and spoils nothing', async (t) => {
  const base = scratch(t)
  const service = await startEnrollment(t, { data: base })
  await service.stop()
  lockDirectory(join(service.config.layout.enrollment, 'lock.db')).release()
  const yesterday = new Date(Date.now() - 2 * 86_400_000).toISOString().slice(0, 19).replace('T', ' ')
  const { status, stderr } = startAt(yesterday, service.config.layout.root)
  t.equal(status, 8)
  t.match(stderr, /Cannot sign/)
  await t.resolves(startEnrollment(t, { data: base }))
})
