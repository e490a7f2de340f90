import { readFileSync } from 'node:fs'
import type { Command } from 'commander'
import type { TokenReply, TokenView } from '#shared/api'
import { MusterError } from '#shared/errors'
import type { Context } from '../context.ts'
import { formatWhen, parseExpiry } from '../duration.ts'
import { namingOf } from '../naming.ts'
import { positiveInteger } from '../number.ts'
import { table } from '../table.ts'
import { type Invocation, noun, type Use } from '../verb.ts'

interface CreateOptions {
  readonly batch: string
  readonly uses: string
  readonly expires?: string
  readonly devices?: string
  readonly naming?: string
  readonly approval?: boolean
}

export function addTokenCommands(program: Command, use: Use): void {
  const token = noun(program, 'token', 'bootstrap tokens: what a factory enrolls its devices with')
  token
    .command('create')
    .description('make a token; it is shown once, alone on stdout')
    .requiredOption('--batch <id>', 'batch that its devices belong to; made when it is new')
    .requiredOption('--uses <n>', 'how many devices may enroll with it')
    .option('--expires <when>', 'duration (24h, 30d) or ISO date')
    .option('--devices <file>', 'only these ids may enroll: a file with one id a line')
    .option('--naming <how>', 'where a new batch takes ids from: csr, list or assigned')
    .option('--approval', 'an operator approves each device that enrolls with it')
    .action(use(createToken))
  token
    .command('list')
    .description('tokens, claim certificates and manufacturers, without their secrets')
    .option('--batch <id>', 'of one batch')
    .action(use(listTokens))
  token
    .command('cancel')
    .description('end a token or a claim certificate: nobody enrolls with it any more')
    .argument('<id>', 'as `muster token list` shows it')
    .action(use(cancelToken))
}

async function createToken(context: Context, { options }: Invocation<CreateOptions>) {
  const reply = await context.plane().createToken({
    batch: options.batch,
    uses: positiveInteger('--uses', options.uses),
    ...(options.expires ? { expiresAt: parseExpiry(options.expires, context.now()) } : {}),
    ...(options.devices ? { devices: readIds(options.devices) } : {}),
    ...(options.approval ? { approval: true } : {}),
    ...(options.naming ? { naming: namingOf(options.naming) } : {}),
  })
  return answerToken(context, reply)
}

/** The secret alone on stdout, so that `TOKEN=$(muster token create …)` works; the rest is for people. */
export function answerToken(context: Context, reply: TokenReply) {
  const ends =
    reply.expiresAt === null ? 'does not expire' : `expires ${formatWhen(reply.expiresAt, context.now())}`
  context.say(
    `Token ${reply.id} of batch ${reply.batch}: ${reply.uses} use(s), ${ends}. It is not shown again:`,
  )
  return context.answer(reply, () => reply.token)
}

async function listTokens(context: Context, { options }: Invocation<{ batch?: string }>) {
  const tokens = await context.plane().listTokens(options.batch)
  return context.answer({ tokens }, () =>
    table(
      ['TOKEN', 'KIND', 'BATCH', 'STATE', 'USED', 'EXPIRES', 'FOR'],
      tokens.map((token) => [
        token.id,
        token.kind,
        token.batch,
        token.state,
        `${token.used}/${token.uses}`,
        formatWhen(token.expiresAt, context.now()),
        boundTo(token),
      ]),
    ),
  )
}

function boundTo({ device, listed }: TokenView): string {
  if (device !== null) return device
  return listed > 0 ? `${listed} listed` : 'any'
}

async function cancelToken(context: Context, { args }: Invocation<object>) {
  const [id = ''] = args
  const token = await context.plane().cancelToken(id)
  return context.answer(token, () => `The ${token.kind} ${token.id} of batch ${token.batch} is cancelled.`)
}

export function readIds(path: string): string[] {
  let text: string
  try {
    text = readFileSync(path, 'utf8')
  } catch (cause) {
    throw new MusterError('not_found', `Cannot read "${path}": ${(cause as Error).message}`, { cause })
  }
  const ids = text.split(/\r?\n/).map((line) => line.trim())
  return ids.filter((id) => id !== '' && !id.startsWith('#'))
}
