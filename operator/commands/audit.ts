import type { Command } from 'commander'
import type { Context } from '../context.ts'
import { EXIT } from '../exit-codes.ts'
import { positiveInteger } from '../number.ts'
import { table } from '../table.ts'
import { type Invocation, noun, type Use } from '../verb.ts'

export function addAuditCommands(program: Command, use: Use): void {
  const audit = noun(program, 'audit', 'who changed what, and whether the log of it is whole')
  audit
    .command('list')
    .description('entries, oldest first')
    .option('--after <sequence>', 'those after this one', '0')
    .option('--limit <n>', 'at most so many', '100')
    .action(use(list))
  audit
    .command('verify')
    .description('recompute the chain up to its signed head; exit code 8 when it does not fit')
    .action(use(verify))
}

async function list(context: Context, { options }: Invocation<{ after: string; limit: string }>) {
  const after = options.after === '0' ? 0 : positiveInteger('--after', options.after)
  const entries = await context.plane().listAudit({ after, limit: positiveInteger('--limit', options.limit) })
  return context.answer({ entries }, () =>
    table(
      ['ENTRY', 'AT', 'BY', 'ACTION', 'SUBJECT'],
      entries.map(({ sequence, at, by, action, subject }) => [
        sequence,
        new Date(at).toISOString(),
        by,
        action,
        subject,
      ]),
    ),
  )
}

async function verify(context: Context, _: Invocation<object>) {
  const verdict = await context.plane().verifyAudit()
  const { ok, firstBad, head } = verdict
  context.answer(verdict, () => {
    if (ok)
      return `The audit log is whole; entry ${head.sequence} was signed ${new Date(head.at ?? 0).toISOString()}.`
    if (firstBad !== null) return `The audit log is not whole: entry ${firstBad} is missing or was changed.`
    return `The audit log cannot be vouched for: its signed head is ${head.state}.`
  })
  return ok ? EXIT.ok : EXIT.checkFailed
}
