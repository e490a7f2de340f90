import { type Command, Option } from 'commander'
import type {
  DevicePolicyView,
  FleetPolicyView,
  LimitChange,
  LimitView,
  PolicyAnswer,
  PolicyPreview,
  PolicyQuestion,
} from '#shared/api'
import { isMusterError, MusterError } from '#shared/errors'
import { nameOfRule } from '#shared/policy/compile'
import type { Policy, PolicyRule } from '#shared/policy/schema'
import type { Context } from '../context.ts'
import { EXIT } from '../exit-codes.ts'
import { positiveInteger } from '../number.ts'
import { policyIn } from '../policy-file.ts'
import { pairs, table } from '../table.ts'
import { type Invocation, noun, type Use } from '../verb.ts'

interface CheckOptions {
  readonly qos: string
  readonly retain?: boolean
  readonly payload?: string
  readonly address?: string
}

export function addPolicyCommands(program: Command, use: Use): void {
  const policy = noun(program, 'policy', 'what devices and services may publish and read, and how much')
  policy
    .command('show')
    .description('the rules and limits of a fleet, or those that count for a device or a service')
    .argument('<id>', 'fleet, device or service; a fleet when both have this id')
    .option('--device', 'the device or service of this id')
    .action(use(show))
  policy
    .command('check')
    .description('may the device do it, and by which rule? Exits 8 when it may not')
    .argument('<device>', 'device or service')
    .argument('<action>', 'publish or subscribe')
    .argument('<topic>', 'topic, or filter of a subscription')
    .addOption(new Option('--qos <n>', 'QoS that is asked for').choices(['0', '1', '2']).default('0'))
    .option('--retain', 'a message with the retain flag')
    .option('--payload <octets>', 'length of its payload')
    .option('--address <ip>', 'where the client is; without it a rule for certain networks does not allow')
    .action(use(check))
  policy
    .command('apply')
    .description(
      'replace the policy of a fleet, device or service; it counts within a second, for who is connected too',
    )
    .argument('<id>', 'fleet; with --device a device or service')
    .argument('<file>', 'JSON, as `show --json` prints it; see docs/policies.md')
    .option(
      '--dry-run',
      'check the file and say what it would cut, and which limits it would change; change nothing',
    )
    .option('--device', 'the own policy of a device or service, in the place of what its fleet allows')
    .action(use(apply))
  policy
    .command('remove')
    .description('take the own policy of a device or service away: its fleet counts alone')
    .argument('<device>')
    .action(use(removeOwn))
}

async function show(context: Context, { args, options }: Invocation<{ device?: boolean }>) {
  const [id = ''] = args
  const fleet = options.device ? null : await found(context.plane().showFleetPolicy(id))
  if (fleet !== null) return context.answer(fleet, () => describeFleet(fleet))
  const device = await found(context.plane().showDevicePolicy(id))
  if (device === null) {
    throw new MusterError('not_found', `Cannot find a fleet, device or service with the id "${id}"`)
  }
  return context.answer(device, () => describeDevice(device))
}

async function found<T>(asked: Promise<T>): Promise<T | null> {
  try {
    return await asked
  } catch (error) {
    if (isMusterError(error, 'not_found')) return null
    throw error
  }
}

function describeFleet({ fleet, policy, policyEpoch, limits }: FleetPolicyView): string {
  const rows = (['publish', 'subscribe'] as const).flatMap((list) =>
    policy[list].map((rule, at) => [`${list}[${at}]`, effectOf(rule), topicOf(rule), limitsOf(rule)]),
  )
  const head = pairs([['Fleet', `${fleet}, epoch ${policyEpoch}`]])
  return `${head}\n\n${table(['RULE', 'EFFECT', 'TOPIC', 'LIMITS'], rows)}\n\n${limitTable(limits)}`
}

/** Where no policy says anything each broker has its own, which is not known here when its operator has set one. */
function limitTable(limits: readonly LimitView[]): string {
  const rows = limits.map(({ limit, value, from }) => [limit, value, from ?? 'broker (its --limit, or this)'])
  return table(['LIMIT OF ONE CLIENT', 'VALUE', 'FROM'], rows)
}

function effectOf(rule: PolicyRule): string {
  return typeof rule === 'string' ? 'allow' : (rule.effect ?? 'allow')
}

function topicOf(rule: PolicyRule): string {
  return typeof rule === 'string' ? rule : rule.topic
}

/** Everything that the rule says beside topic and effect. */
function limitsOf(rule: PolicyRule): string {
  if (typeof rule === 'string') return '-'
  const { topic, effect, when, ...limits } = rule
  const said = Object.entries({ ...limits, ...when }).map(
    ([name, value]) => `${name}=${JSON.stringify(value)}`,
  )
  return said.join(' ') || '-'
}

