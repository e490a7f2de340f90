import t from 'tap'
import { surviveKills } from '../support/enrollment-kills.ts'

t.test('two hundred devices enroll while the service is killed ten times, and nothing is lost', (t) =>
  surviveKills(t, { devices: 200, kills: 10, inFlight: 8, seed: 1 }),
)
