import { type ChildProcess, spawn } from 'node:child_process'
import { once } from 'node:events'
import { join, resolve } from 'node:path'
import t from 'tap'
import { startPlane } from '../support/plane.ts'
import { onPlane, readmeBlocks } from '../support/readme.ts'

const repository = resolve(import.meta.dirname, '../..')
const muster = `${process.execPath} ${join(repository, 'bin/muster.mjs')}`
const blocks = readmeBlocks(join(repository, 'README.md'))

/** Longest that one block may take before it counts as hung, ms. */
const DEADLINE_MS = 30_000

interface Ended {
  readonly status: number | null
  readonly output: string
}

function start(
  script: string,
  cwd: string,
): { child: ChildProcess; ended: Promise<Ended>; says(text: string): Promise<void> } {
  const child = spawn('bash', ['-euo', 'pipefail', '-c', script], { cwd, stdio: ['ignore', 'pipe', 'pipe'] })
  let output = ''
  const heard = (chunk: Buffer) => {
    output += chunk.toString()
  }
  child.stdout?.on('data', heard)
  child.stderr?.on('data', heard)
  const ended = once(child, 'close', { signal: AbortSignal.timeout(DEADLINE_MS) }).then(([status]) => ({
    status: status as number | null, // the 'close' event's first argument
    output,
  }))
  ended.catch(() => child.kill('SIGKILL'))
  const says = async (text: string) => {
    const signal = AbortSignal.timeout(DEADLINE_MS)
    while (!output.includes(text)) await once(child.stdout ?? child, 'data', { signal })
  }
  return { child, ended, says }
}

t.test('the README takes a device that nobody here wrote from token to revocation', async (t) => {
  const directory = t.testdir()
  const plane = await startPlane(t, { data: join(directory, 'data') })
  const block = (name: string) => onPlane(blocks.get(name) ?? 'false', { portBase: plane.portBase, muster })
  const run = (name: string) => start(block(name), directory).ended

  const enrolled = await run('enroll')
  t.equal(enrolled.status, 0, enrolled.output)

  // `-d` prints a line when the broker has granted the subscription, so that the command is not sent too early.
  const listening = start(`exec stdbuf -oL ${block('subscribe').trim()} -d`, directory)
  await listening.says('Subscribed')
  const commanded = await run('command')
  t.equal(commanded.status, 0, commanded.output)
  await listening.says('\non\n')

  const revoked = await run('revoke')
  t.equal(revoked.status, 0, revoked.output)
  const silenced = await listening.ended
  t.not(silenced.status, 0, 'mosquitto_sub ends by itself')
  t.match(silenced.output, /connection was lost/i)

  const returning = await start(`${block('subscribe').trim()} -W 10`, directory).ended
  t.match(returning.output, /not authori[sz]ed/i, 'it cannot come back')

  const explained = await run('explain')
  t.match(explained.output, /R-REVOKED/)
})
