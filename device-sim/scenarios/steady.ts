import { connectAll, enrollAll, settle } from '../phases.ts'
import type { Scenario } from '../stage.ts'
import { startTraffic } from '../traffic.ts'

export const steady: Scenario = {
  name: 'steady',
  says: 'enroll, connect, send `--messages` each: no message may be lost',
  followsHints: true,
  expects: { rotation: false, revocation: false },
  async play(stage) {
    await enrollAll(stage)
    await connectAll(stage)
    const traffic = startTraffic(stage.fleet.devices, stage.clock)
    try {
      await settle(stage, { traffic, without: new Set() })
      return null
    } finally {
      traffic.end()
    }
  },
}
