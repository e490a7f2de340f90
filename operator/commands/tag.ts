import type { Command } from 'commander'
import { MusterError } from '#shared/errors'
import type { Context } from '../context.ts'
import { pairs } from '../table.ts'
import type { Invocation, Use } from '../verb.ts'

export function addTagCommand(device: Command, use: Use): void {
  device
    .command('tag')
    .description('set attributes, which policies may depend on; an empty value takes one away')
    .argument('<device>')
    .argument('<attributes...>', 'name=value')
    .action(use(tag))
}

async function tag(context: Context, { args }: Invocation<object>) {
  const [id = '', ...given] = args
  const view = await context.plane().tagDevice(id, attributesOf(given))
  const { device, attributes } = view
  return context.answer({ device, attributes }, () =>
    pairs([['Device', device], ...Object.entries(attributes)]),
  )
}

function attributesOf(texts: readonly string[]): Record<string, string> {
  const attributes = texts.map((text) => {
    const at = text.indexOf('=')
    if (at < 1) throw new MusterError('invalid_request', `Cannot read "${text}": it must be name=value`)
    return [text.slice(0, at), text.slice(at + 1)] as const
  })
  return Object.fromEntries(attributes)
}
