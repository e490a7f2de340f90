import { spawn } from 'node:child_process'
import { once } from 'node:events'
import { existsSync, mkdtempSync, readdirSync, readFileSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { basename, join } from 'node:path'
import t from 'tap'
import { inspectPairs } from '../../device-sim/judge-pairs.ts'
import type { Outcome, RunReport } from '../../device-sim/report.ts'
import { adminOf, MUSTER, muster, startPlane } from '../support/plane.ts'

t.setTimeout(240_000)
const plane = await startPlane(t)
const admin = adminOf(t, plane)
const directory = mkdtempSync(join(tmpdir(), 'muster-flow-'))
t.teardown(() => rmSync(directory, { recursive: true, force: true }))

async function sim(...args: string[]): Promise<{ status: number | null; outcome: Outcome; stderr: string }> {
  const { status, stdout, stderr } = await muster(['sim', 'run', ...args, '--data', plane.data, '--json'])
  const lines = stdout.trimEnd().split('\n')
  t.equal(lines.length, 1, 'stdout is one document')
  return { status, outcome: JSON.parse(lines[0] ?? '') as Outcome, stderr }
}

t.test(
  'a fleet enrolls, connects, rotates and loses three devices, and nothing else goes wrong',
  async (t) => {
    const file = join(directory, 'report.json')
    const run = await sim('lifecycle', '--devices', '20', '--revoke', '3', '--report', file)
    t.equal(run.status, 0, run.stderr)
    t.match(run.outcome, {
      schemaVersion: 1,
      devices: 20,
      enrolled: 20,
      connected: 20,
      rotated: 20,
      messagesLost: 0,
      revoked: 3,
      sessionsClosed: 3,
      refusedAfter: 3,
      bricked: 0,
      ok: true,
    })
    t.ok(run.outcome.messagesSent >= 17 * 5)
    t.ok(run.outcome.closeMs.max < 1000, `closed within ${run.outcome.closeMs.max} ms`)
    const report = JSON.parse(readFileSync(file, 'utf8')) as RunReport
    t.equal(report.listedOnCrl, 3)
    t.match(report.refusals, { 'CONNACK 5 to a TLS session': Number }, 'a saved TLS session opens nothing')
    t.strictSame(report.receipt?.survivors, [])
    t.equal(report.latencyMs.rotate?.count, 20)
  },
)

t.test('a steady fleet loses no message', async (t) => {
  const run = await sim('steady', '--devices', '5', '--messages', '20')
  t.equal(run.status, 0, run.stderr)
  t.match(run.outcome, { devices: 5, connected: 5, rotated: 0, revoked: 0, messagesLost: 0, ok: true })
  t.ok(run.outcome.messagesSent >= 100)
})

t.test('the demo leaves its devices in the data directory, synthetic ones that live a day', async (t) => {
  const run = await sim('revoke', '--devices', '4', '--fleet', 'demo', '--keep')
  t.equal(run.status, 0, run.stderr)
  t.strictSame(readdirSync(join(plane.data, 'demo')).sort(), [
    'demo-0001',
    'demo-0002',
    'demo-0003',
    'demo-0004',
  ])
  const fleet = (await admin.listFleets()).find(({ id }) => id === 'demo')
  t.match(fleet, { synthetic: true, lifetimeMs: 24 * 3_600_000 })
})

for (const [fault, scenario, says] of [
  ['drop-message', 'steady', /1 message lost/],
  ['keep-session', 'revoke', /0 of 1 sessions closed/],
  ['lose-key', 'rotate', /the key does not belong to the certificate/],
] as const) {
  t.test(`the judge finds a planted fault: ${fault}`, async (t) => {
    const run = await sim(scenario, '--devices', '3', '--fault', fault)
    t.equal(run.status, 8, run.stderr)
    t.equal(run.outcome.ok, false)
    t.match(run.stderr, says)
  })
}

t.test('a plane that is not there is said with exit code 7', async (t) => {
  const ended = await muster(['sim', 'run', 'steady', '--data', directory])
  t.equal(ended.status, 7)
  t.equal(ended.stdout, '')
  t.match(ended.stderr, '--self-contained')
  t.notOk(existsSync(join(directory, 'demo')))
})

t.test('devices that are killed at any step of their rotation are not bricked, and finish it', async (t) => {
  const args = [
    'sim',
    'run',
    'rotate',
    '--devices',
    '6',
    '--fleet',
    'cut',
    '--keep',
    '--data',
    plane.data,
    '--json',
  ]
  const directories = [1, 2, 3, 4, 5, 6].map((n) => join(plane.data, 'demo', `cut-000${n}`))
  const devices = directories.map((path) => ({ id: basename(path), directory: path, connect: true }))
  const inspection = { broker: plane.ready.broker, root: readFileSync(plane.ready.caFile, 'utf8'), devices }
  for (const step of [1, 2, 3, 4, 5, 6]) {
    // The first device to reach the step takes the process with it, and the others wherever they are.
    const cut = await muster(args, { environment: { MUSTER_CRASH_AT: `rotate.${step}` } })
    t.notSame(cut.status, 0, `killed at step ${step}`)
    t.equal(cut.stdout, '', 'without a word')
    const pairs = await inspectPairs(inspection)
    t.strictSame(
      pairs.filter(({ fault, returnCode }) => fault !== null || returnCode !== 0),
      [],
      'every pair on disk is whole, and the broker takes it',
    )
    if (step >= 3 && step <= 5) {
      const between = directories.filter((path) => readdirSync(join(path, 'pairs')).length === 2)
      t.ok(between.length > 0, 'whoever reached the step holds the old pair and the new one')
    }
  }
  const again = await muster(args)
  t.equal(again.status, 0, again.stderr)
  t.match(JSON.parse(again.stdout), { devices: 6, rotated: 6, messagesLost: 0, bricked: 0, ok: true })
  for (const path of directories) t.equal(readdirSync(join(path, 'pairs')).length, 1)
})

t.test('an interrupted run takes its own plane and everything it wrote with it', async (t) => {
  const scratch = mkdtempSync(join(directory, 'tmp-'))
  const child = spawn(
    process.execPath,
    [MUSTER, 'sim', 'run', 'steady', '--self-contained', '--messages', '1000'],
    {
      stdio: ['ignore', 'pipe', 'pipe'],
      env: { ...process.env, TMPDIR: scratch },
      timeout: 60_000,
    },
  )
  const ended = once(child, 'close')
  for await (const text of child.stderr.setEncoding('utf8')) if (/connect:/.test(text)) break
  t.ok(readdirSync(scratch).length > 0)
  child.kill('SIGINT')
  const [status] = await ended
  t.equal(status, 130)
  t.strictSame(
    readdirSync(scratch).filter((name) => name.startsWith('muster-')),
    [],
  )
})
