import { rmSync } from 'node:fs'
import type { Command } from 'commander'
import { layout } from '#shared/layout'
import type { Context } from '../context.ts'
import { type Invocation, noun, type Use } from '../verb.ts'

export function addDemoCommands(program: Command, use: Use): void {
  const demo = noun(program, 'demo', 'the simulated devices of the first start')
  demo.command('clear').description('forget every device of a synthetic fleet').action(use(clearDemo))
}

async function clearDemo(context: Context, _: Invocation<object>) {
  const { devices } = await context.plane().clearDemo()
  // Their keys are of no use any more, and the next demo would take them up.
  rmSync(layout(context.options.data).demo, { recursive: true, force: true })
  return context.answer({ devices }, () => `${devices} simulated device(s) are forgotten.`)
}
