/** Caps as somebody writes them: hostile sections, and whose cap counts. */

import t from 'tap'
import {
  allowanceOf,
  CAP_DEFAULTS,
  CAP_NAMES,
  CAP_RANGES,
  type CapName,
  defaultAllowance,
} from '#shared/policy/caps'
import { pathText, policyFaults } from '#shared/policy/check'
import { compilePolicies } from '#shared/policy/compile'
import type { Policy } from '#shared/policy/schema'
import fc from '../../support/properties.ts'

const EVERYTHING: Policy = { publish: ['#'], subscribe: ['#'] }

t.test('hostile limits are refused, each with its place and what may stand there', async (t) => {
  const at = (limits: unknown) =>
    policyFaults({ publish: [], subscribe: [], limits }).map(
      ({ path, message }) => `${pathText(path)}: ${message}`,
    )
  t.same(at({}), [], 'none is a limit too few')
  t.same(at(CAP_DEFAULTS), [])
  for (const name of CAP_NAMES) {
    const [least, most] = CAP_RANGES[name]
    t.same(at({ [name]: least }), [], name)
    t.same(at({ [name]: most }), [], name)
    for (const value of [least - 1, most + 1, -1e308, 1e308, 2 ** 53, 1.5, '7', null, true, [7], {}]) {
      t.match(at({ [name]: value }), [
        `limits.${name}: must be a whole number from ${least} to ${most}, not `,
      ])
    }
  }
  const parsed = (json: string) => at(JSON.parse(json))
  t.match(parsed('{"subscriptions":1e999}'), [/limits\.subscriptions: must be a whole number/])
  for (const name of [
    '__proto__',
    'constructor',
    'toString',
    'hasOwnProperty',
    '',
    'Subscriptions',
    'packetBytes',
  ]) {
    const faults = parsed(`{"${name}":1,"queueMessages":5}`)
    t.match(faults, [`limits.${name}: is not known; limits are subscriptions, `], name)
    t.equal(faults.length, 1)
  }
  for (const limits of [null, 7, 'x', [], [{ subscriptions: 1 }], true]) {
    t.match(at(limits), [/limits: must be an object with a number for each limit/])
  }
  const many = Object.fromEntries(Array.from({ length: 10_000 }, (_, n) => [`x${n}`, n]))
  t.equal(at(many).length, 20, 'and no more faults than somebody reads')
  t.match(policyFaults({ publish: [], subscribe: [], limit: {} }), [
    { path: ['limit'], message: 'is not known' },
  ])
})

t.test('what is stored and cannot be read is as if it were not there', async (t) => {
  const device = { id: 'A', fleet: 'lab' }
  for (const limits of [
    7,
    null,
    [],
    'subscriptions',
    { subscriptions: -1, queueMessages: '5', colour: 3 },
    JSON.parse('{"__proto__":{"subscriptions":1},"constructor":2}'),
    Object.create({ subscriptions: 1 }),
  ]) {
    const policy = { ...EVERYTHING, limits } as Policy
    const compiled = compilePolicies({ policy, own: policy }, device)
    t.same(compiled.allowance.caps, CAP_DEFAULTS)
    t.same(compiled.allowance.from, {})
    t.ok(compiled.mayPublish('x'), 'its rules count')
  }
  const partly = { ...EVERYTHING, limits: { subscriptions: 0.5, queueBytes: 10 } }
  t.match(compilePolicies({ policy: partly }, device).allowance, {
    caps: { ...CAP_DEFAULTS, queueBytes: 10 },
    from: { queueBytes: 'fleet' },
  })
  const broken = { publish: 7, limits: { subscriptions: 3 } } as unknown as Policy
  t.notOk(compilePolicies({ policy: broken }, device).mayPublish('x'), 'a policy that is broken denies')
})

const anyLimits = fc.oneof(
  fc.record(
    Object.fromEntries(
      CAP_NAMES.map((name) => [name, fc.integer({ min: CAP_RANGES[name][0], max: CAP_RANGES[name][1] })]),
    ) as Record<CapName, fc.Arbitrary<number>>,
    { requiredKeys: [] },
  ),
  fc.dictionary(fc.constantFrom(...CAP_NAMES, '__proto__', 'constructor', 'x'), fc.anything()),
  fc.anything({ withNullPrototype: true }),
)

t.test(
  'the own limit counts, then that of the fleet, then the default: each in its range, or the default',
  async (t) => {
    fc.assert(
      fc.property(anyLimits, anyLimits, fc.constantFrom('device', 'service'), (fleets, owns, kind) => {
        const isFaulty = (limits: unknown) => policyFaults({ publish: [], subscribe: [], limits }).length > 0
        const defaults = defaultAllowance(kind as 'device' | 'service')
        const policies = { policy: { limits: fleets }, own: { limits: owns }, defaults }
        const { caps, from } = allowanceOf(policies)
        const said = (limits: unknown, name: CapName): number | null => {
          const { [name]: value = null } = Object.hasOwn(Object(limits), name) ? Object(limits) : {}
          return value !== null && !isFaulty({ [name]: value }) ? value : null
        }
        return CAP_NAMES.every((name) => {
          const [ofOwn, ofFleet] = [said(owns, name), said(fleets, name)]
          const expected = ofOwn ?? ofFleet ?? defaults.caps[name]
          const origin = ofOwn !== null ? 'own' : ofFleet !== null ? 'fleet' : undefined
          return caps[name] === expected && from[name] === origin
        })
      }),
      { numRuns: 2_000 },
    )
    t.same(Object.keys(CAP_DEFAULTS).sort(), [...CAP_NAMES].sort())
    const service = defaultAllowance('service').caps
    t.match(service, {
      queueMessages: 20_000,
      publishPerSecond: 1_000,
      subscriptions: 100,
      inflightInbound: 20,
    })
  },
)
