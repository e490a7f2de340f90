import type { Command } from 'commander'
import type { Context } from '../context.ts'
import { importRows } from '../import-rows.ts'
import { readTextFile } from '../json-file.ts'
import { readManifest } from '../manifest.ts'
import type { Invocation, Use } from '../verb.ts'

interface ImportOptions {
  readonly batch: string
  readonly dryRun?: boolean
}

export function addImportCommand(device: Command, use: Use): void {
  device
    .command('import')
    .description(
      'expect the devices of a manifest: they enroll without approval, each with its key alone if it has one',
    )
    .argument(
      '<file>',
      'CSV with a heading (id, spki, attributes), or a JSON array of {id, spki, attributes}',
    )
    .requiredOption('--batch <id>', 'batch that they belong to')
    .option('--dry-run', 'judge every row, write nothing')
    .action(use(importDevices))
}

async function importDevices(context: Context, { args, options }: Invocation<ImportOptions>) {
  const [file = ''] = args
  const { batch, dryRun = false } = options
  return importRows(context, {
    entries: readManifest(readTextFile(file)),
    dryRun,
    into: { batch },
    send: (rows, dryRun) => context.plane().importDevices({ batch, dryRun, rows }),
  })
}
