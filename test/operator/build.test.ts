import { execFileSync, spawnSync } from 'node:child_process'
import { mkdirSync, readdirSync, readFileSync, symlinkSync } from 'node:fs'
import { join, resolve } from 'node:path'
import t from 'tap'
import { PLAIN_NODE, scratch } from '../support/muster.ts'

const repository = resolve(import.meta.dirname, '../..')

t.test('the published package runs from node_modules, where Node strips no types', async (t) => {
  const modules = join(scratch(t), 'node_modules')
  mkdirSync(modules)
  for (const name of readdirSync(join(repository, 'node_modules'))) {
    if (!name.startsWith('.')) symlinkSync(join(repository, 'node_modules', name), join(modules, name))
  }
  const installed = join(modules, 'muster')
  execFileSync('env', [...PLAIN_NODE, join(repository, 'tools/build.mjs'), installed])
  const run = (...args: string[]) =>
    spawnSync('env', [...PLAIN_NODE, join(installed, 'bin/muster.mjs'), ...args], { encoding: 'utf8' })

  const { version } = JSON.parse(readFileSync(join(repository, 'package.json'), 'utf8'))
  const asked = run('version', '--json')
  t.equal(asked.status, 0, asked.stderr)
  t.match(JSON.parse(asked.stdout), { version })
  for (const program of ['enrollment', 'broker', 'sim', 'bench']) {
    const refused = run(program, '--no-such-option')
    t.equal(refused.status, 2, `${program}: ${refused.stderr}`)
    t.match(refused.stderr, 'no-such-option')
  }
  const files = readdirSync(installed, { recursive: true, encoding: 'utf8' })
  t.strictSame(
    files.filter((file) => file.endsWith('.ts') || file.includes('test')),
    [],
  )
  t.ok(files.includes('broker/openssl.cnf'), 'what OpenSSL reads for a broker')
  const { scripts, optionalDependencies } = JSON.parse(readFileSync(join(installed, 'package.json'), 'utf8'))
  t.equal(scripts, undefined)
  t.strictSame(Object.keys(optionalDependencies), ['koffi'], 'and no Node of its own')
})
