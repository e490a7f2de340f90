import type { Command } from 'commander'
import type { DeviceDetail } from '#shared/api'
import type { Context } from '../context.ts'
import { formatWhen, parseExpiry } from '../duration.ts'
import { positiveInteger } from '../number.ts'
import { refusalLines } from '../refusal-lines.ts'
import { pairs, table } from '../table.ts'
import { type Invocation, noun, type Use } from '../verb.ts'
import { addApprovalCommands, pendingTable } from './approval.ts'
import { addTimelineCommand } from './events.ts'
import { addImportCommand } from './import.ts'
import { addRotateCommand } from './rotate.ts'
import { addTagCommand } from './tag.ts'
import { answerToken } from './token.ts'

interface ListOptions {
  readonly fleet?: string
  readonly batch?: string
  readonly state?: string
  readonly after?: string
  readonly limit: string
}

export function addDeviceCommands(program: Command, use: Use): void {
  const device = noun(program, 'device', 'the devices')
  device
    .command('list')
    .description('devices, a page at a time')
    .option('--fleet <id>', 'of one fleet')
    .option('--batch <id>', 'of one batch')
    .option('--state <state>', 'expected, pending, active or retired')
    .option('--after <id>', 'the page after this device')
    .option('--limit <n>', 'devices a page', '100')
    .action(use(listDevices))
  device
    .command('show')
    .description('one device: certificates, holds, last refusals')
    .argument('<device>')
    .action(use(showDevice))
  addTimelineCommand(device, use)
  addRotateCommand(device, use)
  device
    .command('retire')
    .description('take a device out of service: it is refused, not revoked')
    .argument('<device>')
    .action(use(retireDevice))
  device
    .command('reissue')
    .description('a one-use token with which this device enrolls again, with a new key')
    .argument('<device>')
    .option('--expires <when>', 'duration (24h) or ISO date')
    .action(use(reissueDevice))
  addApprovalCommands(device, use)
  addImportCommand(device, use)
  addTagCommand(device, use)
}

async function listDevices(context: Context, { options }: Invocation<ListOptions>) {
  const page = await context
    .plane()
    .listDevices({ ...options, limit: positiveInteger('--limit', options.limit) })
  if (page.next !== null) context.say(`There are more: --after ${page.next}`)
  if (options.state === 'pending') {
    return context.answer(page, () => pendingTable(page.devices, context.now()))
  }
  return context.answer(page, () =>
    table(
      ['DEVICE', 'FLEET', 'BATCH', 'STATE', 'ONLINE', 'SEEN', 'EXPIRES'],
      page.devices.map((device) => [
        device.id,
        device.fleet,
        device.batch ?? '-',
        device.held ? `${device.state}, held` : device.state,
        device.online ? 'yes' : 'no',
        formatWhen(device.lastSeenAt, context.now()),
        formatWhen(device.expiresAt, context.now()),
      ]),
    ),
  )
}

async function showDevice(context: Context, { args }: Invocation<object>) {
  const [id = ''] = args
  const device = await context.plane().showDevice(id)
  return context.answer(device, () => describe(device, context.now()))
}

function describe(device: DeviceDetail, now: number): string {
  const head = pairs([
    [device.kind === 'service' ? 'Service' : 'Device', device.id],
    ['Fleet', device.fleet],
    ['Batch', device.batch ?? '-'],
    ['State', device.held ? `${device.state}, held` : device.state],
    ['Online', device.online ? 'yes' : `no, last seen ${formatWhen(device.lastSeenAt, now)}`],
    ...Object.entries(device.attributes),
  ])
  const asked = device.application && `\nWaits for approval of the key ${device.application.spki}`
  const certificates = table(
    ['SERIAL', 'STATE', 'EXPIRES', 'FIRST SEEN', 'REASON'],
    device.certificates.map((one) => [
      one.serial,
      one.state,
      formatWhen(one.notAfter, now),
      formatWhen(one.firstSeenAt, now),
      one.reason ?? '-',
    ]),
  )
  const holds = device.holds.map(({ id, scope, reason, since }) => {
    return `held by ${id} on ${scope.kind} ${scope.id} (${reason}), ${formatWhen(since, now)}: muster release ${id}`
  })
  return [
    head + (asked ?? ''),
    '',
    certificates,
    ...holds,
    ...refusalLines(device.refusals, { now, ofOneDevice: true }),
  ].join('\n')
}

async function retireDevice(context: Context, { args }: Invocation<object>) {
  const [id = ''] = args
  await context.plane().retireDevice(id)
  context.say(`The way back: muster device reissue ${id}`)
  return context.answer({ device: id, state: 'retired' }, () => `${id} is retired.`)
}

async function reissueDevice(context: Context, { args, options }: Invocation<{ expires?: string }>) {
  const [id = ''] = args
  const expiry = options.expires ? { expiresAt: parseExpiry(options.expires, context.now()) } : {}
  return answerToken(context, await context.plane().reissueDevice(id, expiry))
}
