#!/usr/bin/env node
// Starts Muster. Plain JavaScript, so that a Node that is too old can still say so (Node 18 and newer).
import { spawn } from 'node:child_process'
import { constants } from 'node:os'
import { dirname } from 'node:path'
import { fileURLToPath } from 'node:url'
import { bundledNode, isNewEnough, MINIMUM } from '../tools/node-version.mjs'

const root = dirname(dirname(fileURLToPath(import.meta.url)))
const argv = process.argv.slice(2)

if (isNewEnough(process.versions.node)) await start()
else if (bundledNode(root) !== null) runWith(bundledNode(root))
else {
  process.stderr.write(
    `Muster needs Node ${MINIMUM} or newer and this is ${process.versions.node}: run \`node tools/setup.mjs\`, or install Node from https://nodejs.org.\n`,
  )
  process.exit(2)
}

/** The programs are loaded when they are asked for: the CLI needs neither the CA's code nor the broker's. */
async function start() {
  const { run } = await import('../operator/cli.ts')
  const status = await run(argv, {
    bin: fileURLToPath(import.meta.url),
    enrollment: async (args) => (await import('../enrollment/main.ts')).run(args),
    broker: async (args) => (await import('../broker/main.ts')).run(args),
    sim: async (args) => (await import('../device-sim/main.ts')).run(args),
  })
  if (status !== null) process.exitCode = status
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
