import t from 'tap'
import type { Outcome } from '../../device-sim/report.ts'
import { muster } from '../support/plane.ts'

t.setTimeout(600_000)

t.test('two thousand devices go through their life, and fifty are gone in under a second', async (t) => {
  const args = ['sim', 'run', 'lifecycle', '--self-contained', '--devices', '2000', '--json']
  const { status, stdout, stderr } = await muster(args, { timeoutMs: 600_000 })
  t.equal(status, 0, stderr)
  const outcome = JSON.parse(stdout) as Outcome
  t.match(outcome, {
    devices: 2000,
    enrolled: 2000,
    connected: 2000,
    rotated: 2000,
    messagesLost: 0,
    bricked: 0,
  })
  t.match(outcome, { revoked: 50, sessionsClosed: 50, refusedAfter: 50, ok: true })
  t.ok(outcome.closeMs.max < 1000)
})
