import { CAP_DEFAULTS, defaultAllowance } from '#shared/policy/caps'
import type { Connection } from '../broker/sessions.ts'

/** Connections that nothing is ever decided against, and that may say and hear everything. */
export * from '../broker/judge/decisions.ts'

type Policy = Connection['policy']

const ANYTHING: Policy = {
  publishRule: () => null, // nobody asks: the verdicts are stood in for as well
  mayPublish: () => true,
  publishQos: () => 2,
  subscribeQos: () => 2,
  maySubscribe: () => true,
  mayReceive: () => true,
  whyPublish: () => ({ isAllowed: true, rule: null, reason: '' }),
  whySubscribe: () => ({ isAllowed: true, rule: null, reason: '' }),
  // As that of the broker beside it, whose rates are lifted.
  allowance: defaultAllowance('service', { caps: { ...CAP_DEFAULTS, publishPerSecond: 0 } }),
  hasRates: false,
  rules: () => [],
}

export class Standing {
  get policy(): Policy {
    return ANYTHING
  }

  set policy(_: Policy) {}

  get refused(): null {
    return null
  }

  set refused(_: Connection['refused']) {}
}