function describeDevice(view: DevicePolicyView): string {
  const { device, kind, fleet, batch, attributes, own, rules, limits } = view
  const head = pairs([
    [kind === 'service' ? 'Service' : 'Device', device],
    ['Fleet', fleet],
    ['Batch', batch ?? '-'],
    ...Object.entries(attributes).map(([name, value]) => [`attribute ${name}`, value] as const),
    ['Own policy', own === null ? 'none' : 'yes: of the rules of its fleet only those that deny count'],
  ])
  const rows = rules.map(({ scope, list, index, effect, filter, rule }) => [
    `${scope} ${list}[${index}]`,
    effect,
    filter ?? '-',
    limitsOf(rule),
  ])
  return `${head}\n\n${table(['RULE', 'EFFECT', `FOR THIS ${kind.toUpperCase()}`, 'LIMITS'], rows)}\n\n${limitTable(limits)}`
}

async function check(context: Context, { args, options }: Invocation<CheckOptions>) {
  const [device = '', action = '', topic = ''] = args
  if (action !== 'publish' && action !== 'subscribe') {
    throw new MusterError('invalid_request', `Cannot check "${action}": it is publish or subscribe`)
  }
  const { qos, retain, payload, address } = options
  const answer = await context.plane().checkPolicy({
    ...{ device, action, topic },
    qos: Number(qos) as NonNullable<PolicyQuestion['qos']>, // one of the choices
    ...(retain ? { retain } : {}),
    ...(payload === undefined
      ? {}
      : { payloadBytes: payload === '0' ? 0 : positiveInteger('--payload', payload) }),
    ...(address === undefined ? {} : { address }),
  })
  context.answer({ ...answer, action, topic }, () => verdictOf(answer, { action, topic }))
  return answer.allowed ? EXIT.ok : EXIT.checkFailed
}

function verdictOf(
  { device, allowed, rule, reason, maxQos }: PolicyAnswer,
  { action, topic }: { action: string; topic: string },
): string {
  const what = action === 'publish' ? `publish to ${topic}` : `subscribe to ${topic}`
  const by = rule === null ? '' : `\n  ${nameOfRule(rule)}`
  const most = maxQos === undefined ? '' : `, with QoS ${maxQos} at most`
  return `${device} ${allowed ? 'may' : 'may not'} ${what}${most}: ${reason}.${by}`
}

async function apply(
  context: Context,
  { args, options }: Invocation<{ dryRun?: boolean; device?: boolean }>,
) {
  const [id = '', file = ''] = args
  const policy = policyIn(file)
  if (options.device) {
    if (options.dryRun)
      throw new MusterError('invalid_request', 'Cannot rehearse the policy of one device: use policy check')
    const view = await context.plane().setDevicePolicy(id, policy)
    return context.answer(view, () => describeDevice(view))
  }
  if (options.dryRun) return rehearse(context, { fleet: id, policy })
  const view = await context.plane().setFleetPolicy(id, policy)
  return context.answer(view, () => describeFleet(view))
}

async function rehearse(context: Context, { fleet, policy }: { fleet: string; policy: Policy }) {
  const preview = await context.plane().previewFleetPolicy(fleet, policy)
  context.say('Nothing is changed: this is a rehearsal.')
  return context.answer({ ...preview, dryRun: true }, () => describePreview(preview))
}

function describePreview({ fleet, devices, examined, affected, cuts, limits }: PolicyPreview): string {
  const looked = examined === devices ? `all ${devices}` : `${examined} of ${devices}, evenly picked`
  const head = `Fleet ${fleet}: ${affected} of the devices examined (${looked}) would lose something.`
  const tables = [
    ...(cuts.length === 0 ? [] : [cutTable(cuts)]),
    ...(limits.length === 0 ? [] : [changeTable(limits)]),
  ]
  return [head, ...tables].join('\n\n')
}

function cutTable(cuts: PolicyPreview['cuts']): string {
  const rows = cuts.map(({ list, rule, loss, devices, online, example }) => [
    list,
    rule,
    loss,
    devices,
    online,
    `${example.device}: ${example.filter}`,
  ])
  return table(['LIST', 'RULE OF NOW', 'LOSES', 'DEVICES', 'ONLINE', 'EXAMPLE'], rows)
}

function changeTable(limits: readonly LimitChange[]): string {
  const shown = (value: number | null) => value ?? 'that of the broker'
  const rows = limits.map(({ limit, before, after, devices, online }) => [
    limit,
    shown(before),
    shown(after),
    devices,
    online,
  ])
  return table(['LIMIT', 'NOW', 'WOULD BE', 'DEVICES', 'ONLINE'], rows)
}

async function removeOwn(context: Context, { args }: Invocation<object>) {
  const [id = ''] = args
  await context.plane().removeDevicePolicy(id)
  return context.answer({ device: id, own: null }, () => `${id} has no policy of its own any more.`)
}
