import t from 'tap'
import { cutAtSync, needStrace } from '../support/enrollment-fsyncs.ts'

t.setTimeout(3_600_000)
needStrace()

t.test('a service that is killed at any of the syncs of its life comes back whole', async (t) => {
  let cuts = 0
  for (let n = 1; ; n++) {
    const { isKilled, faults } = await cutAtSync(t, n)
    t.strictSame(faults, [], `killed at sync ${n}`)
    if (!isKilled) break
    cuts += 1
    if (n % 10 === 0) t.comment(`${n} syncs`)
  }
  t.ok(cuts > 50, `${cuts} syncs in a life`)
})
