import { chmodSync, statSync, symlinkSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import t from 'tap'
import { makeDirectory } from '#shared/directory'
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

t.test('where no directory can be made, it says so in a sentence', async (t) => {
  const base = t.testdir()
  writeFileSync(join(base, 'file'), '')
  symlinkSync(join(base, 'nowhere'), join(base, 'link'))
  const places: [string, RegExp][] = [
    [join(base, 'file'), /a file has that name/],
    [join(base, 'file', 'below', 'it'), /a part of it is a file/],
    [join(base, 'link'), /a file has that name/],
  ]
  // where Node's own recursive mkdir goes on for ever
  if (process.platform === 'linux') places.push(['/proc/muster/data', /no directory can be made there/])
  for (const [path, says] of places) {
    t.throws(() => prepareDirectory(path), { code: 'directory_unusable', message: says }, path)
  }
  t.throws(() => makeDirectory(join(base, 'file'), '--journal'), {
    message: /choose another with --journal$/,
  })
  makeDirectory(join(base, 'a', 'b', 'c'))
  for (const path of ['a', 'a/b', 'a/b/c']) t.equal(statSync(join(base, path)).mode & 0o777, 0o700, path)
  makeDirectory(join(base, 'a', 'b', 'c'))
})
