import t from 'tap'
import type { AdminClient } from '#shared/admin-client'
import type { PlanView, Receipt } from '#shared/api'
import { MusterError } from '#shared/errors'
import { openContext } from '../../operator/context.ts'
import { EXIT, exitCodeOf } from '../../operator/exit-codes.ts'
import { showFailure } from '../../operator/failure.ts'
import { stop } from '../../operator/stop.ts'
import { table } from '../../operator/table.ts'
import type { Terminal } from '../../operator/terminal.ts'

/** A terminal that remembers what it was told; `answers` are typed when it asks. */
function terminal(answers: string[] | null = null): Terminal & { outs: string[]; errs: string[] } {
  const [outs, errs]: string[][] = [[], []]
  return {
    outs: outs ?? [],
    errs: errs ?? [],
    out: (text) => void outs?.push(text),
    err: (text) => void errs?.push(text),
    canAsk: answers !== null,
    isScreen: false,
    ask: async () => answers?.shift() ?? '',
    paint: (_, text) => text,
  }
}

const spread = { p50: 3, p95: 8, max: 12 }
const done: Receipt = {
  id: 'p-1',
  sessionsClosed: 2,
  closeMs: spread,
  brokers: [
    {
      broker: 'north',
      state: 'applied',
      position: 9,
      sessionsClosed: 2,
      closeMs: spread,
      survivors: [],
      purging: false,
    },
  ],
  survivors: [],
}
const southIsDown: Receipt = {
  ...done,
  brokers: [
    ...done.brokers,
    {
      broker: 'south',
      state: 'down',
      position: null,
      sessionsClosed: 0,
      closeMs: spread,
      survivors: [],
      purging: false,
    },
  ],
}

function plan(devices: number): PlanView {
  return {
    id: 'p-1',
    action: 'revoke',
    scope: { kind: 'batch', id: 'lab' },
    reason: 'unspecified',
    undoMs: 900_000,
    purgeRetained: false,
    state: 'applied',
    counts: { devices, online: 2, tokens: 1, byBatch: { lab: devices } },
    by: 'operator:local',
    createdAt: 0,
    appliedAt: 0,
    finaliseAt: 900_000,
    receipt: null,
  }
}

/** Runs `stop` against an admin API that answers with this plan and receipt, and remembers what was applied. */
async function stopped(options: {
  devices: number
  receipt?: Receipt
  answers?: string[]
  isConfirmed?: boolean
  json?: boolean
  input?: boolean
  finaliseAt?: number
}) {
  const {
    devices,
    receipt = done,
    answers = null,
    isConfirmed = false,
    json = false,
    input = true,
    finaliseAt = 900_000,
  } = options
  const applied: number[] = []
  const states = ['applied', 'finalising', 'final']
  const plane = {
    proposePlan: async () => plan(devices),
    applyPlan: async (_: string, count: number) => {
      applied.push(count)
      return { ...plan(devices), finaliseAt }
    },
    receipt: async () => receipt,
    showPlan: async () => ({ ...plan(devices), finaliseAt, state: states.shift() ?? 'final' }),
  }
  const screen = terminal(answers)
  const parts = { terminal: screen, now: () => 0, interrupted: () => new AbortController().signal }
  const context = {
    ...openContext({ ...parts, options: { data: 'data', json, color: false, input } }),
    plane: () => plane as unknown as AdminClient, // the three routes that `stop` uses
  }
  const status = stop(context, { action: 'revoke', scope: { kind: 'batch', id: 'lab' } }, isConfirmed)
  return { status, applied, screen, states }
}

t.test('one device is stopped without a question', async (t) => {
  const { status, applied, screen } = await stopped({ devices: 1 })
  t.equal(await status, EXIT.ok)
  t.strictSame(applied, [1])
  t.match(screen.outs.join('\n'), /2 session\(s\) closed, the last after 12 ms/)
  t.match(screen.errs.join('\n'), /final in 15m. Undo until then: muster release p-1/)
})

t.test('more than one device is stopped when their number is typed', async (t) => {
  const { status, applied } = await stopped({ devices: 5, answers: ['5'] })
  t.equal(await status, EXIT.ok)
  t.strictSame(applied, [5])
})

