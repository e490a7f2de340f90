import { readFileSync } from 'node:fs'
import { join } from 'node:path'
import t from 'tap'
import { inspectPairs } from '../../device-sim/judge-pairs.ts'
import { muster, startPlane } from '../support/plane.ts'

t.setTimeout(1_800_000)

const DEVICES = 10
const ROUNDS = 10

t.test(
  'ten rotating devices that are killed together, ten times at each step, are never bricked',
  async (t) => {
    const plane = await startPlane(t)
    const args = [
      'sim',
      'run',
      'rotate',
      '--devices',
      `${DEVICES}`,
      '--fleet',
      'cut',
      '--keep',
      '--data',
      plane.data,
    ]
    const devices = Array.from({ length: DEVICES }, (_, index) => {
      const id = `cut-${String(index + 1).padStart(4, '0')}`
      return { id, directory: join(plane.data, 'demo', id), connect: true }
    })
    const inspection = { broker: plane.ready.broker, root: readFileSync(plane.ready.caFile, 'utf8'), devices }
    for (let round = 0; round < ROUNDS; round++) {
      for (const step of [1, 2, 3, 4, 5, 6]) {
        const cut = await muster(args, { environment: { MUSTER_CRASH_AT: `rotate.${step}` } })
        t.notSame(cut.status, 0)
        const pairs = await inspectPairs(inspection)
        const bricked = pairs.filter(({ fault, returnCode }) => fault !== null || returnCode !== 0)
        t.strictSame(bricked, [], `round ${round}, step ${step}`)
      }
    }
    const { status, stderr } = await muster(args)
    t.equal(status, 0, stderr)
  },
)
