import { setTimeout } from 'node:timers/promises'
import type { PlanRequest, PlanView, Receipt } from '#shared/api'
import { MusterError } from '#shared/errors'
import { isCarriedOut } from '#shared/receipt'
import type { Context } from './context.ts'
import { formatDuration } from './duration.ts'
import { EXIT, type ExitCode } from './exit-codes.ts'
import { table } from './table.ts'

/** How long the command waits for every broker before it names those that are pending, ms. */
const RECEIPT_WAIT_MS = 10_000

/** How long it waits for a revocation without undo time to be final, and between two looks, ms. */
const FINAL_WAIT_MS = 10_000
const FINAL_LOOK_MS = 50

/** Holds or revokes: proposes the plan, lets it be confirmed, applies it, and waits for the receipt. */
export async function stop(context: Context, request: PlanRequest, isConfirmed: boolean): Promise<ExitCode> {
  const plan = await context.plane().proposePlan(request)
  context.say(summary(plan))
  if (plan.counts.devices > 1 && !isConfirmed) await confirm(context, plan)
  const applied = await context.plane().applyPlan(plan.id, plan.counts.devices)
  const receipt = await context.plane().receipt(plan.id, RECEIPT_WAIT_MS)
  context.answer(receipt, () => receiptText(receipt, context))
  sayWhatIsNext(context, await untilFinal(context, applied))
  return isComplete(receipt) ? EXIT.ok : EXIT.partly
}

/**
 * A revocation without undo time becomes final in the background, in slices. Waiting for it means that the next command
 * sees it; the devices are stopped already, so a large one may go on for longer than this command.
 */
async function untilFinal(context: Context, applied: PlanView): Promise<PlanView> {
  if (applied.action === 'hold' || applied.finaliseAt === null || applied.finaliseAt > context.now())
    return applied
  let plan = applied
  for (let waitedMs = 0; plan.state !== 'final' && waitedMs < FINAL_WAIT_MS; waitedMs += FINAL_LOOK_MS) {
    await setTimeout(FINAL_LOOK_MS)
    plan = await context.plane().showPlan(applied.id)
  }
  return plan
}

/** What will be stopped, counted before it is. */
function summary({ id, action, scope, reason, counts, purgeRetained }: PlanView): string {
  const where = scope.kind === 'plan' ? `${counts.devices} device(s)` : `${scope.kind} ${scope.id}`
  const batches = Object.entries(counts.byBatch).map(([batch, devices]) => `${batch} ${devices}`)
  const parts = [
    `${counts.devices} device(s), ${counts.online} online`,
    ...(counts.tokens > 0 ? [`${counts.tokens} token(s)`] : []),
    ...(purgeRetained ? ['their retained messages are forgotten for good'] : []),
    ...(batches.length > 1 ? [`by batch: ${batches.join(', ')}`] : []),
  ]
  return `Plan ${id}: ${action} ${where} (${reason}): ${parts.join('; ')}`
}

async function confirm(context: Context, { action, counts }: PlanView): Promise<void> {
  const what = `${action} ${counts.devices} devices`
  if (!context.terminal.canAsk || !context.options.input) {
    throw new MusterError(
      'invalid_request',
      `Cannot ${what} without a confirmation: repeat the command with --yes`,
    )
  }
  const typed = await context.terminal.ask(`Type ${counts.devices} to ${what}: `)
  if (typed !== String(counts.devices)) {
    throw new MusterError('count_mismatch', `Cannot ${what}: "${typed}" was typed; nothing was changed`)
  }
}

/** True when every broker has applied the plan, has forgotten what it takes, and no session outlived it. */
export function isComplete({ brokers, survivors }: Receipt): boolean {
  return survivors.length === 0 && brokers.every(isCarriedOut)
}

/** One line a broker, then what is not done yet. */
export function receiptText(receipt: Receipt, { terminal }: Pick<Context, 'terminal'>): string {
  const { sessionsClosed, closeMs, brokers, survivors } = receipt
  const mark = isComplete(receipt)
    ? terminal.paint('green', '✔', 'out')
    : terminal.paint('yellow', '!', 'out')
  const slowest = sessionsClosed > 0 ? `, the last after ${formatDuration(closeMs.max)}` : ''
  const head = `${mark} Receipt ${receipt.id}: ${sessionsClosed} session(s) closed${slowest}`
  const lines = brokers.map(({ broker, state, position, sessionsClosed, closeMs }) => [
    broker,
    state,
    position ?? '-',
    sessionsClosed,
    `${closeMs.p50} / ${closeMs.p95} / ${closeMs.max}`,
  ])
  const waiting = brokers
    .filter(({ state }) => state !== 'applied')
    .map(({ broker, state }) => `${broker} (${state})`)
  const purging = brokers.filter((line) => line.purging).map(({ broker }) => broker)
  return [
    head,
    brokers.length > 0
      ? table(['BROKER', 'STATE', 'POSITION', 'CLOSED', 'MS P50/P95/MAX'], lines)
      : 'No broker follows this plane yet.',
    ...(waiting.length > 0
      ? [`Not yet applied by ${waiting.join(', ')}: it will be when they are back.`]
      : []),
    ...(purging.length > 0
      ? [
          `Closed, but not forgotten yet by ${purging.join(', ')}: sessions, queues or what else the plan takes.`,
        ]
      : []),
    ...(survivors.length > 0 ? [`Still connected: ${survivors.join(', ')}`] : []),
  ].join('\n')
}

function sayWhatIsNext(context: Context, { id, action, finaliseAt, state }: PlanView): void {
  context.say(
    action === 'hold' ? `Undo: muster release ${id}` : whenFinal({ id, finaliseAt, state }, context.now()),
  )
}

function whenFinal(
  { id, finaliseAt, state }: Pick<PlanView, 'id' | 'finaliseAt' | 'state'>,
  now: number,
): string {
  if (state === 'final') return 'It is final.'
  if (finaliseAt === null || finaliseAt <= now) return `It is becoming final: muster plan show ${id}`
  return `It is final in ${formatDuration(finaliseAt - now)}. Undo until then: muster release ${id}`
}
