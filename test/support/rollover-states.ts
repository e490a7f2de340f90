/** Planes whose rollovers are cut off, repeated and left alone, in any order, while time passes. */
import { chmodSync, mkdirSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import type { Test } from 'tap'
import { isMusterError } from '#shared/errors'
import { sha256Hex } from '#shared/pki/keys'
import { openAuthority } from '../../enrollment/ca/create-ca.ts'
import type { Step } from '../../enrollment/deps.ts'
import { enroll } from '../../enrollment/enroll.ts'
import {
  abortRollover,
  cutOver,
  finishRollover,
  rolloverStatus,
  startRollover,
} from '../../enrollment/rollover.ts'
import { createToken } from '../../enrollment/tokens.ts'
import { newRequest, type RunningEnrollment, startEnrollment } from './enrollment.ts'
import fc from './properties.ts'

const NO_CHANNEL = { tlsUnique: null, why: 'no connection' } as const
const DAY_MS = 86_400_000
/** Of the first CAs: they end in the middle of most sequences. */
const FIRST_DAYS = 200
export const by = 'operator:test'

/** The end of the process in a step, as far as one process can play it: nothing after the step is done. */
class PowerCut extends Error {}

/** A plane that is cut off in steps and started again on the same directory, at a time that only goes on. */
export class Plane {
  readonly #test: Test
  readonly #data: string
  readonly #clock = { offsetMs: 0 }
  #cutAt: Step | null = null
  #service: RunningEnrollment | null = null
  #devices = 0

  constructor(test: Test, data: string) {
    this.#test = test
    this.#data = data
  }

  get service(): RunningEnrollment {
    if (this.#service === null) throw new Error('it is not started')
    return this.#service
  }

  async start(options: { clockIsRight?: boolean } = {}): Promise<void> {
    this.#service = await startEnrollment(this.#test, {
      ...options,
      data: this.#data,
      clock: this.#clock,
      reached: (step) => {
        if (step === this.#cutAt) throw new PowerCut()
      },
    })
  }

  async restart(): Promise<void> {
    this.#cutAt = null
    await this.service.stop()
    await this.start()
  }

  /** Does it, or is told why not; cut off in the step, it is started again, and asked once more. */
  async act(work: () => Promise<unknown>, cutAt: Step | null): Promise<void> {
    this.#cutAt = cutAt
    try {
      await work()
    } catch (error) {
      if (error instanceof PowerCut) {
        await this.restart()
        await work().catch((refused) => {
          // what was cut completes; but whether certificates are still good is judged in the commit of the last step
          if (cutAt !== 'rollover-finish.1' || !isMusterError(refused, 'conflict')) throw refused
        })
      } else if (!isMusterError(error, 'conflict')) throw error
    } finally {
      this.#cutAt = null
    }
  }

  async enroll(): Promise<void> {
    const { deps } = this.service
    const id = `d${++this.#devices}`
    const { token } = await createToken(deps, { batch: 'lab', uses: 1, by })
    const { der: csr } = await newRequest(id)
    // not over TLS: the test's clock is not that of the plane
    await enroll(deps, { tokenHash: sha256Hex(token), csr, label: null, channel: NO_CHANNEL })
    const { certificates } = await deps.registry.showDevice(id, deps.now())
    const [leaf] = certificates
    const issuer = deps.authority.cas.find(({ id }) => id === leaf?.issuer)
    if (!leaf || !issuer || leaf.notAfter > issuer.notAfter) throw new Error('a leaf outlives its issuer')
    if (!issuer.isTrusted) throw new Error('a leaf of a CA that is not trusted')
  }

  pass(days: number): void {
    this.#clock.offsetMs += days * DAY_MS
  }
}

interface StepCommand {
  readonly kind: 'start' | 'cut-over' | 'abort' | 'finish'
  /** Where it is cut off; 0: nowhere. */
  readonly cut: 0 | 1 | 2
  readonly root: boolean
}
type Command =
  | StepCommand
  | { readonly kind: 'enroll' | 'restart' }
  | { readonly kind: 'pass'; readonly days: number }

const command: fc.Arbitrary<Command> = fc.oneof(
  { weight: 5, arbitrary: stepCommand() },
  { weight: 2, arbitrary: fc.constant<Command>({ kind: 'enroll' }) },
  { weight: 1, arbitrary: fc.constant<Command>({ kind: 'restart' }) },
  { weight: 2, arbitrary: fc.constantFrom(1, 31, 90).map((days): Command => ({ kind: 'pass', days })) },
)

function stepCommand(): fc.Arbitrary<StepCommand> {
  return fc.record({
    kind: fc.constantFrom<StepCommand['kind'][]>('start', 'cut-over', 'abort', 'finish'),
    cut: fc.constantFrom<StepCommand['cut'][]>(0, 0, 1, 2),
    root: fc.boolean(),
  })
}

const STEPS = {
  start: ({ deps }: RunningEnrollment, root: boolean) =>
    startRollover(deps, { root, lifetimeMs: FIRST_DAYS * DAY_MS, by }),
  'cut-over': ({ deps }: RunningEnrollment) => cutOver(deps, { threshold: 0, by }),
  abort: ({ deps }: RunningEnrollment) => abortRollover(deps, { by }),
  finish: ({ deps }: RunningEnrollment) => finishRollover(deps, { by }),
} as const satisfies Record<
  StepCommand['kind'],
  (service: RunningEnrollment, root: boolean) => Promise<unknown>
>

const take = (plane: Plane, { kind, root }: Pick<StepCommand, 'kind' | 'root'>) =>
  STEPS[kind](plane.service, root)

export async function run(plane: Plane, one: Command): Promise<void> {
  switch (one.kind) {
    case 'enroll':
      return plane.enroll()
    case 'restart':
      return plane.restart()
    case 'pass':
      return pass(plane, one.days)
    default:
      return plane.act(() => take(plane, one), one.cut === 0 ? null : `rollover-${one.kind}.${one.cut}`)
  }
}

/** No operator lets both generations end: then only a restore or a new plane helps, whatever was under way. */
async function pass(plane: Plane, days: number): Promise<void> {
  const { authority, now } = plane.service.deps
  const ids = [authority.current, (await rolloverStatus(plane.service.deps)).rollover].flatMap((one) =>
    one === null
      ? []
      : 'to' in one
        ? one.endedAt === null
          ? [one.from.device, one.to.device]
          : []
        : [one.device],
  )
  const ends = authority.cas.filter(({ id }) => ids.includes(id)).map(({ notAfter }) => notAfter)
  if (now() + days * DAY_MS >= Math.max(...ends)) return
  plane.pass(days)
  await plane.restart()
}

/** From any state some of abort, cut-over and finish lead out, when time passes. */
async function findsAWayOut(plane: Plane): Promise<boolean> {
  for (let attempt = 0; attempt < 4; attempt++) {
    const { rollover } = await rolloverStatus(plane.service.deps)
    if (rollover === null || rollover.endedAt !== null) return true
    for (const kind of ['finish', 'abort'] as const) {
      await plane.act(() => take(plane, { kind, root: false }), null)
    }
    await pass(plane, 31)
  }
  return false
}

async function shortLived(data: string): Promise<void> {
  const directory = join(data, 'plane', 'ca')
  mkdirSync(directory, { recursive: true, mode: 0o700 })
  chmodSync(directory, 0o700)
  const passphrase = 'a long passphrase for a short test'
  writeFileSync(join(directory, 'passphrase'), `${passphrase}\n`, { mode: 0o600 })
  await openAuthority({
    ...{ directory, passphrase, trustDomain: 'muster.local', httpBase: 'http://localhost:8080' },
    now: Date.now(),
    lifetimes: { rootMs: 3650 * DAY_MS, issuingMs: FIRST_DAYS * DAY_MS },
  })
}

export async function planeOf(t: Test, name: string): Promise<Plane> {
  const data = join(t.testdirName, name)
  mkdirSync(data, { recursive: true })
  await shortLived(data)
  const made = new Plane(t, data)
  await made.start()
  return made
}

/** Random sequences of steps, each on a plane of its own. @throws with the sequence that had no way out */
export async function canAlwaysBeEnded(
  t: Test,
  { runs, steps }: { runs: number; steps: number },
): Promise<void> {
  let number = 0
  const commands = fc.array(command, { minLength: Math.min(4, steps), maxLength: steps })
  const property = fc.asyncProperty(commands, async (sequence) => {
    const plane = await planeOf(t, `run-${++number}`)
    for (const step of sequence) await run(plane, step)
    await plane.enroll()
    const isOut = await findsAWayOut(plane)
    await plane.enroll()
    const firstBad = await plane.service.deps.registry.verifyAudit()
    await plane.service.stop()
    return isOut && firstBad === null
  })
  await fc.assert(property, { numRuns: runs, endOnFailure: true })
}
