import type { Command } from 'commander'
import type { Context } from '../context.ts'
import { reasonOf } from '../reason.ts'
import { stop } from '../stop.ts'
import { type TargetOptions, targetOf } from '../target.ts'
import type { Invocation, Use } from '../verb.ts'

interface HoldOptions extends TargetOptions {
  readonly reason?: string
  readonly purgeRetained?: boolean
  readonly yes?: boolean
}

export function addHoldCommand(program: Command, use: Use): void {
  program
    .command('hold')
    .description('stop devices at once; can be undone, they return with the same certificates')
    .argument('[device...]')
    .option('--batch <id>', 'every device and token of a batch')
    .option('--fleet <id>', 'every device and token of a fleet')
    .option('--issuer <id>', 'every certificate of an issuing CA')
    .option('--reason <reason>', 'noted with the hold: an RFC 5280 reason')
    .option('--purge-retained', 'forget the retained messages of the devices, too: for good')
    .option('-y, --yes', 'more than one device without asking')
    .action(use(hold))
}

async function hold(context: Context, { args, options }: Invocation<HoldOptions>) {
  const { reason, purgeRetained = false, yes = false } = options
  const said = reason ? { reason: reasonOf(reason) } : {}
  return stop(context, { action: 'hold', ...targetOf(args, options), ...said, purgeRetained }, yes)
}
