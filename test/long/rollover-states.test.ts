import t from 'tap'
import { canAlwaysBeEnded } from '../support/rollover-states.ts'

t.test(
  'no sequence of steps, power cuts and days leads a rollover to where it cannot be ended',
  async (t) => {
    t.testdir({})
    await canAlwaysBeEnded(t, { runs: 100, steps: 20 })
  },
)
