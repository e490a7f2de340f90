import type { Command } from 'commander'
import type { Context } from '../context.ts'
import { formatWhen } from '../duration.ts'
import { pairs, table } from '../table.ts'
import type { Invocation, Use } from '../verb.ts'

export function addReportCommand(batch: Command, use: Use): void {
  batch
    .command('report')
    .description('what became of a batch: tokens, claims and their uses, devices, attempts on what is over')
    .argument('<batch>')
    .action(use(reportBatch))
}

async function reportBatch(context: Context, { args }: Invocation<object>) {
  const [id = ''] = args
  const report = await context.plane().batchReport(id)
  if (report.alarms.length > 0) {
    context.say('Somebody has a token that is over: if it is not a device that repeats itself, find out who.')
  }
  return context.answer(report, () => {
    const { batch, fleet, tokens, claims, manufacturers, uses, devices, alarms } = report
    const sums = pairs([
      ['Batch', batch],
      ['Fleet', fleet],
      ['Tokens', sum(tokens)],
      ['Claims', sum(claims)],
      ['Makers', sum(manufacturers)],
      ['Uses', sum(uses)],
      ['Devices', sum(devices)],
    ])
    if (alarms.length === 0) return sums
    const rows = alarms.map(({ token, kind, code, attempts, lastAt }) => [
      token,
      kind,
      code,
      attempts,
      formatWhen(lastAt, context.now()),
    ])
    return `${sums}\n\n${table(['TOKEN', 'KIND', 'REFUSED', 'ATTEMPTS', 'LAST'], rows)}`
  })
}

/** `5 = 3 open + 2 spent`: a reader sees that it adds up. */
function sum({ total, ...parts }: { total: number } & Readonly<Record<string, number>>): string {
  const named = Object.entries(parts).map(([name, count]) => `${count} ${name}`)
  return `${total} = ${named.join(' + ')}`
}
