import t from 'tap'
import { surviveKills } from '../support/enrollment-kills.ts'

t.setTimeout(3_600_000)

t.test(
  'ten thousand devices enroll while the service is killed two hundred times, and nothing is lost',
  (t) => surviveKills(t, { devices: 10_000, kills: 200, inFlight: 16, seed: 20 }),
)