t.test('a revocation without undo time is waited for until it is final', async (t) => {
  const { status, screen, states } = await stopped({ devices: 1, finaliseAt: 0 })
  t.equal(await status, EXIT.ok)
  t.strictSame(states, [], 'it looked until it was')
  t.match(screen.errs.at(-1), /^It is final\.$/)
})

t.test('another number, or none, stops nothing', async (t) => {
  for (const answers of [['4'], ['yes'], ['']]) {
    const { status, applied } = await stopped({ devices: 5, answers })
    await t.rejects(status, { code: 'count_mismatch' })
    t.strictSame(applied, [])
  }
})

t.test('without a terminal, and with --no-input, nothing is asked and nothing stopped', async (t) => {
  for (const options of [{}, { answers: ['5'], input: false }]) {
    const { status, applied } = await stopped({ devices: 5, ...options })
    await t.rejects(status, { code: 'invalid_request', message: /--yes/ })
    t.strictSame(applied, [])
  }
  const { status, applied } = await stopped({ devices: 5, isConfirmed: true })
  t.equal(await status, EXIT.ok)
  t.strictSame(applied, [5])
})

t.test('a broker that has not applied it is named, with its own status', async (t) => {
  const { status, screen } = await stopped({ devices: 1, receipt: southIsDown })
  t.equal(await status, EXIT.partly)
  t.match(screen.outs.join('\n'), /Not yet applied by south \(down\)/)
})

t.test('a survivor is named, with its own status', async (t) => {
  const { status, screen } = await stopped({ devices: 1, receipt: { ...done, survivors: ['lamp'] } })
  t.equal(await status, EXIT.partly)
  t.match(screen.outs.join('\n'), /Still connected: lamp/)
})

t.test('with --json the receipt is the only thing on stdout', async (t) => {
  const { status, screen } = await stopped({ devices: 1, json: true, receipt: southIsDown })
  t.equal(await status, EXIT.partly)
  t.equal(screen.outs.length, 1)
  t.strictSame(JSON.parse(screen.outs[0] ?? ''), { schemaVersion: 1, ...southIsDown })
})

t.test(
  'a refusal is shown with its code, the text and the fix, for the device that it is about',
  async (t) => {
    const screen = terminal()
    const error = new MusterError('id_taken', 'Cannot enroll "lamp": it has another key', {
      evidence: { device: 'lamp' },
    })
    t.equal(showFailure(error, screen, false), EXIT.conflict)
    t.match(screen.errs[0], /R-ID-TAKEN {2}Cannot enroll "lamp"/)
    t.match(screen.errs[0], /`muster device reissue lamp`/)
    t.strictSame(screen.outs, [])
  },
)

t.test('with --json an error is one document on stdout', async (t) => {
  const screen = terminal()
  t.equal(showFailure(new MusterError('not_found', 'Cannot find "x"'), screen, true), EXIT.notFound)
  t.strictSame(JSON.parse(screen.outs.join('')), {
    schemaVersion: 1,
    error: { code: 'not_found', message: 'Cannot find "x"', evidence: {} },
  })
})

t.test('an error that quotes a device steers no terminal', async (t) => {
  const screen = terminal()
  showFailure(new MusterError('conflict', 'Cannot read "\u001b[2J\r\nok"'), screen, false)
  t.equal(screen.errs.join(''), '✘ Cannot read "\\u001b[2J\\u000d\\u000aok"')
})

t.test('a bug is shown with its stack, a code of a newer server as a fault', async (t) => {
  const screen = terminal()
  t.equal(showFailure(new TypeError('x is not a function'), screen, false), EXIT.fault)
  t.match(screen.errs[0], /TypeError: x is not a function\n +at /)
  t.equal(exitCodeOf('of_tomorrow' as 'internal'), EXIT.fault) // what json-client makes of an unknown code
  t.equal(exitCodeOf('toString' as 'internal'), EXIT.fault) // and of one that every object answers to
})

t.test('the columns of a table line up, and nothing in them steers the terminal', async (t) => {
  t.equal(
    table(
      ['ID', 'N'],
      [
        ['a', 1],
        ['long-one', 22],
      ],
    ),
    'ID        N\na         1\nlong-one  22',
  )
  t.notMatch(table(['X'], [['\u001b[2Jgone\u0007\u009b']]), /[\u0007\u001b\u009b]/)
  t.equal(table(['X'], []), 'X')
})
