import { randomBytes } from 'node:crypto'
import t from 'tap'
import { choose, fullJitter, seededRandom } from '../../device-sim/backoff.ts'
import { systemClock, untilSeen, within } from '../../device-sim/clock.ts'
import { readArguments } from '../../device-sim/config.ts'
import { readCrl } from '../../device-sim/crl.ts'
import { openProgress } from '../../device-sim/progress.ts'
import { quantiles, summary } from '../../device-sim/report.ts'
import { type Finding, judge, type Measurements } from '../../device-sim/verdict.ts'
import { signCrl } from '../../enrollment/ca/crl.ts'
import { testAuthority } from '../support/pki.ts'
import fc from '../support/properties.ts'

function finding(id: string, changes: Partial<Finding> = {}): Finding {
  return {
    id,
    isRevoked: false,
    claim: { last: 5, unacknowledged: [] },
    missing: [],
    serialBefore: 'aa',
    pair: { id, fault: null, serial: 'bb', returnCode: 0 },
    certificates: [
      { serial: 'aa', state: 'active', firstSeenAt: 1 },
      { serial: 'bb', state: 'active', firstSeenAt: 2 },
    ],
    isAsked: true,
    closedAfterMs: null,
    ownReturnCode: null,
    ...changes,
  }
}

const REVOKED: Partial<Finding> = {
  isRevoked: true,
  pair: { id: 'b', fault: null, serial: 'bb', returnCode: 5 },
  certificates: [{ serial: 'bb', state: 'revoked', firstSeenAt: 2 }],
  closedAfterMs: 12,
  ownReturnCode: 5,
}

const LINE = {
  broker: 'broker-1',
  state: 'applied',
  position: 9,
  sessionsClosed: 1,
  closeMs: { p50: 1, p95: 1, max: 1 },
  survivors: [],
} as const

function run(changes: Partial<Measurements> & { a?: Partial<Finding>; b?: Partial<Finding> } = {}) {
  const { a, b, ...rest } = changes
  return judge({
    devices: [finding('a', a), finding('b', { ...REVOKED, ...b })],
    expects: { rotation: true, revoked: 1 },
    sessions: { before: 3, after: 2 },
    receipt: {
      id: 'p',
      sessionsClosed: 1,
      closeMs: LINE.closeMs,
      brokers: [{ ...LINE, survivors: [], purging: false }],
      survivors: [],
    },
    listedOnCrl: 1,
    seconds: 1.25,
    ...rest,
  })
}

t.test('a run in which everything held is ok', async (t) => {
  t.strictSame(run(), {
    outcome: {
      schemaVersion: 1,
      devices: 2,
      enrolled: 2,
      connected: 2,
      rotated: 2,
      messagesSent: 10,
      messagesLost: 0,
      revoked: 1,
      sessionsClosed: 1,
      closeMs: { p50: 12, p95: 12, max: 12 },
      refusedAfter: 1,
      bricked: 0,
      seconds: 1.3,
      ok: true,
    },
    findings: [],
  })
})

