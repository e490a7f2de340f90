// Runs before `npm start` and `npm test`, with whatever Node the machine has (18 or newer), before any dependency is
// there: plain JavaScript that imports nothing but Node. It makes these two commands the whole set-up of a fresh clone.
import { execFileSync, spawn } from 'node:child_process'
import { createHash } from 'node:crypto'
import { existsSync, mkdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import { dirname, join } from 'node:path'
import { fileURLToPath } from 'node:url'
import { bundledNode, isNewEnough, MINIMUM } from './node-version.mjs'

const root = dirname(dirname(fileURLToPath(import.meta.url)))
const modules = join(root, 'node_modules')
/** Written last, so that an interrupted installation is done again. */
const stamp = join(modules, '.muster-lock')

const lockfile = readFileSync(join(root, 'package-lock.json'))
const wanted = createHash('sha256')
  .update(lockfile)
  .update(process.platform)
  .update(process.arch)
  .digest('hex')

if (!isStamped()) {
  if (!matchesLockfile()) await install()
  dropUnusableNode()
  mkdirSync(modules, { recursive: true })
  writeFileSync(stamp, `${wanted}\n`)
}
requireNode()

function isStamped() {
  return existsSync(stamp) && readFileSync(stamp, 'utf8').trim() === wanted
}

/**
 * True when someone ran `npm ci` already: what npm wrote down as installed is what the lockfile asks for. Of the
 * optional packages those for other machines are not there.
 */
function matchesLockfile() {
  const record = join(modules, '.package-lock.json')
  if (!existsSync(record)) return false
  const installed = JSON.parse(readFileSync(record, 'utf8')).packages ?? {}
  return Object.entries(JSON.parse(lockfile.toString()).packages).every(
    ([path, entry]) => path === '' || !isForUs(entry) || installed[path]?.version === entry.version,
  )
}

function isForUs({ optional, os, cpu, libc }) {
  const isOurs = (names, own) => names === undefined || names.includes(own)
  return !optional || (isOurs(os, process.platform) && isOurs(cpu, process.arch) && libc === undefined)
}

async function install() {
  const why = existsSync(modules) ? 'the lockfile has changed' : 'first run'
  process.stderr.write(`${why}: installing locked dependencies ... `)
  rmSync(stamp, { force: true })
  const startedAt = Date.now()
  const { status, output } = await npmCi()
  if (status !== 0) {
    process.stderr.write(
      `\n${output}\nCannot install the dependencies: npm ci failed; the lines above say why.\n`,
    )
    process.exit(1)
  }
  process.stderr.write(`${Math.ceil((Date.now() - startedAt) / 1000)} s\n`)
}

/** No install script of a dependency is run: none is needed, and each would be somebody else's code. */
function npmCi() {
  const args = ['ci', '--ignore-scripts', '--include=dev', '--include=optional', '--no-audit', '--no-fund']
  const npm = process.env.npm_execpath
  // The Node that runs npm, not the one in node_modules: `npm ci` removes that one first.
  const [command, first] = npm ? [process.env.npm_node_execpath ?? process.execPath, [npm]] : ['npm', []]
  return new Promise((resolve) => {
    const child = spawn(command, [...first, ...args], { cwd: root, stdio: ['ignore', 'pipe', 'pipe'] })
    let output = ''
    child.stdout.on('data', (chunk) => (output += chunk))
    child.stderr.on('data', (chunk) => (output += chunk))
    child.once('error', (error) => resolve({ status: 1, output: error.message }))
    child.once('close', (status) => resolve({ status, output: output.trim() }))
  })
}

/** The Node of the lockfile is built for glibc; where it does not run it must not hide the machine's own. */
function dropUnusableNode() {
  const node = bundledNode(root)
  if (node === null) return
  try {
    execFileSync(node, ['--version'], { stdio: 'ignore' })
  } catch {
    rmSync(node, { force: true })
  }
}

function requireNode() {
  if (bundledNode(root) !== null || isNewEnough(process.versions.node)) return
  process.stderr.write(
    `Muster needs Node ${MINIMUM} or newer and this is ${process.versions.node}: install it from https://nodejs.org and try again.\n`,
  )
  process.exit(2)
}
