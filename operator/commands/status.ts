import { setTimeout } from 'node:timers/promises'
import type { Command } from 'commander'
import type { StatusView } from '#shared/api'
import { MusterError } from '#shared/errors'
import type { Context } from '../context.ts'
import { formatWhen } from '../duration.ts'
import { EXIT } from '../exit-codes.ts'
import { pairs, table } from '../table.ts'
import type { Invocation, Use } from '../verb.ts'

/** Between two looks of `--watch`, ms. */
const WATCH_EVERY_MS = 2_000

/** Cursor home, clear to the end of the screen. */
const CLEAR = '\u001b[H\u001b[J'

export function addStatusCommand(program: Command, use: Use): void {
  program
    .command('status')
    .description('the fleet, the brokers, the CRL, what expires')
    .option('--watch', 'again every two seconds, until Ctrl-C')
    .action(use(status))
}

async function status(context: Context, { options }: Invocation<{ watch?: boolean }>) {
  if (options.watch) return watch(context)
  const view = await context.plane().status()
  return context.answer(view, () => statusText(view, context.now()))
}

async function watch(context: Context) {
  if (context.options.json) {
    throw new MusterError('invalid_request', 'Cannot watch with --json: it is one document')
  }
  const interrupted = context.interrupted()
  while (!interrupted.aborted) {
    const view = await context.plane().status()
    context.terminal.out(`${context.terminal.isScreen ? CLEAR : ''}${statusText(view, context.now())}`)
    await setTimeout(WATCH_EVERY_MS, undefined, { signal: interrupted }).catch(() => {}) // Ctrl-C ends the wait
  }
  return EXIT.ok
}

function crlText(crl: StatusView['crl'], now: number): string {
  const lists = crl.shards === 0 ? '' : ` in ${crl.shards} shards`
  return `number ${crl.number}, ${crl.entries} entries${lists}, oldest expires ${formatWhen(crl.earliestNextUpdate, now)}`
}

/** The fleet in one screen. */
export function statusText(view: StatusView, now: number): string {
  const { devices, crl, ocsp } = view
  const head = pairs([
    ['Trust domain', view.trustDomain],
    [
      'Devices',
      `${devices.active} active, ${devices.pending} pending, ${devices.expected} expected, ${devices.retired} retired`,
    ],
    ['Simulated', devices.synthetic],
    ['Online', devices.online],
    ['Holds', view.holds],
    ['Refused', `${view.refusedLastHour} in the last hour`],
    ['CRL', crlText(crl, now)],
    ['OCSP', `${ocsp.url}, responder expires ${formatWhen(ocsp.notAfter, now)}`],
    ...view.certificates.map(({ name, notAfter }) => [name, `expires ${formatWhen(notAfter, now)}`] as const),
  ])
  const brokers = table(
    ['BROKER', 'STATE', 'SESSIONS', 'BEHIND', 'HEARD'],
    view.brokers.map(({ id, state, sessions, behind, lastHeardAt }) => [
      id,
      state,
      sessions,
      behind ?? '-',
      formatWhen(lastHeardAt, now),
    ]),
  )
  const alarms = [
    ...view.brokers.flatMap(({ id, fault }) =>
      fault === undefined ? [] : [`ALARM  broker ${id}: ${fault}`],
    ),
    ...view.alarms.map((alarm) => alarmLine(alarm, now)),
    ...view.bootstrapAlarms.map((alarm) => bootstrapAlarmLine(alarm, now)),
    ...view.cloneAlarms.map((alarm) => cloneAlarmLine(alarm, now)),
  ]
  return [head, ...alarms, '', brokers].join('\n')
}

/** One line for a CA that ends soon, with what to do. */
export function alarmLine({ name, withinDays, notAfter }: StatusView['alarms'][number], now: number): string {
  const when = withinDays === 0 ? 'has ended' : `ends ${formatWhen(notAfter, now)}`
  return `ALARM  the ${name} ${when}: muster ca rollover start`
}

/** One line for a device whose key may be in two places, with what to do or what was done. */
export function cloneAlarmLine(alarm: StatusView['cloneAlarms'][number], now: number): string {
  const { device, address, otherAddress, lastAt, plan } = alarm
  const next = plan === null ? `muster hold ${device}` : `held by ${plan}`
  return `ALARM  ${device}: ${address} and ${otherAddress} take its identity from each other, last ${formatWhen(lastAt, now)}: ${next}`
}

/** One line for a token, claim or manufacturer that somebody tried in vain. */
export function bootstrapAlarmLine(alarm: StatusView['bootstrapAlarms'][number], now: number): string {
  const { kind, token, batch, code, attempts, lastAt } = alarm
  const last = formatWhen(lastAt, now)
  return `ALARM  ${kind} ${token}: ${attempts} attempt(s) refused with ${code}, last ${last}: muster batch report ${batch}`
}
