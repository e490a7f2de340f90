import type { Command } from 'commander'
import type { FleetProfile } from '#shared/api'
import type { Context } from '../context.ts'
import { formatDuration } from '../duration.ts'
import { readJsonFile } from '../json-file.ts'
import { pairs } from '../table.ts'
import { type Invocation, noun, type Use } from '../verb.ts'

export function addProfileCommands(fleet: Command, use: Use): void {
  const profile = noun(fleet, 'profile', 'what the certificates of a fleet are like')
  profile
    .command('show')
    .description('keys, lifetime, renewal window and names')
    .argument('<fleet>')
    .action(use(showProfile))
  profile
    .command('set')
    .description('replace the profile; it counts from the next certificate on')
    .argument('<fleet>')
    .argument('<file>', 'JSON, as `show --json` prints it; what it leaves out is as in a new fleet')
    .action(use(setProfile))
}

async function showProfile(context: Context, { args }: Invocation<object>) {
  const [fleet = ''] = args
  const profile = await context.plane().showProfile(fleet)
  return context.answer({ fleet, profile }, () => describe(fleet, profile))
}

async function setProfile(context: Context, { args }: Invocation<object>) {
  const [fleet = '', file = ''] = args
  const profile = await context.plane().setProfile(fleet, profileIn(file))
  return context.answer({ fleet, profile }, () => describe(fleet, profile))
}

/** A profile, alone or as `show --json` prints it. @throws MusterError invalid_request */
export function profileIn(file: string): object {
  const document = readJsonFile(file)
  return 'profile' in document && typeof document.profile === 'object' && document.profile !== null
    ? document.profile
    : document
}

function describe(fleet: string, { keys, lifetimeMs, lifetimeJitter, renewal, ...profile }: FleetProfile) {
  const { subject, san, graceMs, linkedToTls, serverKeys } = profile
  const percent = (share: number) => `${Math.round(share * 1000) / 10}%`
  const names = san.map((name) => ('uri' in name ? `URI:${name.uri}` : `DNS:${name.dns}`))
  return pairs([
    ['Fleet', fleet],
    ['Keys', keys.join(', ')],
    ['Lifetime', `${formatDuration(lifetimeMs)}, up to ${percent(lifetimeJitter)} less`],
    [
      'Renewal',
      `from ${percent(renewal.after)} (+ ${percent(renewal.jitter)}) to ${percent(renewal.before)} of it`,
    ],
    ['Organization', subject.organization ?? '-'],
    ['Unit', subject.organizationalUnit ?? '-'],
    ['Further names', names.join(' ') || '-'],
    ['Grace', graceMs === 0 ? 'none' : `${formatDuration(graceMs)} after the end`],
    ['Linked to TLS', linkedToTls ? 'yes' : 'no'],
    ['Keys made by the plane', serverKeys ? 'where a device asks for it' : 'no'],
  ])
}
