import type { Command } from 'commander'
import type { EventMessage, EventView } from '#shared/api'
import type { Context } from '../context.ts'
import { EXIT } from '../exit-codes.ts'
import { positiveInteger } from '../number.ts'
import { type Invocation, noun, type Use } from '../verb.ts'
import { visible } from '../visible.ts'

interface TailOptions {
  readonly after: string
  readonly epoch?: string
  readonly device?: string
  readonly follow: boolean
  readonly ndjson?: boolean
}

export function addEventCommands(program: Command, use: Use): void {
  const events = noun(program, 'events', 'what happened to devices, from a cursor on')
  events
    .command('tail')
    .description('every event after a cursor, and those that come; ends with an interrupt')
    .option('--after <sequence>', 'those after this one', '0')
    .option('--epoch <epoch>', 'the epoch that it is of: after a restore sequences begin anew')
    .option('--device <id>', 'of one device, with what covers it')
    .option('--no-follow', 'end at the newest')
    .option(
      '--ndjson',
      'one JSON message a line, gaps and cursors too; so does --json, but with --no-follow it is one document',
    )
    .action(use(tail))
}

/** `muster device timeline`: on the noun `device`. */
export function addTimelineCommand(device: Command, use: Use): void {
  device
    .command('timeline')
    .description('what happened to one device, the newest at the end')
    .argument('<device>')
    .option('--limit <n>', 'so many events', '50')
    .action(use(timeline))
}

async function tail(context: Context, { options }: Invocation<TailOptions>) {
  const { after, epoch, device, follow, ndjson } = options
  const from = {
    after: after === '0' ? 0 : positiveInteger('--after', after),
    epoch,
    device,
    follow: follow ? undefined : ('false' as const),
  }
  const interrupted = context.interrupted()
  const isOneDocument = context.options.json && !ndjson && !follow
  const messages: EventMessage[] = []
  try {
    for await (const message of context.plane().events(from, interrupted)) {
      if (isOneDocument) messages.push(message)
      else if (ndjson || context.options.json) context.terminal.out(JSON.stringify(message))
      else showMessage(context, message)
    }
  } catch (error) {
    if (!interrupted.aborted) throw error
  }
  return isOneDocument ? context.answer({ messages }, () => '') : EXIT.ok
}

function showMessage(context: Context, message: EventMessage): void {
  if (message.type === 'event') context.terminal.out(line(message))
  else if (message.type === 'gap') {
    context.say(
      `What followed ${message.after} is not kept, or is of before a restore: going on with ${message.oldest}.`,
    )
  }
}

async function timeline(context: Context, { args, options }: Invocation<{ limit: string }>) {
  const [id = ''] = args
  const page = await context.plane().timeline(id, { limit: positiveInteger('--limit', options.limit) })
  return context.answer(page, () =>
    page.events.length === 0 ? `Nothing is recorded of ${id}.` : page.events.map(line).join('\n'),
  )
}

/** Sequence, time, what, to whom, and the rest by name. */
function line({
  sequence,
  at,
  kind,
  scope,
  device,
  deviceSequence,
  ...more
}: EventView & { type?: string }): string {
  const { type: _, fingerprint: __, ...shown } = more
  const number = deviceSequence === null ? '' : ` #${deviceSequence}`
  const rest = Object.entries(shown).map(([name, value]) => `${name}=${value}`)
  return visible(
    [
      `${sequence}`.padStart(7),
      new Date(at).toISOString(),
      kind.padEnd(14),
      (device ?? scope) + number,
      ...rest,
    ].join('  '),
  )
}
