import type { Command } from 'commander'
import type { PlanView } from '#shared/api'
import { isMusterError, MusterError } from '#shared/errors'
import type { Context } from '../context.ts'
import type { Invocation, Use } from '../verb.ts'

export function addReleaseCommand(program: Command, use: Use): void {
  program
    .command('release')
    .description('undo a hold, or a revocation while its undo time lasts')
    .argument('<hold>', 'id of the hold or plan; or a device that is held by itself')
    .action(use(release))
}

async function release(context: Context, { args }: Invocation<object>) {
  const [subject = ''] = args
  const plan = await undo(context, subject)
  return context.answer(plan, () => {
    const who =
      plan.scope.kind === 'plan' ? `${plan.counts.devices} device(s)` : `${plan.scope.kind} ${plan.scope.id}`
    return `Released ${plan.id}: ${who} may connect with the same certificates. Other holds stay.`
  })
}

async function undo(context: Context, subject: string): Promise<PlanView> {
  try {
    return await context.plane().undoPlan(subject)
  } catch (error) {
    if (!isMusterError(error, 'not_found')) throw error
    return context.plane().undoPlan(await holdOfDevice(context, subject))
  }
}

/** The hold on this device alone: one on its batch or fleet is released by its own name, because others hang on it. */
async function holdOfDevice(context: Context, device: string): Promise<string> {
  const { holds } = await context.plane().showDevice(device)
  const [own, ...others] = holds.filter(({ scope }) => scope.kind === 'device')
  if (own && others.length === 0) return own.id
  if (holds.length === 0) throw new MusterError('conflict', `Cannot release "${device}": it is under no hold`)
  const named = holds.map(({ id, scope }) => `muster release ${id} (${scope.kind} ${scope.id})`)
  throw new MusterError(
    'conflict',
    `Cannot release "${device}" by its name, name the hold: ${named.join('; ')}`,
  )
}