t.test('each thing that can be wrong makes the verdict not ok, and is named', async (t) => {
  const pair = { id: 'a', fault: null, serial: 'bb', returnCode: 0 }
  const wrongs: Record<string, [Parameters<typeof run>[0], RegExp]> = {
    'a message did not arrive': [{ a: { missing: [3] } }, /a: 1 message lost, the first is number 3/],
    'an acknowledged message of a revoked device did not arrive': [
      { b: { missing: [3] } },
      /b: 1 message lost/,
    ],
    'a device is not in the registry': [{ a: { certificates: [] } }, /1 of 2 devices are enrolled/],
    'a device was never seen by a broker': [
      { a: { certificates: [{ serial: 'bb', state: 'issued', firstSeenAt: null }] } },
      /1 of 2 devices were seen/,
    ],
    'a device kept its certificate': [{ a: { serialBefore: 'bb' } }, /a: not rotated/],
    'a new certificate was never used': [
      {
        a: {
          certificates: [
            { serial: 'aa', state: 'active', firstSeenAt: 1 },
            { serial: 'bb', state: 'issued', firstSeenAt: null },
          ],
        },
      },
      /a: not rotated/,
    ],
    'a key does not fit': [
      { a: { pair: { ...pair, fault: 'the key does not belong' } } },
      /a: the key does not belong/,
    ],
    'a certificate is no longer live': [
      { a: { certificates: [{ serial: 'bb', state: 'superseded', firstSeenAt: 1 }] } },
      /a: its certificate bb is superseded/,
    ],
    'the broker does not take a pair': [
      { a: { pair: { ...pair, returnCode: 5 } } },
      /a: the broker does not take its pair/,
    ],
    'a session did not close': [{ b: { closedAfterMs: null } }, /0 of 1 sessions closed/],
    'the broker still counts a session': [{ sessions: { before: 3, after: 3 } }, /0 of 1 sessions closed/],
    'a session closed late': [{ b: { closedAfterMs: 1000 } }, /closed after 1000 ms/],
    'a revoked device came back': [{ b: { ownReturnCode: null } }, /0 of 1 devices were refused/],
    'a revoked pair is taken': [
      { b: { pair: { ...pair, id: 'b', returnCode: 0 } } },
      /0 of 1 devices were refused/,
    ],
    'the registry has not revoked': [
      { b: { certificates: [{ serial: 'bb', state: 'active', firstSeenAt: 1 }] } },
      /0 of 1 devices are revoked/,
    ],
    'the CRL is behind': [{ listedOnCrl: 0 }, /CRL lists 0 of 1/],
    'a broker has not applied it': [
      {
        receipt: {
          id: 'p',
          sessionsClosed: 1,
          closeMs: LINE.closeMs,
          brokers: [{ ...LINE, state: 'pending', survivors: [], purging: false }],
          survivors: [],
        },
      },
      /receipt/,
    ],
    'nothing was sent': [
      { a: { claim: { last: 0, unacknowledged: [] } }, b: { claim: { last: 0, unacknowledged: [] } } },
      /no message was sent/,
    ],
  }
  for (const [name, [changes, says]] of Object.entries(wrongs)) {
    const { outcome, findings } = run(changes)
    t.equal(outcome.ok, false, name)
    t.match(findings.join('\n'), says, name)
  }
})

t.test('what a revoked device had not got acknowledged is not lost', async (t) => {
  const { outcome } = run({ b: { claim: { last: 5, unacknowledged: [5] }, missing: [5] } })
  t.ok(outcome.ok)
  t.equal(outcome.messagesSent, 9)
})

t.test('the summary says what happened, in the words of the documents', async (t) => {
  const { outcome, findings } = run({ a: { missing: [3] } })
  const text = summary({
    schemaVersion: 1,
    scenario: 'lifecycle',
    seed: 's',
    startedAt: '',
    outcome,
    latencyMs: { enroll: quantiles([1, 20]), connect: quantiles([1500]), rotate: quantiles([1]) },
    refusals: {},
    listedOnCrl: 1,
    receipt: null,
    findings,
  })
  t.match(text, 'enroll   ████████████ 2/2  p95 20 ms   connect  ████████████ 2/2  p95 1.5 s')
  t.match(text, 'rotate   2/2, 1 message lost of 10')
  t.match(
    text,
    'revoke   1 device (--now): 1 session closed after 12 ms (max), 1/1 refused on reconnect, CRL lists them',
  )
  t.match(text, 'NOT OK')
  t.match(text, '- a: 1 message lost')
})

t.test('progress is a bar on a terminal and one line elsewhere', async (t) => {
  const draw = (isTTY: boolean) => {
    const written: string[] = []
    const progress = openProgress({ isTTY, write: (text) => written.push(text) }, systemClock)
    const phase = progress.phase('enroll', 2)
    phase.tick(10)
    phase.end()
    return written
  }
  t.strictSame(draw(false), ['  enroll: 1/2  p95 10 ms\n'])
  t.ok(draw(true).every((text) => text.startsWith('\r')))
})

