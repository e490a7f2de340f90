import t from 'tap'
import { holdAndRestart } from '../support/storm.ts'

// The long form, with 10 000 devices and its figures, is in test/long.
t.test('a fleet that is held in one plan is closed to the last session, and comes back, twice', async (t) => {
  const { receipt, lost, published } = await holdAndRestart(t, { devices: 30, processes: 2 })
  t.match(receipt, {
    sessionsClosed: 30,
    survivors: [],
    brokers: [{ broker: 'broker-1', state: 'applied', sessionsClosed: 30 }],
  })
  t.equal(lost, 0, `of ${published}`)
})
