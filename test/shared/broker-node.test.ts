import { mkdirSync, writeFileSync } from 'node:fs'
import { join, resolve } from 'node:path'
import t from 'tap'
import { brokerNodeOptions } from '#shared/broker-node'
import { scratch } from '../support/muster.ts'

const repository = resolve(import.meta.dirname, '../..')
const bin = join(repository, 'bin/muster.mjs')
const OURS = [`--openssl-config=${join(repository, 'broker/openssl.cnf')}`]

const directory = scratch(t)
const absent = join(directory, 'absent.cnf')
const plain = { bin, execArgv: [], environment: {}, defaultFile: absent }

function fileOf(text: string): string {
  const path = join(directory, 'openssl.cnf')
  writeFileSync(path, text)
  return path
}

t.test('a broker gets a configuration of OpenSSL that asks for one ticket', async (t) => {
  t.strictSame(brokerNodeOptions(plain), OURS)
  t.strictSame(brokerNodeOptions({ ...plain, execArgv: ['--cpu-prof', '--import', 'x.ts'] }), OURS)
  t.strictSame(
    brokerNodeOptions({ ...plain, environment: { NODE_OPTIONS: '--max-semi-space-size=4' } }),
    OURS,
  )
  const usual = fileOf(
    'openssl_conf = init\n[init]\nproviders = all\n# nodejs_conf = init\n#.include fips.cnf\n',
  )
  t.strictSame(brokerNodeOptions({ ...plain, defaultFile: usual }), OURS, 'Node reads nothing of that')
})

t.test('a configuration of the operator is left as it is', async (t) => {
  const theirs = [
    ...['--openssl-config=/etc/fips.cnf', '--openssl_config=x', '--openssl-shared-config'],
    ...['--openssl-legacy-provider', '--enable-fips', '--force-fips', '--force_fips'],
    ...['--experimental-config-file=x', '--experimental-default-config-file'],
  ]
  for (const option of theirs) {
    t.strictSame(brokerNodeOptions({ ...plain, execArgv: [option] }), [], option)
    const environment = { NODE_OPTIONS: `--no-warnings ${option}` }
    t.strictSame(brokerNodeOptions({ ...plain, environment }), [], `NODE_OPTIONS ${option}`)
  }
  for (const OPENSSL_CONF of ['/etc/fips.cnf', '']) {
    t.strictSame(brokerNodeOptions({ ...plain, environment: { OPENSSL_CONF } }), [], 'OPENSSL_CONF')
  }
  for (const text of [
    'nodejs_conf = init',
    '[x]\n\n  .include /etc/crypto-policies',
    '.include = more.cnf',
  ]) {
    t.strictSame(brokerNodeOptions({ ...plain, defaultFile: fileOf(text) }), [], text)
  }
})

t.test('without the file, or with a default that cannot be read, there is no option', async (t) => {
  t.strictSame(brokerNodeOptions({ ...plain, bin: join(directory, 'bin/muster.mjs') }), [])
  mkdirSync(join(directory, 'unreadable'))
  t.strictSame(brokerNodeOptions({ ...plain, defaultFile: join(directory, 'unreadable') }), [])
})

t.test('with the OpenSSL of a system, which configures it, there is no option', async (t) => {
  const { variables } = process.config
  t.intercept(process, 'config', { value: { variables: { ...variables, node_shared_openssl: true } } })
  t.strictSame(brokerNodeOptions(plain), [])
})