t.test(
  'a CRL lists what was revoked in its own second, and is read only when its issuer signed it',
  async (t) => {
    const authority = await testAuthority()
    t.teardown(() => authority.remove())
    const now = Math.floor(Date.now() / 1000) * 1000
    const entries = [
      { serial: 'ff'.repeat(16), revokedAt: now + 999, reason: 'unspecified' },
      { serial: `00${'0a'.repeat(15)}`, revokedAt: now + 999, reason: 'keyCompromise' },
    ] as const
    const crl = (list: typeof entries | []) =>
      signCrl(authority.device, {
        number: 1,
        thisUpdate: now,
        nextUpdate: now + 3_600_000,
        entries: [...list],
      })
    t.strictSame(
      [...readCrl(await crl(entries), authority.device.pem)],
      entries.map(({ serial }) => serial),
    )
    t.equal(readCrl(await crl([]), authority.device.pem).size, 0)
    t.throws(() => readCrl(randomBytes(100), authority.device.pem), SyntaxError)
    const der = await crl(entries)
    t.throws(() => readCrl(der, authority.infrastructure.pem), /not signed/)
  },
)

t.test('waits grow to a cap, differ between devices and repeat with a seed', async (t) => {
  const random = seededRandom('a')
  fc.assert(
    fc.property(fc.nat(2000), (attempt) => {
      const wait = fullJitter(attempt, { baseMs: 100, capMs: 30_000, random })
      return wait >= 0 && wait <= Math.min(30_000, 100 * 2 ** Math.min(attempt, 20))
    }),
  )
  const draw = (seed: string) => Array.from({ length: 5 }, seededRandom(seed))
  t.strictSame(draw('x'), draw('x'))
  t.notSame(draw('x'), draw('y'))
  const many = Array.from({ length: 10_000 }, seededRandom('mean'))
  t.ok(Math.abs(many.reduce((sum, value) => sum + value, 0) / many.length - 0.5) < 0.02)
  const chosen = choose([1, 2, 3, 4, 5], { count: 3, random: seededRandom('c') })
  t.equal(new Set(chosen).size, 3)
})

t.test('a wait has a deadline', async (t) => {
  const limit = { ms: 5, late: 'late', clock: systemClock } as const
  t.equal(await within(new Promise(() => {}), limit), 'late')
  t.equal(await within(Promise.resolve('in time'), limit), 'in time')
  let looks = 0
  t.equal(
    await untilSeen(async () => (++looks === 3 ? looks : null), { ms: 1000, everyMs: 1, clock: systemClock }),
    3,
  )
  t.equal(await untilSeen(async () => null, { ms: 2, everyMs: 1, clock: systemClock }), null)
})

t.test('arguments are read, and wrong ones are said on stderr with exit code 2', async (t) => {
  const read = (...argv: string[]) => {
    let stderr = ''
    let stdout = ''
    const intent = readArguments(argv, {
      stdout: (text) => (stdout += text),
      stderr: (text) => (stderr += text),
    })
    return { intent, stderr, stdout }
  }
  const { intent } = read('run', 'lifecycle', '--devices', '200', '--fleet', 'demo', '--keep')
  t.match(intent, {
    verb: 'run',
    options: { devices: 200, revoke: 5, fleet: 'demo', keep: true, json: false, seed: null },
  })
  t.match(read('run', 'lifecycle', '--devices', '3').intent, { options: { revoke: 1 } })
  t.match(read('run', 'steady', '--revoke', '3').intent, { options: { revoke: 0 } })
  t.match(read('list').intent, { verb: 'list' })
  for (const wrong of [
    ['run'],
    ['run', 'x'],
    ['run', 'steady', '--devices', '0'],
    ['run', 'steady', '--fleet', '../x'],
    ['run', 'steady', '--fault', 'x'],
    ['x'],
  ]) {
    const { intent, stderr, stdout } = read(...wrong)
    t.strictSame(intent, { verb: 'exit', code: 2 }, wrong.join(' '))
    t.not(stderr, '')
    t.equal(stdout, '')
  }
  const help = read('run', '--help')
  t.strictSame(help.intent, { verb: 'exit', code: 0 })
  t.match(help.stdout, /keep-session/)
})
