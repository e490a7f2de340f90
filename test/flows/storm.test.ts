import t from 'tap'
import { hammerBroker } from '../support/hammer.ts'
import { holdAndRestart } from '../support/storm.ts'

// The long form, with 10 000 devices and its figures, is in test/long.
t.test('a fleet that is held in one plan is closed to the last session, and comes back, twice', async (t) => {
  const { receipt, lost, published } = await holdAndRestart(t, { devices: 30, processes: 2 })
  t.match(receipt, {
    sessionsClosed: 30,
    survivors: [],
    brokers: [{ state: 'applied', sessionsClosed: 30 }],
  })
  t.equal(lost, 0, `of ${published}`)
})

// The long form is test/long/hammer.test.ts.
t.test('revoked devices that come back without a pause keep nobody else out', async (t) => {
  const limits = ['--limit', 'connectsPerMinute=6']
  const { count, newcomersMs, published, lost, kept, codes } = await hammerBroker(t, {
    ...{ devices: 20, attempts: 12, processes: 1, limits },
  })
  const { accepted, refused, busy, dropped } = count
  t.equal(accepted, 0)
  t.equal(refused + busy + dropped, 240)
  t.ok(busy > 0, 'they are told to come later')
  t.equal(lost, 0, `of ${published}`)
  t.ok(newcomersMs.length > 0, 'a healthy device connects meanwhile')
  t.ok(kept.most <= 20, `${kept.most} refusals of a device are kept`)
  t.ok(codes.includes('R-REVOKED'))
})
