import type { Command } from 'commander'
import { MusterError } from '#shared/errors'
import type { Context } from '../context.ts'
import type { Invocation, Use } from '../verb.ts'

export function addQuarantineCommand(fleet: Command, use: Use): void {
  fleet
    .command('quarantine')
    .description('whether the plane holds a device of the fleet when its identity is seen in two places')
    .argument('<fleet>')
    .option('--clones <on|off>', 'turn it on or off; off in a new fleet')
    .action(use(quarantine))
}

async function quarantine(context: Context, { args, options }: Invocation<{ clones?: string }>) {
  const [fleet = ''] = args
  const { clones } = options
  if (clones !== undefined && clones !== 'on' && clones !== 'off') {
    throw new MusterError('invalid_request', `Cannot use --clones "${clones}": it is on or off`)
  }
  const plane = context.plane()
  const view =
    clones === undefined
      ? await plane.showQuarantine(fleet)
      : await plane.setQuarantine(fleet, { clones: clones === 'on' })
  return context.answer(view, () =>
    view.clones
      ? `A clone alarm holds the device: \`muster release <hold>\` lifts it.`
      : `A clone alarm holds nobody in fleet ${view.fleet}.`,
  )
}
