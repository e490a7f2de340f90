import { connectAll, enrollAll, revokeSome, settle } from '../phases.ts'
import type { Scenario } from '../stage.ts'
import { startTraffic } from '../traffic.ts'

export const revoke: Scenario = {
  name: 'revoke',
  says: 'enroll, connect, revoke some under traffic: closed in under a second, refused from then on',
  expects: { rotation: false, revocation: true },
  async play(stage) {
    await enrollAll(stage)
    await connectAll(stage)
    const traffic = startTraffic(stage.fleet.devices, stage.clock)
    try {
      const revocation = await revokeSome(stage, traffic)
      await settle(stage, { traffic, without: revocation.devices })
      return revocation
    } finally {
      traffic.end()
    }
  },
}
