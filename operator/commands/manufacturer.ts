import type { Command } from 'commander'
import type { Context } from '../context.ts'
import { formatWhen, parseExpiry } from '../duration.ts'
import { importRows } from '../import-rows.ts'
import { readTextFile } from '../json-file.ts'
import { readSerialList } from '../serial-list.ts'
import { table } from '../table.ts'
import { type Invocation, noun, type Use } from '../verb.ts'

interface AddOptions {
  readonly batch: string
  readonly ca: string
  readonly expires?: string
}

export function addManufacturerCommands(program: Command, use: Use): void {
  const manufacturer = noun(
    program,
    'manufacturer',
    'makers whose devices enroll with the certificate that they were made with (IEEE 802.1AR)',
  )
  manufacturer
    .command('add')
    .description('trust the CA of a manufacturer to enroll the devices on its list, for nothing else')
    .argument('<id>')
    .requiredOption('--batch <id>', 'batch that its devices belong to')
    .requiredOption('--ca <file>', 'the CA that issued the certificates in its devices, PEM')
    .option('--expires <when>', 'duration (24h, 30d) or ISO date')
    .action(use(addManufacturer))
  manufacturer
    .command('import')
    .description('list devices of the manufacturer: no other may enroll with its certificates')
    .argument('<id>')
    .argument('<file>', 'CSV with a heading, or a JSON array: serialNumber, certificateSerial, id')
    .option('--dry-run', 'judge every row, write nothing')
    .action(use(importList))
  manufacturer
    .command('list')
    .description('manufacturers, with how many of their devices have enrolled')
    .action(use(listManufacturers))
  manufacturer
    .command('cancel')
    .description('none of its devices enrolls any more; those that have enrolled stay')
    .argument('<id>')
    .action(use(cancelManufacturer))
}

async function addManufacturer(context: Context, { args, options }: Invocation<AddOptions>) {
  const [id = ''] = args
  const maker = await context.plane().addManufacturer({
    id,
    batch: options.batch,
    ca: readTextFile(options.ca),
    ...(options.expires ? { expiresAt: parseExpiry(options.expires, context.now()) } : {}),
  })
  context.say(`Next: muster manufacturer import ${id} <file>`)
  return context.answer(maker, () => `Manufacturer ${id} of batch ${maker.batch}: ${maker.subject}`)
}

async function importList(context: Context, { args, options }: Invocation<{ dryRun?: boolean }>) {
  const [manufacturer = '', file = ''] = args
  return importRows(context, {
    entries: readSerialList(readTextFile(file)),
    dryRun: options.dryRun ?? false,
    into: { manufacturer },
    send: (rows, dryRun) => context.plane().listManufactured(manufacturer, { dryRun, rows }),
  })
}

async function listManufacturers(context: Context, _: Invocation<object>) {
  const manufacturers = await context.plane().listManufacturers()
  return context.answer({ manufacturers }, () =>
    table(
      ['MANUFACTURER', 'BATCH', 'STATE', 'ENROLLED', 'EXPIRES', 'CA'],
      manufacturers.map(({ id, batch, state, enrolled, listed, expiresAt, subject }) => [
        id,
        batch,
        state,
        `${enrolled}/${listed}`,
        formatWhen(expiresAt, context.now()),
        subject,
      ]),
    ),
  )
}

async function cancelManufacturer(context: Context, { args }: Invocation<object>) {
  const [id = ''] = args
  const maker = await context.plane().cancelManufacturer(id)
  return context.answer(maker, () => `Manufacturer ${maker.id} of batch ${maker.batch} is cancelled.`)
}
