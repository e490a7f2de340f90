import assert from 'node:assert'
import { createRequire } from 'node:module'
import { PassThrough } from 'node:stream'
import t from 'tap'
import { openLog } from '#shared/log'
import { LIMITS } from '../../broker/limits.ts'
import { openSessionStore } from '../../broker/store-open.ts'

const log = openLog('test', 'silent', new PassThrough().resume())

interface SuiteOptions {
  test(title: string, run: (context: object) => Promise<void>): void
  persistence(): object
  testAsync: boolean
}
const contractSuite: (options: SuiteOptions) => void = createRequire(import.meta.url)(
  'aedes-persistence/abstract.js',
)

t.test('the store keeps the contract that Aedes has with its persistence', async (t) => {
  let count = 0
  contractSuite({
    test(title, run) {
      count++
      t.test(title, async () => run({ assert, plan() {}, diagnostic() {} }))
    },
    persistence: () => openSessionStore(':memory:', { durability: 'full', limits: LIMITS, log }),
    testAsync: true,
  })
  t.equal(count, 50)
})
