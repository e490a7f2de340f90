import t from 'tap'
import { killUnderLoad } from '../support/broker-kills.ts'

t.setTimeout(1_800_000)

t.test(
  'a broker that is killed fifty times under load loses no message that it has acknowledged',
  async (t) => {
    const { acknowledged, arrived, repeated } = await killUnderLoad(t, 50)
    t.comment(`${acknowledged.size} acknowledged, ${arrived.size} arrived, ${repeated} of them again`)
    t.strictSame(
      [...acknowledged].filter((number) => !arrived.has(number)),
      [],
    )
  },
)
