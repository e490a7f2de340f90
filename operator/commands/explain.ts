import type { Command } from 'commander'
import type { Explanation } from '#shared/api'
import type { Context } from '../context.ts'
import { refusalLines } from '../refusal-lines.ts'
import type { Invocation, Use } from '../verb.ts'
import { visible } from '../visible.ts'

/** What a step's verdict looks like. */
const MARKS = {
  ok: ['green', '✔'],
  refused: ['red', '✘'],
  unknown: ['yellow', '?'],
} as const satisfies Record<Explanation['steps'][number]['verdict'], unknown>

export function addExplainCommand(program: Command, use: Use): void {
  program
    .command('explain')
    .description('why a device is refused, with the evidence and the fix')
    .argument('<subject>', 'device id, serial or fingerprint of a certificate, or address')
    .action(use(explain))
}

async function explain(context: Context, { args }: Invocation<object>) {
  const [subject = ''] = args
  const explanation = await context.plane().explain(subject)
  return context.answer(explanation, () => asText(explanation, context))
}

function asText(
  { subject, device, verdict, code, text, fix, steps, lastRefusals, remedies }: Explanation,
  context: Context,
): string {
  const paint = context.terminal.paint
  const walk = steps.map(({ step, verdict, says }) => {
    const [colour, mark] = MARKS[verdict]
    return `  ${paint(colour, mark, 'out')} ${visible(step).padEnd(12)} ${visible(says)}`
  })
  const would = {
    admitted: 'would be admitted now',
    refused: device === null ? 'was refused last' : 'is refused',
    unknown: 'cannot be judged',
  }[verdict]
  const conclusion = code === null ? `${subject} ${would}. ${text}` : `${subject} ${would}: ${code}  ${text}`
  const way = fix === null ? [] : [`  ${visible(fix)}`]
  const others = remedies.filter((remedy) => remedy.code !== code)
  return [
    ...walk,
    paint('bold', visible(conclusion), 'out'),
    ...way,
    ...refusalLines(lastRefusals, { now: context.now(), ofOneDevice: device !== null }),
    ...others.flatMap(({ code, text, fix }) => ['', visible(`${code}  ${text}`), `  ${visible(fix)}`]),
  ].join('\n')
}
