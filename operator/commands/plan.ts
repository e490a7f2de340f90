import type { Command } from 'commander'
import type { PlanView } from '#shared/api'
import type { Context } from '../context.ts'
import { formatWhen } from '../duration.ts'
import { receiptText } from '../stop.ts'
import { pairs, table } from '../table.ts'
import { type Invocation, noun, type Use } from '../verb.ts'

export function addPlanCommands(program: Command, use: Use): void {
  const plan = noun(program, 'plan', 'holds and revocations: what was planned, applied, undone')
  plan.command('list').description('plans, the newest first').action(use(listPlans))
  plan.command('show').description('one plan, with its receipt').argument('<id>').action(use(showPlan))
}

async function listPlans(context: Context, _: Invocation<object>) {
  const plans = await context.plane().listPlans()
  return context.answer({ plans }, () =>
    table(
      ['PLAN', 'ACTION', 'ON', 'DEVICES', 'STATE', 'BY', 'MADE', 'FINAL'],
      plans.map((plan) => [
        plan.id,
        plan.action,
        on(plan),
        plan.counts.devices,
        plan.state,
        plan.by,
        formatWhen(plan.createdAt, context.now()),
        formatWhen(plan.finaliseAt, context.now()),
      ]),
    ),
  )
}

async function showPlan(context: Context, { args }: Invocation<object>) {
  const [id = ''] = args
  const plan = await context.plane().showPlan(id)
  return context.answer(plan, () => {
    const head = pairs([
      ['Plan', plan.id],
      ['Action', `${plan.action} (${plan.reason})`],
      ['On', on(plan)],
      ['Devices', `${plan.counts.devices}, ${plan.counts.online} online when it was made`],
      ['Retained messages', plan.purgeRetained ? 'forgotten' : 'kept'],
      ['State', plan.state],
      ['By', plan.by],
      ['Applied', formatWhen(plan.appliedAt, context.now())],
      ['Final', formatWhen(plan.finaliseAt, context.now())],
    ])
    return plan.receipt ? `${head}\n\n${receiptText(plan.receipt, context)}` : head
  })
}

function on({ scope, counts }: PlanView): string {
  return scope.kind === 'plan' ? `${counts.devices} device(s)` : `${scope.kind} ${scope.id}`
}
