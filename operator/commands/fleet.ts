import type { Command } from 'commander'
import type { PolicyRule } from '#shared/policy/schema'
import type { Context } from '../context.ts'
import { formatDuration, formatWhen, parseDuration } from '../duration.ts'
import { table } from '../table.ts'
import { type Invocation, noun, type Use } from '../verb.ts'
import { addProfileCommands, profileIn } from './profile.ts'
import { addQuarantineCommand } from './quarantine.ts'

interface CreateOptions {
  readonly lifetime?: string
  readonly certificates?: string
  readonly publish: readonly string[]
  readonly subscribe: readonly string[]
  readonly synthetic?: boolean
}

const collect = (value: string, before: readonly string[]) => [...before, value]

export function addFleetCommands(program: Command, use: Use): void {
  const fleet = noun(program, 'fleet', 'devices that share a certificate profile and a topic policy')
  fleet
    .command('create')
    .description('make a fleet')
    .argument('<id>')
    .option(
      '--certificates <file>',
      'profile of its certificates: JSON with keys, lifetime, renewal and names; see docs/profiles.md',
    )
    .option('--lifetime <duration>', 'life of its device certificates; 30d when not given')
    .option(
      '--publish <topic>',
      `topics that a device may publish to, repeatable; \${device.id} is its own`,
      collect,
      [],
    )
    .option('--subscribe <topic>', 'topics that a device may read, repeatable', collect, [])
    .option('--synthetic', 'simulated devices: left out of counts, ended by `muster demo clear`')
    .action(use(createFleet))
  addProfileCommands(fleet, use)
  addQuarantineCommand(fleet, use)
  fleet.command('list').description('fleets, with their policies').action(use(listFleets))
}

async function createFleet(context: Context, { args, options }: Invocation<CreateOptions>) {
  const [id = ''] = args
  const { lifetime, certificates, publish, subscribe, synthetic } = options
  const hasPolicy = publish.length + subscribe.length > 0
  const fleet = await context.plane().createFleet({
    id,
    ...(lifetime ? { lifetimeMs: parseDuration(lifetime) } : {}),
    ...(certificates ? { profile: profileIn(certificates) } : {}),
    ...(hasPolicy ? { policy: { publish: [...publish], subscribe: [...subscribe] } } : {}),
    ...(synthetic ? { synthetic } : {}),
  })
  context.say(`Next: muster batch create <batch> --fleet ${fleet.id}`)
  return context.answer(fleet, () => `Fleet ${fleet.id} is made.`)
}

async function listFleets(context: Context, _: Invocation<object>) {
  const fleets = await context.plane().listFleets()
  return context.answer({ fleets }, () =>
    table(
      ['FLEET', 'DEVICES', 'LIFETIME', 'PUBLISH', 'SUBSCRIBE', 'MADE'],
      fleets.map(({ id, devices, lifetimeMs, policy, createdAt }) => [
        id,
        devices,
        formatDuration(lifetimeMs),
        topicsOf(policy.publish),
        topicsOf(policy.subscribe),
        formatWhen(createdAt, context.now()),
      ]),
    ),
  )
}

/** Rules in short: `!` before those that deny. */
function topicsOf(rules: readonly PolicyRule[]): string {
  const short = rules.map((rule) =>
    typeof rule === 'string' ? rule : `${rule.effect === 'deny' ? '!' : ''}${rule.topic}`,
  )
  return short.join(' ')
}
