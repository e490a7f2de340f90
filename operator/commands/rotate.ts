import type { Command } from 'commander'
import type { RotationProgress } from '#shared/api'
import { MusterError } from '#shared/errors'
import type { Context } from '../context.ts'
import { formatDuration, formatWhen, parseDuration } from '../duration.ts'
import { pairs } from '../table.ts'
import { targetOf } from '../target.ts'
import type { Invocation, Use } from '../verb.ts'

interface RotateOptions {
  readonly batch?: string
  readonly fleet?: string
  readonly over: string
  readonly status?: string
}

export function addRotateCommand(device: Command, use: Use): void {
  device
    .command('rotate')
    .description('ask devices for their next certificate before it is due, spread over a time')
    .argument('[device...]')
    .option('--batch <id>', 'every device of a batch')
    .option('--fleet <id>', 'every device of a fleet')
    .option('--over <duration>', 'time over which they are spread; 0 for all at once', '24h')
    .option('--status <id>', 'how far a rotation has come, and who is late')
    .action(use(rotate))
}

async function rotate(context: Context, { args, options }: Invocation<RotateOptions>) {
  const { status, over, batch, fleet } = options
  if (status !== undefined)
    return showProgress(context, { id: status, isAlone: args.length === 0 && !batch && !fleet })
  const { scope, devices } = targetOf(args, options)
  if (scope?.kind === 'issuer') throw new TypeError('there is no such option')
  const rotation = await context.plane().beginRotation({
    overMs: parseDuration(over),
    ...(scope ? { scope: { kind: scope.kind, id: scope.id } } : {}),
    ...(devices ? { devices } : {}),
  })
  context.say(`Next: muster device rotate --status ${rotation.id}`)
  return context.answer(
    rotation,
    () => `Rotation ${rotation.id} has begun, over ${formatDuration(rotation.overMs)}.`,
  )
}

async function showProgress(context: Context, { id, isAlone }: { id: string; isAlone: boolean }) {
  if (!isAlone)
    throw new MusterError('invalid_request', 'Cannot show a rotation and begin one: --status stands alone')
  const progress = await context.plane().showRotation(id)
  return context.answer(progress, () => describe(progress, context.now()))
}

function describe(progress: RotationProgress, now: number): string {
  const { scope, overMs, state, createdAt, moved, rotated, waiting, late, gone, stragglers } = progress
  const head = pairs([
    ['Rotation', `${progress.id}, ${state}`],
    ['Scope', scope.kind === 'devices' ? 'a list of devices' : `${scope.kind} ${scope.id}`],
    ['Begun', `${formatWhen(createdAt, now)}, over ${formatDuration(overMs)}`],
    ['Rotated', `${rotated} of ${moved}`],
    ['Waiting', waiting],
    ['Late', late],
    ['Gone', gone],
  ])
  return [head, ...stragglers.map((device) => `late: ${device}`)].join('\n')
}
