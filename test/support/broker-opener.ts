/** What a file of tests about the broker begins with. */
import type { Test } from 'tap'
import type { Limits } from '../../broker/limits.ts'
import { openTestBroker, type TestBroker, type TestBrokerOptions } from './broker.ts'
import type { TestAuthority } from './pki.ts'

export type OpenBroker = (t: Test, options?: Omit<TestBrokerOptions, 'authority'>) => Promise<TestBroker>

/** Opens brokers of one authority, each for as long as its test runs. `usual` are limits that a test may change. */
export function brokersOf(authority: TestAuthority, usual: Partial<Limits> = {}): OpenBroker {
  return async (t, options = {}) => {
    const limits = { ...usual, ...options.limits }
    const broker = await openTestBroker({ authority, ...options, limits })
    t.teardown(() => broker.close())
    return broker
  }
}
