import { chmodSync, statSync } from 'node:fs'
import { join } from 'node:path'
import t from 'tap'
import { prepareDirectory } from '../../operator/preflight.ts'

t.test('a data directory that everybody may write to is not used', async (t) => {
  const path = join(t.testdir({ data: {} }), 'data')
  for (const mode of [0o777, 0o1777, 0o702]) {
    chmodSync(path, mode)
    t.throws(() => prepareDirectory(path), { code: 'directory_unusable', message: /chmod o-w/ })
  }
  for (const mode of [0o700, 0o755, 0o775]) {
    chmodSync(path, mode)
    prepareDirectory(path)
  }
  const made = join(path, 'new')
  prepareDirectory(made)
  t.equal(statSync(made).mode & 0o777, 0o700)
})
