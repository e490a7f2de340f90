import { readFileSync } from 'node:fs'
import { join } from 'node:path'
import t from 'tap'
import { readConfig, VERSION } from '../../enrollment/config.ts'

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

t.test('the passphrase comes from a file, the environment, or a systemd credential', async (t) => {
  const text = { MUSTER_CA_PASSPHRASE: 'secret' }
  t.same(readConfig([], text).passphrase, { from: 'text', text: 'secret' })
  const file = { ...text, MUSTER_CA_PASSPHRASE_FILE: '/run/pass' }
  t.same(readConfig([], file).passphrase, { from: 'file', path: '/run/pass' })
  const systemd = { CREDENTIALS_DIRECTORY: '/run/credentials/muster' }
  t.match(readConfig([], systemd).passphrase, { path: '/run/credentials/muster/muster-ca-passphrase' })
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
