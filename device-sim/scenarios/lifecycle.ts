import { connectAll, enrollAll, revokeSome, rotateAll, settle } from '../phases.ts'
import type { Scenario } from '../stage.ts'
import { startTraffic } from '../traffic.ts'

export const lifecycle: Scenario = {
  name: 'lifecycle',
  says: 'enroll, connect, rotate under traffic, revoke some: everything that happens to a fleet',
  expects: { rotation: true, revocation: true },
  async play(stage) {
    await enrollAll(stage)
    await connectAll(stage)
    const traffic = startTraffic(stage.fleet.devices, stage.clock)
    try {
      await rotateAll(stage)
      const revocation = await revokeSome(stage, traffic)
      await settle(stage, { traffic, without: revocation.devices })
      return revocation
    } finally {
      traffic.end()
    }
  },
}
