import { resolve } from 'node:path'
import type { Command } from 'commander'
import { MusterError } from '#shared/errors'
import { parseDuration } from '../duration.ts'

/** A program of its own behind a command: it reads its own arguments. */
export type Program = (argv: string[]) => Promise<unknown>

/** Handed in, because the operator's tools know nothing of the services. */
export interface Programs {
  readonly enrollment: Program
  readonly broker: Program
  readonly sim: Program
  readonly bench: Program
}

/** What `muster broker <verb>` does about brokers; anything else after `muster broker` runs one. */
const BROKER_VERBS = ['list', 'invite', 'forget', 'help']

/** The program that a command line is for, and its arguments; null for a command of the operator. */
export function programOf(argv: readonly string[]): { name: keyof Programs; args: string[] } | null {
  const [name, ...args] = argv
  const wantsHelp = args.includes('--help') || args.includes('-h')
  if (name === 'sim' || name === 'bench') return { name, args }
  if (name === 'enrollment' && !wantsHelp) return { name, args }
  if (name === 'broker' && !wantsHelp && !BROKER_VERBS.includes(args[0] ?? '')) return { name, args }
  return null
}

/** Listed for the help; `programOf` has taken them before commander sees them. */
export function addProgramCommands(program: Command): void {
  const enrollment = program
    .command('enrollment')
    .description('run the enrollment service alone: CA, registry, EST and admin API')
    .option('--trust-domain <name>', 'name in every certificate, fixed at the first start')
  addServingOptions(addKeepingOptions(enrollment)).action(misplaced)
  program
    .command('sim')
    .description('simulated devices: `muster sim list`, `muster sim run <scenario>`')
    .helpOption(false)
    .argument('[arguments...]')
    .action(misplaced)
  program
    .command('bench')
    .description('measures Muster beside its peers: `muster bench list`, `muster bench <name>`')
    .helpOption(false)
    .argument('[arguments...]')
    .action(misplaced)
}

function misplaced(): never {
  throw new MusterError(
    'invalid_request',
    'Cannot run it so: write every option after the name of the command',
  )
}

/** What every process that listens takes. */
export function addServingOptions(command: Command): Command {
  return command
    .option('--port-base <n>', 'base of the ports', '8000')
    .option('--host <name>', 'name or address that clients use, repeatable')
    .option('--listen <address>', 'address to listen on', '127.0.0.1')
    .option('--metrics-port <n>', 'serve metrics for Prometheus on this port (default: none)')
    .option('--metrics-listen <address>', 'address of that port', '127.0.0.1')
    .option('--log-level <level>', 'trace, debug, info, warn, error', 'info')
}

/** What enrollment keeps, for how long, and where; `muster up` passes it on. */
export interface KeepingOptions {
  readonly keepExpired?: string
  readonly keepChanges?: string
  readonly keepAudit?: string
  readonly keepJournal?: string
  readonly journal?: string
  readonly clockIsRight?: boolean
}

export function addKeepingOptions(command: Command): Command {
  return command
    .option('--keep-expired <duration>', 'certificates, after they have expired (default: 90d)')
    .option('--keep-changes <duration>', 'changes; a broker away for longer takes a snapshot (default: 7d)')
    .option('--keep-audit <duration>', 'entries of the audit log (default: 400d)')
    .option('--keep-journal <duration>', 'backups that the journal still goes on from (default: 35d)')
    .option('--journal <directory>', 'where the journal of the registry lies (default: journal/ of the data)')
    .option('--clock-is-right', 'start although nothing happened here for 90 days, or something only later')
}

/** The same as arguments of `muster enrollment`. @throws MusterError invalid_request */
export function keepingArguments(options: KeepingOptions): string[] {
  const { keepExpired, keepChanges, keepAudit, keepJournal, journal } = options
  const kept = {
    '--keep-expired': keepExpired,
    '--keep-changes': keepChanges,
    '--keep-audit': keepAudit,
    '--keep-journal': keepJournal,
  }
  const given = Object.entries(kept).flatMap(([name, value]) =>
    value === undefined ? [] : [{ name, value }],
  )
  for (const { value } of given) parseDuration(value)
  const places = journal === undefined ? [] : ['--journal', resolve(journal)]
  const clock = options.clockIsRight === true ? ['--clock-is-right'] : []
  return [...given.flatMap(({ name, value }) => [name, value]), ...places, ...clock]
}

/** How a broker keeps messages, how many, and by which doors they come; `muster up` passes it on. */
export interface BrokerOptions {
  readonly durability?: string
  readonly limit?: readonly string[]
  readonly presence?: boolean
  readonly websocketPort?: string
  readonly websocketOrigin?: readonly string[]
  readonly alpn?: boolean
}

export function addBrokerOptions(command: Command): Command {
  const collect = (value: string, before: readonly string[] = []) => [...before, value]
  return command
    .option(
      '--durability <level>',
      'what acknowledged messages survive: kill (the process), full (default: the power, too)',
    )
    .option('--limit <limit=n>', 'another limit for clients, repeatable: docs/operations.md', collect)
    .option('--presence', 'tell services over MQTT which devices are connected: muster/presence/<device>')
    .option('--websocket-port <n>', 'a port for MQTT over WebSocket too; none without it')
    .option(
      '--websocket-origin <origin...>',
      'pages that may connect there, like https://console.example.net',
    )
    .option('--alpn', 'speak ALPN: mqtt, and x-amzn-mqtt-ca as devices of AWS IoT do')
}

/** The same as arguments of `muster broker`, which judges them. */
export function brokerArguments(options: BrokerOptions): string[] {
  const { durability, limit = [], presence, websocketPort, websocketOrigin = [], alpn } = options
  return [
    ...(durability === undefined ? [] : ['--durability', durability]),
    ...limit.flatMap((one) => ['--limit', one]),
    ...(presence === true ? ['--presence'] : []),
    ...(websocketPort === undefined ? [] : ['--websocket-port', websocketPort]),
    ...websocketOrigin.flatMap((one) => ['--websocket-origin', one]),
    ...(alpn === true ? ['--alpn'] : []),
  ]
}
