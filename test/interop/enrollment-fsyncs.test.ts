import t from 'tap'
import { cutAtSync, needStrace } from '../support/enrollment-fsyncs.ts'

t.setTimeout(240_000)
needStrace()

/** In the creation of the CA, in the lives of the devices, in a revocation. */
for (const n of [4, 70, 80]) {
  t.test(`a service that is killed at its sync number ${n} comes back whole`, async (t) => {
    t.strictSame(await cutAtSync(t, n), { isKilled: true, faults: [] })
  })
}
