import { type ChildProcessByStdio, spawn } from 'node:child_process'
import { once } from 'node:events'
import { join, resolve } from 'node:path'
import { createInterface } from 'node:readline'
import type { Readable } from 'node:stream'
import t, { type Test } from 'tap'
import { openRegistry } from '../../../enrollment/registry/open.ts'
import type { Registry } from '../../../enrollment/registry/registry.ts'
import { BEGIN } from '../../support/registry-plane.ts'
import { replayed, snapshotOf } from '../../support/registry-replica.ts'

const WRITER = resolve(import.meta.dirname, '../../support/registry-writer.ts')
const options = { trustDomain: 'plane.test', epoch: 'epoch-1', now: BEGIN }

type Writer = ChildProcessByStdio<null, Readable, null>

function startWriter(t: Test, of: { path: string; name: string; devices: number }): Writer {
  const args = [WRITER, of.path, of.name, String(of.devices)]
  const writer = spawn(process.execPath, args, { stdio: ['ignore', 'pipe', 'inherit'], env: {} })
  t.teardown(() => writer.kill('SIGKILL'))
  return writer
}

async function open(t: Test, path: string): Promise<Registry> {
  const registry = await openRegistry(path, options)
  t.teardown(() => registry.close())
  return registry
}

/** What holds after any crash, whoever looks. */
async function checkInvariants(t: Test, registry: Registry): Promise<void> {
  t.equal(await registry.verifyAudit(), null, 'the audit chain is whole')
  const snapshot = await snapshotOf(registry, BEGIN)
  t.strictSame(
    snapshot.contents(BEGIN),
    (await replayed(registry)).contents(BEGIN),
    'the changes add up to the state',
  )
  const tokens = await registry.listTokens({ now: BEGIN })
  const { devices } = await registry.listDevices({ limit: 100_000, now: BEGIN })
  const used = tokens.reduce((sum, token) => sum + token.used, 0)
  t.equal(used, devices.length, 'every use of a token has exactly one device')
}

t.test('two processes that make the registry at once and hammer it leave one order and no gap', async (t) => {
  const path = join(t.testdir({}), 'registry.db')
  const writers = ['a', 'b'].map((name) => startWriter(t, { path, name, devices: 240 }))
  let running = writers.length
  const ends = writers.map(async (writer) => {
    writer.stdout.resume()
    const [code] = await once(writer, 'exit')
    running -= 1
    return code
  })
  const registry = await open(t, path)
  let seen = 0
  let outOfOrder = 0
  for (let isEnd = false; !isEnd; ) {
    isEnd = running === 0
    const changes = await registry.changesAfter(seen, 1000)
    for (const { position } of changes) {
      if (position !== seen + 1) outOfOrder += 1
      seen = position
    }
    if (changes.length > 0) isEnd = false
    await new Promise(setImmediate)
  }
  t.strictSame(await Promise.all(ends), [0, 0])
  t.equal(outOfOrder, 0)
  t.equal(seen, 2 + 480 * 2, 'two fleets, and a device and a certificate each')
  await checkInvariants(t, registry)
})

t.test('a process that is killed while it writes keeps all that it acknowledged', async (t) => {
  const path = join(t.testdir({}), 'registry.db')
  for (const [round, acknowledgements] of [1, 37, 160].entries()) {
    const writer = startWriter(t, { path, name: `w${round}`, devices: 100_000 })
    const acknowledged: string[] = []
    for await (const serial of createInterface(writer.stdout)) {
      acknowledged.push(serial)
      if (acknowledged.length === acknowledgements) writer.kill('SIGKILL')
    }
    const registry = await openRegistry(path, options)
    const found = await Promise.all(acknowledged.map((serial) => registry.findCredential({ serial })))
    t.ok(acknowledged.length >= acknowledgements)
    t.notOk(found.includes(null), `round ${round}: ${acknowledged.length} certificates`)
    await checkInvariants(t, registry)
    await registry.close()
  }
})

t.test('the mark of the state tells what another connection has committed', async (t) => {
  const path = join(t.testdir({}), 'registry.db')
  const [one, other] = [await open(t, path), await open(t, path)]
  const before = one.stateMark()
  t.equal(one.stateMark(), before)
  await other.createFleet({ id: 'elsewhere' }, { now: BEGIN, by: 'operator:anna' })
  t.not(one.stateMark(), before)
})
