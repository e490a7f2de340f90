import t from 'tap'
import { killUnderLoad } from '../support/broker-kills.ts'

t.test('a broker that is killed under load loses no message that it has acknowledged', async (t) => {
  const { acknowledged, arrived } = await killUnderLoad(t, 3)
  t.ok(acknowledged.size > 100, `${acknowledged.size} acknowledged`)
  t.strictSame(
    [...acknowledged].filter((number) => !arrived.has(number)),
    [],
  )
})
