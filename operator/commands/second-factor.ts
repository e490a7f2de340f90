import type { Command } from 'commander'
import type { FactorScope, FactorView } from '#shared/api'
import { MusterError } from '#shared/errors'
import type { TokenRules } from '#shared/second-factor'
import type { Context } from '../context.ts'
import { readTextFile } from '../json-file.ts'
import { pairs } from '../table.ts'
import { type Invocation, noun, type Use } from '../verb.ts'

interface ScopeOptions {
  readonly fleet?: boolean
}

interface TokenOptions extends ScopeOptions {
  readonly issuer: string
  readonly audience: string
  readonly algorithm?: string[]
  readonly jwks: string
}

const SCOPE = ['--fleet', 'the id is of a fleet: each of its devices is asked'] as const

export function addFactorCommands(program: Command, use: Use): void {
  const factor = noun(program, 'factor', 'what a service or fleet brings beside its certificate')
  factor
    .command('show')
    .description('what is asked for; never the password')
    .argument('<id>', 'service; with --fleet a fleet')
    .option(...SCOPE)
    .action(use(show))
  factor
    .command('password')
    .description(
      'make a password and ask for it in CONNECT; it is shown once, alone on stdout, and the one before it ends',
    )
    .argument('<id>', 'service; with --fleet a fleet')
    .option(...SCOPE)
    .action(use(password))
  factor
    .command('jwt')
    .description(
      'ask for a token (JWT) as the password of CONNECT; its sub is the id of the device or service',
    )
    .argument('<id>', 'service; with --fleet a fleet')
    .requiredOption('--issuer <iss>', 'what its iss must be')
    .requiredOption('--audience <aud>', 'what its aud must name')
    .requiredOption(
      '--jwks <place>',
      'public keys that sign them: a file, or an https URL that brokers fetch',
    )
    .option('--algorithm <name...>', 'ES256 (default), ES384, EdDSA, PS256 or RS256')
    .option(...SCOPE)
    .action(use(token))
  factor
    .command('clear')
    .description('ask for the certificate alone')
    .argument('<id>', 'service; with --fleet a fleet')
    .option(...SCOPE)
    .action(use(clear))
}

async function show(context: Context, { args, options }: Invocation<ScopeOptions>) {
  return said(context, await context.plane().showFactor(scopeOf(args, options)))
}

async function password(context: Context, { args, options }: Invocation<ScopeOptions>) {
  const reply = await context.plane().setFactor(scopeOf(args, options), { kind: 'password' })
  const whose = `${reply.scope === 'fleet' ? 'fleet' : 'service'} ${reply.id}`
  context.say(`Password of ${whose}; sessions without it end now. It is not shown again:`)
  return context.answer(reply, () => reply.password ?? '')
}

async function token(context: Context, { args, options }: Invocation<TokenOptions>) {
  const { issuer, audience, jwks, algorithm = ['ES256'] } = options
  for (const [name, value] of Object.entries({ issuer, audience }))
    if (value === '') throw new MusterError('invalid_request', `Cannot take an empty --${name}`)
  const keys = keysAt(jwks)
  const algorithms = algorithm.map(algorithmOf)
  const rules = { issuer, audience, algorithms, ...keys }
  return said(context, await context.plane().setFactor(scopeOf(args, options), { kind: 'jwt', rules }))
}

function keysAt(place: string): Pick<TokenRules, 'jwks' | 'url'> {
  if (place.startsWith('https://') && URL.canParse(place)) return { url: place }
  if (/^[a-z]+:\/\//i.test(place))
    throw new MusterError(
      'invalid_request',
      `Cannot take keys from "${place}": it must be a file or an https URL`,
    )
  return { jwks: readTextFile(place) }
}

async function clear(context: Context, { args, options }: Invocation<ScopeOptions>) {
  return said(context, await context.plane().clearFactor(scopeOf(args, options)))
}

const ALGORITHMS = ['ES256', 'ES384', 'EdDSA', 'PS256', 'RS256'] as const satisfies TokenRules['algorithms']

function algorithmOf(name: string): TokenRules['algorithms'][number] {
  const found = ALGORITHMS.find((known) => known === name)
  if (found !== undefined) return found
  throw new MusterError(
    'invalid_request',
    `Cannot take tokens with "${name}": it must be ${ALGORITHMS.join(', ')}`,
  )
}

function scopeOf([id = '']: readonly string[], { fleet }: ScopeOptions): FactorScope {
  return { kind: fleet ? 'fleet' : 'service', id }
}

function said(context: Context, reply: FactorView) {
  const { scope, id, kind, rules } = reply
  return context.answer(reply, () =>
    pairs([
      [scope === 'fleet' ? 'Fleet' : 'Service', id],
      ['Second factor', kind],
      ...(rules === undefined
        ? []
        : ([
            ['Issuer', rules.issuer],
            ['Audience', rules.audience],
            ['Algorithms', rules.algorithms.join(', ')],
            ['Keys', rules.url ?? 'given as a file'],
          ] as const)),
    ]),
  )
}
