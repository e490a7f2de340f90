import {
  chmodSync,
  chownSync,
  existsSync,
  lstatSync,
  readFileSync,
  statSync,
  symlinkSync,
  writeFileSync,
} from 'node:fs'
import { join } from 'node:path'
import t from 'tap'
import { readCredential, readSecretFile, writeSecretFile } from '#shared/files'

t.test('a secret does not go where somebody else has put something in its way', async (t) => {
  const directory = t.testdir()
  const path = join(directory, 'broker.key')
  const beside = `${path}.${process.pid}.new`
  const theirs = join(directory, 'theirs')

  symlinkSync(theirs, beside)
  writeSecretFile(path, 'secret')
  t.notOk(existsSync(theirs), 'not through a link')
  t.ok(lstatSync(path).isFile())

  writeFileSync(beside, 'longer than the secret')
  chmodSync(beside, 0o666)
  writeSecretFile(path, 'another')
  t.equal(statSync(path).mode & 0o777, 0o600, 'nor into a file that others may read')
  t.equal(readSecretFile(path).toString(), 'another')
})

t.test('a secret that others may read is not used', async (t) => {
  const path = join(t.testdir({ key: 'secret' }), 'key')
  for (const mode of [0o640, 0o604, 0o660]) {
    chmodSync(path, mode)
    t.throws(() => readSecretFile(path), { code: 'key_file_insecure', message: /chmod 600/ })
  }
  chmodSync(path, 0o600)
  t.equal(readFileSync(path, 'utf8'), readSecretFile(path).toString())
})

t.test('a credential of systemd is used, although an access list shows as rights of the group', async (t) => {
  const path = join(t.testdir({ credential: 'secret' }), 'credential')
  for (const mode of [0o400, 0o440, 0o600]) {
    chmodSync(path, mode)
    t.equal(readCredential(path).toString(), 'secret')
  }
  for (const mode of [0o404, 0o444, 0o460, 0o420]) {
    chmodSync(path, mode)
    t.throws(() => readCredential(path), { code: 'key_file_insecure' }, mode.toString(8))
  }
  const foreign = t.intercept(process, 'getuid', { value: () => 12_345 })
  chmodSync(path, 0o440)
  const isRoots = statSync(path).uid === 0
  if (isRoots) {
    t.equal(readCredential(path).toString(), 'secret', "root's, for a service with another user")
    chownSync(path, 4_321, 4_321)
  }
  t.throws(() => readCredential(path), { code: 'key_file_insecure' }, 'of a third user')
  foreign.restore()
})
