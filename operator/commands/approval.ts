import type { Command } from 'commander'
import type { DeviceView } from '#shared/api'
import { MusterError } from '#shared/errors'
import type { Context } from '../context.ts'
import { formatWhen } from '../duration.ts'
import { table } from '../table.ts'
import type { Invocation, Use } from '../verb.ts'

interface DecideOptions {
  readonly spki?: string
  readonly yes?: boolean
}

/** So much of a key's fingerprint has to be named, hex digits. */
const LEAST_DIGITS = 8

/** The verbs of `muster device` for devices that have no certificate yet. */
export function addApprovalCommands(device: Command, use: Use): void {
  device
    .command('add')
    .description('expect a device: it enrolls without approval')
    .argument('<device>')
    .requiredOption('--batch <id>', 'batch that it belongs to')
    .option('--spki <hex>', 'only with this key: SHA-256 of its SubjectPublicKeyInfo')
    .action(use(addDevice))
  for (const verb of ['approve', 'reject'] as const) {
    device
      .command(verb)
      .description(
        verb === 'approve'
          ? 'let a pending device enroll, with the key that it asked for'
          : 'turn a pending device away; its token gets the use back',
      )
      .argument('<device>')
      .option(
        '--spki <hex>',
        `the key that is meant: the first ${LEAST_DIGITS} digits of its fingerprint or more`,
      )
      .option('-y, --yes', 'whichever key it asked for, without a question')
      .action(
        use((context, invocation: Invocation<DecideOptions>) => decide(context, { verb, ...invocation })),
      )
  }
}

/** Devices that wait, with what an operator compares before he approves. */
export function pendingTable(devices: readonly DeviceView[], now: number): string {
  return table(
    ['DEVICE', 'FLEET', 'BATCH', 'KEY', 'ASKED'],
    devices.map(({ id, fleet, batch, application }) => [
      id,
      fleet,
      batch ?? '-',
      application?.spki ?? '-',
      formatWhen(application?.since ?? null, now),
    ]),
  )
}

async function addDevice(context: Context, { args, options }: Invocation<{ batch: string; spki?: string }>) {
  const [id = ''] = args
  const { batch, spki } = options
  const key = spki === undefined ? {} : { spki: digits(spki) }
  const device = await context.plane().addDevice({ id, batch, ...key })
  return context.answer(device, () => `${device.id} of batch ${batch} may enroll.`)
}

async function decide(
  context: Context,
  { verb, args, options }: Invocation<DecideOptions> & { verb: 'approve' | 'reject' },
) {
  const [id = ''] = args
  const { application, state } = await context.plane().showDevice(id)
  if (application === null) throw new MusterError('conflict', `Cannot ${verb} "${id}": it is ${state}`)
  const { spki } = application
  await confirmKey(context, { id, spki, options })
  if (verb === 'approve') {
    const device = await context.plane().approveDevice(id, { spki })
    return context.answer({ ...device, spki }, () => `${id} is approved with the key ${spki}.`)
  }
  await context.plane().rejectDevice(id, { spki })
  return context.answer(
    { device: id, state: 'rejected', spki },
    () => `${id} is rejected, with the key ${spki}.`,
  )
}

/** @throws MusterError invalid_request, conflict (another key waits) */
async function confirmKey(
  context: Context,
  { id, spki, options }: { id: string; spki: string; options: DecideOptions },
): Promise<void> {
  if (options.spki === undefined && options.yes) return
  let named = options.spki
  if (named === undefined && context.terminal.canAsk && context.options.input) {
    context.say(`${id} asked with the key ${spki}`)
    named = await context.terminal.ask(`Type the first ${LEAST_DIGITS} digits, as the device shows them: `)
  }
  if (named === undefined || digits(named).length < LEAST_DIGITS) {
    throw new MusterError(
      'invalid_request',
      `Cannot tell which key is meant: compare ${spki} with the device's, then name it with --spki, or say --yes`,
    )
  }
  if (spki.startsWith(digits(named))) return
  throw new MusterError('conflict', `Cannot decide about "${id}": it waits with the key ${spki}`)
}

/** Fingerprints are written with colons and capitals as well. */
function digits(text: string): string {
  return text.replaceAll(':', '').toLowerCase()
}
