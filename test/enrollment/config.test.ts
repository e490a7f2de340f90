import { chmodSync, readFileSync } from 'node:fs'
import { join } from 'node:path'
import t from 'tap'
import { readConfig, VERSION } from '../../enrollment/config.ts'
import { readPassphrase, readPin } from '../../enrollment/passphrase.ts'
import { keepingArguments } from '../../operator/commands/programs.ts'

t.test('the defaults serve this machine', async (t) => {
  const config = readConfig([], {})
  t.match(config, {
    listen: '127.0.0.1',
    hosts: ['localhost', '127.0.0.1'],
    ports: { enrollment: 8443, admin: 8444, http: 8080 },
    trustDomain: null,
    logLevel: 'info',
    passphrase: { from: 'made' },
    crashAt: null,
  })
  t.ok(Object.isFrozen(config))
})

t.test('public hosts come first, and the local ones are always there', async (t) => {
  const config = readConfig(['--host', 'muster.example', '--host', '10.0.0.7', '--port-base', '9000'], {})
  t.same(config.hosts, ['muster.example', '10.0.0.7', 'localhost', '127.0.0.1'])
  t.match(config.ports, { enrollment: 9443 })
})

t.test('every fault is named in one message', async (t) => {
  const argv = [
    '--port-base',
    '70000',
    '--listen',
    'here',
    '--host',
    'a b',
    '--log-level',
    'loud',
    '--bogus',
    'x',
  ]
  const all = /--bogus.*"x".*--port-base.*--host.*--listen.*--log-level/
  t.throws(() => readConfig([...argv, '--trust-domain', 'Upper'], {}), {
    code: 'config_invalid',
    message: all,
  })
  t.throws(() => readConfig(['--data'], {}), { message: /--data needs a value/ })
  for (const base of ['0', '-1', '1.5', 'x', '64653']) {
    t.throws(() => readConfig([`--port-base=${base}`], {}), { code: 'config_invalid' }, base)
  }
})

t.test('that the clock is right is said for one start, and is said without a value', async (t) => {
  t.equal(readConfig([], {}).clockIsRight, false)
  t.equal(readConfig(['--clock-is-right', '--port-base', '9000'], {}).clockIsRight, true)
  t.throws(() => readConfig(['--clock-is-right=yes'], {}), { message: /--clock-is-right takes no value/ })
  t.strictSame(keepingArguments({ clockIsRight: true }), ['--clock-is-right'], '`muster up` passes it on')
  t.strictSame(keepingArguments({}), [])
})

t.test('passphrase and PIN come from a file, the environment, or a systemd credential', async (t) => {
  t.same(readConfig([], {}).pin, null)
  const text = { MUSTER_CA_PASSPHRASE: 'secret', MUSTER_PKCS11_PIN: '1234' }
  t.same(readConfig([], text).passphrase, { from: 'text', text: 'secret' })
  t.same(readConfig([], text).pin, { from: 'text', text: '1234' })
  const file = { ...text, MUSTER_CA_PASSPHRASE_FILE: '/run/pass', MUSTER_PKCS11_PIN_FILE: '/run/pin' }
  t.same(readConfig([], file).passphrase, { from: 'file', path: '/run/pass' })
  t.same(readConfig([], file).pin, { from: 'file', path: '/run/pin' })
  const directory = t.testdir({ 'muster-pkcs11-pin': '1234' })
  const systemd = readConfig([], { CREDENTIALS_DIRECTORY: directory })
  t.same(systemd.passphrase, { from: 'credential', path: join(directory, 'muster-ca-passphrase') })
  t.same(systemd.pin, { from: 'credential', path: join(directory, 'muster-pkcs11-pin') })
  const other = readConfig([], { CREDENTIALS_DIRECTORY: t.testdir() })
  t.equal(other.pin, null, 'a unit may have credentials for other things')
})

t.test('a secret is what its file says, without the line break, from each source', async (t) => {
  const path = join(t.testdir({ secret: 'open sesame\n' }), 'secret')
  chmodSync(path, 0o600)
  const none = () => Buffer.alloc(0)
  t.equal(readPassphrase({ from: 'text', text: 'open sesame' }, none), 'open sesame')
  t.equal(readPassphrase({ from: 'file', path }, none), 'open sesame')
  t.equal(readPin({ from: 'file', path }), 'open sesame')
  chmodSync(path, 0o440) // as systemd makes it for a service with a user of its own
  t.equal(readPassphrase({ from: 'credential', path }, none), 'open sesame')
  t.equal(readPin({ from: 'credential', path }), 'open sesame')
  t.throws(() => readPin({ from: 'file', path }), { code: 'key_file_insecure', message: /chmod 600/ })
  t.throws(() => readPin({ from: 'credential', path: `${path}.gone` }), {
    code: 'passphrase_wrong',
    message: /the PIN file .* does not exist/,
  })
  t.throws(() => readPin(null), { code: 'passphrase_wrong', message: /MUSTER_PKCS11_PIN_FILE/ })
})

t.test('the version is that of the package', async (t) => {
  const path = join(import.meta.dirname, '..', '..', 'package.json')
  t.equal(VERSION, JSON.parse(readFileSync(path, 'utf8')).version)
})

t.test('this machine reaches a service on an address of its own under that address', async (t) => {
  t.match(readConfig(['--listen', '0.0.0.0'], {}), { localHost: 'localhost' })
  const config = readConfig(['--listen', '10.0.0.7', '--host', 'muster.example'], {})
  t.equal(config.localHost, '10.0.0.7')
  t.same(config.hosts, ['muster.example', '10.0.0.7', 'localhost', '127.0.0.1'])
})
