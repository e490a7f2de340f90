import type { Command } from 'commander'
import type { Context } from '../context.ts'
import { formatWhen, parseExpiry } from '../duration.ts'
import { table } from '../table.ts'
import { type Invocation, noun, type Use } from '../verb.ts'

export function addOperatorCommands(program: Command, use: Use): void {
  const operator = noun(program, 'operator', 'who may use the admin API')
  const token = noun(operator, 'token', 'API tokens: for programs that have no operator certificate')
  token
    .command('create')
    .description('make an API token; it is shown once, alone on stdout')
    .argument('<name>', 'who uses it: it is what the audit log says')
    .option('--expires <when>', 'duration (30d) or ISO date')
    .action(use(createApiToken))
  token.command('list').description('API tokens, without their secrets').action(use(listApiTokens))
  token.command('cancel').description('end an API token').argument('<name>').action(use(cancelApiToken))
}

async function createApiToken(context: Context, { args, options }: Invocation<{ expires?: string }>) {
  const [name = ''] = args
  const expiry = options.expires ? { expiresAt: parseExpiry(options.expires, context.now()) } : {}
  const reply = await context.plane().createApiToken({ name, ...expiry })
  context.say(`API token "${name}": send it as "Authorization: Bearer …". It is not shown again:`)
  return context.answer(reply, () => reply.token)
}

async function listApiTokens(context: Context, _: Invocation<object>) {
  const tokens = await context.plane().listApiTokens()
  return context.answer({ tokens }, () =>
    table(
      ['NAME', 'MADE', 'EXPIRES', 'CANCELLED'],
      tokens.map(({ name, createdAt, expiresAt, cancelledAt }) => [
        name,
        formatWhen(createdAt, context.now()),
        formatWhen(expiresAt, context.now()),
        formatWhen(cancelledAt, context.now()),
      ]),
    ),
  )
}

async function cancelApiToken(context: Context, { args }: Invocation<object>) {
  const [name = ''] = args
  await context.plane().cancelApiToken(name)
  return context.answer({ name, cancelled: true }, () => `API token "${name}" is cancelled.`)
}
