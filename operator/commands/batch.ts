import type { Command } from 'commander'
import type { Context } from '../context.ts'
import { formatWhen } from '../duration.ts'
import { namingOf } from '../naming.ts'
import { table } from '../table.ts'
import { type Invocation, noun, type Use } from '../verb.ts'
import { addReportCommand } from './batch-report.ts'
import { addClaimCommand } from './claim.ts'

export function addBatchCommands(program: Command, use: Use): void {
  const batch = noun(program, 'batch', 'production runs of a fleet')
  batch
    .command('create')
    .description('make a batch')
    .argument('<id>')
    .option('--fleet <id>', 'fleet of its devices', 'default')
    .option('--naming <how>', 'where ids come from: csr, list or assigned', 'csr')
    .option('--approval', 'an operator approves each of its devices')
    .action(use(createBatch))
  batch.command('list').description('batches, with how many devices they have').action(use(listBatches))
  addReportCommand(batch, use)
  addClaimCommand(batch, use)
}

async function createBatch(
  context: Context,
  { args, options }: Invocation<{ fleet: string; naming: string; approval?: boolean }>,
) {
  const [id = ''] = args
  const { fleet, naming, approval = false } = options
  const batch = await context.plane().createBatch({ id, fleet, naming: namingOf(naming), approval })
  context.say(`Next: muster token create --batch ${batch.id} --uses <n>`)
  return context.answer(batch, () => `Batch ${batch.id} of fleet ${batch.fleet} is made.`)
}

async function listBatches(context: Context, _: Invocation<object>) {
  const batches = await context.plane().listBatches()
  return context.answer({ batches }, () =>
    table(
      ['BATCH', 'FLEET', 'NAMING', 'APPROVAL', 'DEVICES', 'TOKENS', 'MADE'],
      batches.map(({ id, fleet, naming, approval, devices, tokens, createdAt }) => [
        id,
        fleet,
        naming,
        approval ? 'yes' : 'no',
        devices,
        tokens,
        formatWhen(createdAt, context.now()),
      ]),
    ),
  )
}
