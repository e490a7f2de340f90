import type { Command } from 'commander'
import { MusterError } from '#shared/errors'
import type { Context } from '../context.ts'
import { parseDuration } from '../duration.ts'
import { reasonOf } from '../reason.ts'
import { stop } from '../stop.ts'
import { type TargetOptions, targetOf } from '../target.ts'
import type { Invocation, Use } from '../verb.ts'

interface RevokeOptions extends TargetOptions {
  readonly reason: string
  readonly undo?: string
  readonly now?: boolean
  readonly purgeRetained?: boolean
  readonly yes?: boolean
}

export function addRevokeCommand(program: Command, use: Use): void {
  program
    .command('revoke')
    .description('take certificates away: refused at once, final when the undo time is over')
    .argument('[device...]')
    .option('--batch <id>', 'every device and token of a batch')
    .option('--fleet <id>', 'every device and token of a fleet')
    .option('--issuer <id>', 'every certificate of an issuing CA')
    .option('--reason <reason>', 'RFC 5280 reason; keyCompromise has no undo time', 'unspecified')
    .option('--undo <duration>', 'time in which it can be undone; 15m when not given')
    .option('--now', 'no undo time: final at once')
    .option('--purge-retained', 'forget the retained messages of the devices, too: for good')
    .option('-y, --yes', 'more than one device without asking')
    .action(use(revoke))
}

async function revoke(context: Context, { args, options }: Invocation<RevokeOptions>) {
  const { reason, undo, now, purgeRetained = false, yes } = options
  if (now && undo !== undefined) {
    throw new MusterError('invalid_request', 'Cannot take --now and --undo together: --now is --undo 0')
  }
  const undoMs = now ? 0 : undo === undefined ? undefined : parseDuration(undo)
  const request = {
    action: 'revoke' as const,
    ...targetOf(args, options),
    reason: reasonOf(reason),
    ...(undoMs === undefined ? {} : { undoMs }),
    purgeRetained,
  }
  return stop(context, request, yes ?? false)
}
