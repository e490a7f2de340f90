import { type SpawnSyncReturns, spawnSync } from 'node:child_process'
import { cpSync, existsSync, mkdirSync, readFileSync, writeFileSync } from 'node:fs'
import { delimiter, join, resolve } from 'node:path'
import t from 'tap'
import { scratch } from '../support/muster.ts'

const repository = resolve(import.meta.dirname, '../..')

/** Stands in for npm: notes that it was called, and does to node_modules what `npm ci` would. */
const NPM = `
import { appendFileSync, mkdirSync, rmSync } from 'node:fs'
appendFileSync('calls', process.argv.slice(2).join(' ') + '\\n')
rmSync('node_modules', { recursive: true, force: true })
mkdirSync('node_modules')
if (process.env.NPM_DOES === 'fail') { console.error('npm error network'); process.exit(1) }
if (process.env.NPM_DOES === 'die') process.kill(process.ppid, 'SIGKILL')
`

/** A clone with the set-up and a lockfile, and nothing else. */
function clone(t: Parameters<typeof scratch>[0]) {
  const root = scratch(t)
  mkdirSync(join(root, 'tools'))
  for (const name of ['setup.mjs', 'node-version.mjs']) {
    cpSync(join(repository, 'tools', name), join(root, 'tools', name))
  }
  writeFileSync(join(root, 'npm.mjs'), NPM)
  const lock = (version: string) => {
    const packages = {
      '': {},
      'node_modules/a': { version },
      'node_modules/b': { version, optional: true },
      'node_modules/elsewhere': { version, optional: true, os: ['plan9'] },
    }
    writeFileSync(join(root, 'package-lock.json'), JSON.stringify({ packages }))
  }
  lock('1.0.0')
  const setUp = (does = 'install'): SpawnSyncReturns<string> =>
    spawnSync(process.execPath, ['tools/setup.mjs'], {
      cwd: root,
      encoding: 'utf8',
      env: { ...process.env, CI: 'true', npm_execpath: join(root, 'npm.mjs'), NPM_DOES: does },
    })
  const calls = () =>
    existsSync(join(root, 'calls')) ? readFileSync(join(root, 'calls'), 'utf8').trim().split('\n') : []
  return { root, lock, setUp, calls }
}

t.test('a fresh clone installs once, what the lockfile says, without scripts', async (t) => {
  const { setUp, calls } = clone(t)
  const first = setUp()
  t.equal(first.status, 0, first.stderr)
  t.match(first.stderr, /^first run: installing locked dependencies \.\.\. \d+ s\n$/)
  t.equal(setUp().stderr, '', 'the second run says nothing')
  t.equal(calls().length, 1)
  t.match(calls()[0], /^ci --ignore-scripts --include=dev --include=optional/)
})

t.test('another lockfile is installed', async (t) => {
  const { lock, setUp, calls } = clone(t)
  setUp()
  lock('1.0.1')
  t.match(setUp().stderr, /^the lockfile has changed: installing/)
  t.equal(calls().length, 2)
})

t.test('an installation that fails says why, and is done again', async (t) => {
  const { setUp, calls } = clone(t)
  const failed = setUp('fail')
  t.equal(failed.status, 1)
  t.match(failed.stderr, /npm error network\nCannot install the dependencies/)
  t.equal(setUp().status, 0)
  t.equal(calls().length, 2)
})

t.test('an installation that is killed is done again', async (t) => {
  const { setUp, calls } = clone(t)
  t.equal(setUp('die').signal, 'SIGKILL')
  t.equal(setUp().status, 0)
  t.equal(calls().length, 2)
})

t.test('what somebody installed with npm ci is not installed again', async (t) => {
  const { root, setUp, calls } = clone(t)
  mkdirSync(join(root, 'node_modules'))
  const installed = { version: '1.0.0' }
  const record = { packages: { 'node_modules/a': installed, 'node_modules/b': installed } }
  writeFileSync(join(root, 'node_modules/.package-lock.json'), JSON.stringify(record))
  t.equal(setUp().stderr, '')
  t.strictSame(calls(), [])
})

t.test('an optional package that is new for this machine is installed', async (t) => {
  const { root, setUp, calls } = clone(t)
  mkdirSync(join(root, 'node_modules'))
  const record = { packages: { 'node_modules/a': { version: '1.0.0' } } }
  writeFileSync(join(root, 'node_modules/.package-lock.json'), JSON.stringify(record))
  setUp()
  t.equal(calls().length, 1)
})

t.test('what is installed in another version is', async (t) => {
  const { root, setUp, calls } = clone(t)
  mkdirSync(join(root, 'node_modules'))
  const record = { packages: { 'node_modules/a': { version: '0.9.0' } } }
  writeFileSync(join(root, 'node_modules/.package-lock.json'), JSON.stringify(record))
  setUp()
  t.equal(calls().length, 1)
})

/** A Node of this machine that is too old for Muster, as the one that CI starts with. */
const oldNode = (process.env.PATH ?? '')
  .split(delimiter)
  .map((directory) => join(directory, 'node'))
  .find((path) => {
    const [major] = /\d+/.exec(spawnSync(path, ['--version'], { encoding: 'utf8' }).stdout ?? '') ?? ['24']
    return Number(major) < 24
  })

t.test('an old Node runs the command with the one of the lockfile', { skip: !oldNode }, async (t) => {
  const ran = spawnSync(oldNode ?? '', ['bin/muster.mjs', 'version'], { cwd: repository, encoding: 'utf8' })
  t.equal(ran.status, 0, ran.stderr)
  t.match(ran.stdout, /Node 24\./)
  const failed = spawnSync(oldNode ?? '', ['bin/muster.mjs', 'nonsense'], {
    cwd: repository,
    encoding: 'utf8',
  })
  t.equal(failed.status, 2, 'and ends as it ends')
})

t.test('an old Node alone is told what to do', { skip: !oldNode }, async (t) => {
  const { root } = clone(t)
  cpSync(join(repository, 'bin'), join(root, 'bin'), { recursive: true })
  const ran = spawnSync(oldNode ?? '', ['bin/muster.mjs', 'version'], { cwd: root, encoding: 'utf8' })
  t.equal(ran.status, 2)
  t.match(ran.stderr, /^Muster needs Node 24\.12 or newer and this is .*\n$/)
})

t.test('a command that a suite needs is named with its package', async (t) => {
  const need = (...commands: string[]) =>
    spawnSync(process.execPath, ['tools/need.mjs', ...commands], {
      cwd: repository,
      encoding: 'utf8',
      env: { PATH: '' },
    })
  t.equal(need().status, 0)
  const missing = need('mosquitto_sub', 'mosquitto_pub', 'curl')
  t.equal(missing.status, 2)
  t.match(missing.stderr, /apt-get install mosquitto-clients curl\n$/)
})
