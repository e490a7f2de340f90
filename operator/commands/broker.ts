import type { Command } from 'commander'
import type { Context } from '../context.ts'
import { formatWhen, parseExpiry } from '../duration.ts'
import { table } from '../table.ts'
import { type Invocation, noun, type Use } from '../verb.ts'
import { addBrokerOptions, addServingOptions } from './programs.ts'

interface InviteOptions {
  readonly id?: string
  readonly expires: string
}

/** `muster broker` alone runs one: the CLI hands that on before it gets here. */
export function addBrokerCommands(program: Command, use: Use): void {
  const broker = noun(program, 'broker', 'run a broker; or list, invite and forget the brokers of the plane')
  addBrokerOptions(addServingOptions(broker))
    .option('--invite <file>', 'first start: the invitation that admits it')
    .option('--port <n>', 'port to listen on, in place of the one above the base')
    .option('--max-staleness <duration>', 'how long known devices get in while the registry is silent', '24h')
  broker.command('list').description('brokers, and how far they have followed').action(use(listBrokers))
  broker
    .command('invite')
    .description('an invitation for one broker, used once: move it to its machine as a file')
    .option('--id <id>', 'name of the broker; assigned when not given')
    .option('--expires <when>', 'duration or ISO date', '1h')
    .action(use(inviteBroker))
  broker
    .command('forget')
    .description('end a broker: its certificates open nothing, receipts no longer wait for it')
    .argument('<id>')
    .action(use(forgetBroker))
}

async function listBrokers(context: Context, _: Invocation<object>) {
  const brokers = await context.plane().listBrokers()
  return context.answer({ brokers }, () =>
    table(
      ['BROKER', 'STATE', 'SESSIONS', 'BEHIND', 'HEARD', 'URL'],
      brokers.map(({ id, state, sessions, behind, lastHeardAt, url }) => [
        id,
        state,
        sessions,
        behind ?? '-',
        formatWhen(lastHeardAt, context.now()),
        url ?? '-',
      ]),
    ),
  )
}

async function inviteBroker(context: Context, { options }: Invocation<InviteOptions>) {
  const invitation = await context.plane().inviteBroker({
    ...(options.id ? { id: options.id } : {}),
    expiresAt: parseExpiry(options.expires, context.now()),
  })
  context.say(
    `Good ${formatWhen(invitation.expiresAt, context.now())}, for one broker. It is a secret: keep it in a file.`,
  )
  context.say('There: muster broker --invite <file>')
  // A file for a program, so that it is the same document with and without --json.
  return context.answer(invitation, () => JSON.stringify(invitation, null, 2))
}

async function forgetBroker(context: Context, { args }: Invocation<object>) {
  const [id = ''] = args
  await context.plane().forgetBroker(id)
  return context.answer({ broker: id, forgotten: true }, () => `Broker ${id} is forgotten.`)
}
