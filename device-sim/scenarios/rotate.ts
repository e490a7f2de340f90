import { connectAll, enrollAll, rotateAll, settle } from '../phases.ts'
import type { Scenario } from '../stage.ts'
import { startTraffic } from '../traffic.ts'

export const rotate: Scenario = {
  name: 'rotate',
  says: 'enroll, connect, rotate every certificate under traffic: no message lost, no device bricked',
  expects: { rotation: true, revocation: false },
  async play(stage) {
    await enrollAll(stage)
    await connectAll(stage)
    const traffic = startTraffic(stage.fleet.devices, stage.clock)
    try {
      await rotateAll(stage)
      await settle(stage, { traffic, without: new Set() })
      return null
    } finally {
      traffic.end()
    }
  },
}
