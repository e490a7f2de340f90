/**
 * A process of its own that enrolls devices into a registry: `registry-writer.ts <path> <name> <devices>`.
 * It writes one line for each certificate whose recording was acknowledged.
 */
import { openRegistry } from '../../enrollment/registry/open.ts'
import { BEGIN, planeOf } from './registry-plane.ts'

const IN_FLIGHT = 8

const [path = '', name = '', devices = '0'] = process.argv.slice(2)
const registry = await openRegistry(path, { trustDomain: 'plane.test', epoch: `epoch-${name}`, now: BEGIN })
const plane = planeOf(registry, name)
await plane.token(`token-${name}`, { uses: Number(devices) })

for (let from = 0; from < Number(devices); from += IN_FLIGHT) {
  const ids = Array.from({ length: IN_FLIGHT }, (_, i) => `${name}-${from + i}`)
  const enrolled = await Promise.all(ids.map((id) => plane.enrollWith(`token-${name}`, id, `key ${id}`)))
  for (const { serial } of enrolled) process.stdout.write(`${serial}\n`)
}
await registry.close()
