#!/usr/bin/env node
// Starts Muster. Plain JavaScript, so that a Node that is too old can still say so (Node 18 and newer).
import { spawn } from 'node:child_process'
import { constants as access, accessSync, existsSync } from 'node:fs'
import module from 'node:module'
import { constants } from 'node:os'
import { dirname, join } from 'node:path'
import { fileURLToPath } from 'node:url'
import { bundledNode, isNewEnough, MINIMUM } from '../tools/node-version.mjs'

const root = dirname(dirname(fileURLToPath(import.meta.url)))
const argv = process.argv.slice(2)
const isClone = existsSync(new URL('../tools/setup.mjs', import.meta.url))

if (isNewEnough(process.versions.node)) await start()
else if (bundledNode(root) !== null) runWith(bundledNode(root))
else {
  process.stderr.write(
    `Muster needs Node ${MINIMUM} or newer and this is ${process.versions.node}: install it from https://nodejs.org${isClone ? ', or run `node tools/setup.mjs`' : ''}.\n`,
  )
  process.exit(2)
}

/** A clone holds TypeScript; the published package JavaScript, because Node strips no types under node_modules. */
function source(path) {
  const url = new URL(`../${path}.ts`, import.meta.url)
  return existsSync(url) ? url : new URL(`../${path}.js`, import.meta.url)
}

/** The programs are loaded when they are asked for: the CLI needs neither the CA's code nor the broker's. */
async function start() {
  // Beside the code, never in a directory that others can write to: what is in it runs with the CA's keys at hand.
  module.enableCompileCache(join(root, 'node_modules', '.cache', 'muster'))
  await becomeBroker()
  const { run } = await import(source('operator/cli'))
  const status = await run(argv, {
    bin: fileURLToPath(import.meta.url),
    maintenance: async () => (await import(source('enrollment/maintenance'))).openMaintenance(),
    enrollment: async (args) => (await import(source('enrollment/main'))).run(args),
    broker: async (args) => (await import(source('broker/main'))).run(args),
    sim: async (args) => (await import(source('device-sim/main'))).run(args),
    bench: async (args) => (await import(source('bench/main'))).run(args),
  })
  if (status !== null) process.exitCode = status
}

/**
 * A broker wants options of Node, and Node takes them at its start only. `muster up` gives them to its child; a broker that
 * somebody starts takes the place of this process, with the same id and the same output. Where that cannot be, it goes
 * on without them.
 */
async function becomeBroker() {
  const { programOf } = await import(source('operator/commands/programs'))
  if (programOf(argv)?.name !== 'broker') return
  const { brokerNodeOptions } = await import(source('shared/broker-node'))
  const bin = fileURLToPath(import.meta.url)
  const options = brokerNodeOptions({ bin, execArgv: process.execArgv, environment: process.env })
  // Node hands on standard input, output and error: no channel to a parent, and no open file that an argument names.
  const hasMore = process.channel !== undefined || argv.some((one) => /\/fd\/\d+$/.test(one))
  if (options.length === 0 || hasMore || process.execve === undefined) return
  try {
    accessSync(process.execPath, access.X_OK) // where it fails, this Node is aborted
    const args = [process.execPath, ...process.execArgv, ...options, bin, ...argv]
    process.execve(process.execPath, args, process.env)
  } catch {
    // Not permitted, as with `node --permission`.
  }
}

/** Runs this command again with a newer Node, and ends as it ends. Signals of the terminal reach both. */
function runWith(node) {
  const child = spawn(node, [fileURLToPath(import.meta.url), ...argv], { stdio: 'inherit' })
  for (const signal of ['SIGINT', 'SIGTERM', 'SIGHUP']) {
    process.on(signal, () => {
      // The terminal sends SIGINT to the whole group, so the child has it already; others come to this process alone.
      if (signal !== 'SIGINT' || !process.stdin.isTTY) child.kill(signal)
    })
  }
  child.once('exit', (status, signal) => process.exit(signal ? 128 + constants.signals[signal] : status))
}
