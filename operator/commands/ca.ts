import { writeFileSync } from 'node:fs'
import { join } from 'node:path'
import type { Command } from 'commander'
import type { CaTree, RolloverStatus, RolloverView } from '#shared/api'
import { MusterError } from '#shared/errors'
import type { Context } from '../context.ts'
import { formatWhen, parseDuration } from '../duration.ts'
import { pairs, table } from '../table.ts'
import { type Invocation, noun, type Use } from '../verb.ts'

interface StartOptions {
  readonly root?: boolean
  readonly lifetime?: string
}

/** The CAs, and how one generation follows another (docs/rollover.md). */
export function addCaCommands(program: Command, use: Use): void {
  const ca = program.commands.find((command) => command.name() === 'ca') ?? noun(program, 'ca', 'the CAs')
  ca.command('show').description('every CA: what it is for, when it ends, whether it signs').action(use(show))
  const rollover = noun(ca, 'rollover', 'replace a CA before it ends: start, status, cut-over, finish')
  rollover
    .command('start')
    .description('make the new CA and publish it in the trust bundle; the old one goes on signing')
    .option('--root', 'a new root, with new CAs below it')
    .option('--lifetime <duration>', 'of the new issuing CAs; ten years when not given')
    .action(use(start))
  rollover
    .command('request')
    .description('for a root that is kept elsewhere: write requests for the new CAs, to be signed there')
    .option('--out <directory>', 'where the requests are written', '.')
    .action(use(request))
  rollover
    .command('status')
    .description('how many devices have the new bundle, and what is left of the old CA')
    .action(use(status))
  rollover
    .command('cut-over')
    .description('the new CA signs from now on, when enough devices have the new bundle')
    .option('--threshold <percent>', 'share of the devices that must have it', '99%')
    .action(use(cutOver))
  rollover
    .command('abort')
    .description('the old CA goes on; what the new one has signed stays good until finish')
    .action(use(abort))
  rollover
    .command('finish')
    .description('end the trust in the CA that no longer signs, when nothing good is left of it')
    .action(use(finish))
}

async function show(context: Context, _: Invocation<object>) {
  const tree = await context.plane().showCas()
  return context.answer(tree, () => treeText(tree, context.now()))
}

async function start(context: Context, { options }: Invocation<StartOptions>) {
  const rollover = await context.plane().startRollover({
    ...(options.root ? { root: true } : {}),
    ...(options.lifetime ? { lifetimeMs: parseDuration(options.lifetime) } : {}),
  })
  context.say('Devices fetch the new bundle when they renew. Then: muster ca rollover cut-over')
  return context.answer(rollover, () => rolloverText(rollover))
}

/** The keys stay with the plane: what is written here is no secret. */
async function request(context: Context, { options }: Invocation<{ out: string }>) {
  const { requests } = await context.plane().requestIssuers()
  const written = requests.map(({ kind, csr }) => {
    const path = join(options.out, `${kind}-ca.csr`)
    writeText(path, csr)
    return path
  })
  context.say('Take these to the root: muster ca sign-issuer. Then, here: muster ca install <chain...>')
  return context.answer({ requests: written }, () => written.join('\n'))
}

/** @throws MusterError invalid_request */
function writeText(path: string, text: string): void {
  try {
    writeFileSync(path, text)
  } catch (cause) {
    throw new MusterError('invalid_request', `Cannot write "${path}": ${(cause as Error).message}`, { cause })
  }
}

async function status(context: Context, _: Invocation<object>) {
  const view = await context.plane().rolloverStatus()
  return context.answer(view, () => statusText(view, context.now()))
}

async function cutOver(context: Context, { options }: Invocation<{ threshold: string }>) {
  const rollover = await context.plane().cutOverRollover({ threshold: shareOf(options.threshold) })
  context.say('Devices get certificates of the new CA when they renew. Then: muster ca rollover finish')
  return context.answer(rollover, () => rolloverText(rollover))
}

async function abort(context: Context, _: Invocation<object>) {
  const rollover = await context.plane().abortRollover()
  if (rollover.state === 'aborting') {
    context.say('What the new CA has signed is still good. When it is gone: muster ca rollover finish')
  }
  return context.answer(rollover, () => rolloverText(rollover))
}

async function finish(context: Context, _: Invocation<object>) {
  const rollover = await context.plane().finishRollover()
  return context.answer(rollover, () => rolloverText(rollover))
}

/** `99%` or `0.99`. @throws MusterError invalid_request */
function shareOf(text: string): number {
  const [, digits, sign] = /^(\d{1,3}(?:\.\d{1,6})?)(%?)$/.exec(text) ?? []
  const share = Number(digits) / (sign === '%' ? 100 : 1)
  if (share >= 0 && share <= 1) return share
  throw new MusterError('invalid_request', `Cannot read the threshold "${text}": write 99% or 0.99`)
}

function treeText({ bundleVersion, cas }: CaTree, now: number): string {
  const rows = cas.map(({ role, id, notAfter, isCurrent, isTrusted }) => [
    role,
    id.slice(0, 16),
    isCurrent ? 'signs' : isTrusted ? 'trusted' : 'gone',
    formatWhen(notAfter, now),
  ])
  return `Trust bundle ${bundleVersion}\n\n${table(['CA', 'ID', 'STATE', 'ENDS'], rows)}`
}

export function rolloverText({ id, kind, state, to }: RolloverView): string {
  return `${id}  ${kind}  ${state}  device CA ${to.device.slice(0, 16)}`
}

function statusText({ rollover, adoption, retiring, bundleVersion }: RolloverStatus, now: number): string {
  if (!rollover) return `No rollover so far. Trust bundle ${bundleVersion}`
  const rows: [string, string | number][] = [
    ['Rollover', rolloverText(rollover)],
    ['Trust bundle', bundleVersion],
  ]
  if (adoption) rows.push(['Adopted', `${adoption.adopted} of ${adoption.devices} devices`])
  if (adoption && adoption.waiting.length > 0) rows.push(['Missing', adoption.waiting.join(', ')])
  if (retiring)
    rows.push(['Retiring', `${retiring.issuer.slice(0, 16)}, ${retiring.live} certificates still good`])
  if (retiring?.notBefore) rows.push(['Finish from', formatWhen(retiring.notBefore, now)])
  return pairs(rows)
}
