// `node tools/build.mjs [directory]` makes the package that is published, in dist/ by default: Node does not strip types
// under node_modules, so it holds JavaScript. It is complete: `npm pack ./dist`.
import { execFileSync } from 'node:child_process'
import { cpSync, mkdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import { createRequire } from 'node:module'
import { dirname, join, resolve } from 'node:path'
import { fileURLToPath } from 'node:url'
import { MINIMUM } from './node-version.mjs'

const root = dirname(dirname(fileURLToPath(import.meta.url)))
const target = resolve(process.argv[2] ?? join(root, 'dist'))

rmSync(target, { recursive: true, force: true })
mkdirSync(target, { recursive: true })
const tsc = join(dirname(createRequire(import.meta.url).resolve('typescript/package.json')), 'bin/tsc')
execFileSync(process.execPath, [tsc, '-p', join(root, 'tsconfig.build.json'), '--outDir', target], {
  stdio: 'inherit',
})
for (const path of [
  'bin',
  'broker/openssl.cnf',
  'tools/node-version.mjs',
  'docs',
  'README.md',
  'CHANGELOG.md',
  'LICENSE',
]) {
  cpSync(join(root, path), join(target, path), { recursive: true })
}
writeFileSync(join(target, 'package.json'), `${JSON.stringify(packageOf(), null, 2)}\n`)

/**
 * The package without what only a clone needs: its scripts, its tools, and a Node of its own. A clone names no engine:
 * it brings one, and npm would warn about the machine's at every `npx muster`.
 */
function packageOf() {
  const { scripts, devDependencies, optionalDependencies, allowScripts, ...kept } = JSON.parse(
    readFileSync(join(root, 'package.json'), 'utf8'),
  )
  const { koffi } = optionalDependencies // the others are the Node of a clone
  return {
    ...kept,
    optionalDependencies: { koffi },
    engines: { node: `>=${MINIMUM}` },
    imports: { '#shared/*': './shared/*.js' },
  }
}
