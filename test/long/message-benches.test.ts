/** The benches of messages from end to end, in their shortest form; what they find is a look and no figure. */
import { execFile } from 'node:child_process'
import { fileURLToPath } from 'node:url'
import { promisify } from 'node:util'
import t from 'tap'
import type { Result } from '../../bench/harness.ts'

const MUSTER = fileURLToPath(new URL('../../bin/muster.mjs', import.meta.url))
const DEADLINE_MS = 900_000
const PATTERNS = ['fan-in', 'fan-out', 'pairs']

async function bench(name: string): Promise<Result> {
  const { stdout } = await promisify(execFile)(
    process.execPath,
    [MUSTER, 'bench', name, '--quick', '--json'],
    { timeout: DEADLINE_MS, maxBuffer: 1_048_576 },
  )
  return JSON.parse(stdout.trim().split('\n').at(-1) ?? '') as Result // our own program wrote it
}

t.test('messages are measured beside mosquitto and nats-server in every pattern', async (t) => {
  const { ratio, patterns = {}, ...result } = await bench('publish')
  t.match(result, { schemaVersion: 1, name: 'publish', ours: { name: 'muster' } })
  const kinds = ['QoS 0', 'QoS 1', 'QoS 1, durable sessions']
  t.strictSame(
    Object.keys(patterns),
    kinds.flatMap((kind) => PATTERNS.map((pattern) => `${pattern}, ${kind}`)),
  )
  for (const [name, pattern] of Object.entries(patterns)) {
    t.strictSame(Object.keys(pattern.ratios), ['mosquitto', 'nats-server'], name)
    t.match(pattern, { lost: { muster: 0 } }, `${name}: ours loses nothing`)
  }
  const least = PATTERNS.map((pattern) => patterns[`${pattern}, QoS 0`]?.ratio ?? 0)
  t.equal(ratio, Math.min(...least))
})

t.test('authorization is measured beside a broker that has none', async (t) => {
  const { patterns = {}, facts = {}, ...result } = await bench('authz')
  t.match(result, { name: 'authz', peers: [{ name: 'muster that grants everything' }] })
  t.strictSame(Object.keys(patterns), PATTERNS)
  t.strictSame(
    Object.keys(facts),
    PATTERNS.map((pattern) => `authorization's part, ${pattern}`),
  )
})
