import { type Command, CommanderError, InvalidArgumentError, Command as NewCommand, Option } from 'commander'
import { isFleetId } from '#shared/identity/device'
import { FAULTS, type FaultName, isFaultName } from './faults.ts'
import { lifecycle } from './scenarios/lifecycle.ts'
import { revoke } from './scenarios/revoke.ts'
import { rotate } from './scenarios/rotate.ts'
import { steady } from './scenarios/steady.ts'
import type { Scenario } from './stage.ts'

export const SCENARIOS: readonly Scenario[] = [lifecycle, steady, rotate, revoke]

export interface RunOptions {
  readonly scenario: Scenario
  readonly devices: number
  /** Data directory of the plane. */
  readonly data: string
  readonly selfContained: boolean
  /** Null: a new one every time. */
  readonly seed: string | null
  readonly json: boolean
  readonly report: string | null
  readonly fleet: string
  readonly revoke: number
  readonly messages: number
  readonly concurrency: number
  /** Leaves the devices in `<data>/demo` and takes up those that are there. */
  readonly keep: boolean
  readonly fault: FaultName | null
}

export type Intent =
  | { readonly verb: 'run'; readonly options: RunOptions }
  | { readonly verb: 'list' }
  /** Help was asked for (0), or the arguments are wrong (2); commander has said why. */
  | { readonly verb: 'exit'; readonly code: 0 | 2 }

/** One session in forty, at least one: enough to see, few enough to keep. */
const REVOKED_SHARE = 40

/**
 * Reads the arguments after `muster sim`.
 * @param output where help (stdout) and complaints (stderr) go
 */
export function readArguments(
  argv: readonly string[],
  output: { stdout: (text: string) => void; stderr: (text: string) => void },
): Intent {
  let intent: Intent = { verb: 'exit', code: 0 }
  const program = makeProgram((chosen) => {
    intent = chosen
  }, output)
  try {
    program.parse(argv, { from: 'user' })
    return intent
  } catch (error) {
    if (!(error instanceof CommanderError)) throw error
    return { verb: 'exit', code: error.exitCode === 0 ? 0 : 2 }
  }
}

function makeProgram(
  choose: (intent: Intent) => void,
  { stdout, stderr }: { stdout: (text: string) => void; stderr: (text: string) => void },
): Command {
  const program = new NewCommand('muster sim')
    .description(
      'Simulated devices: a fleet of them goes through its life, and a judge says whether all went well.',
    )
    .exitOverride()
    .configureOutput({ writeOut: stdout, writeErr: stderr })
  addRun(program, choose)
  program
    .command('list')
    .description('List the scenarios.')
    .action(() => choose({ verb: 'list' }))
    .copyInheritedSettings(program)
  return program
}

function addRun(program: Command, choose: (intent: Intent) => void): void {
  const many = { least: 1, most: 100_000 }
  program
    .command('run')
    .copyInheritedSettings(program)
    .argument('<scenario>', SCENARIOS.map(({ name }) => name).join(', '), toScenario)
    .summary('play a scenario and judge it')
    .description('Plays a scenario on a plane that is running, or on one of its own, and judges it.')
    .option('--devices <n>', 'number of devices', toCount(many), 20)
    .option('--data <dir>', 'data directory of the plane', 'data')
    .option('--self-contained', 'start a plane for this run, and remove it afterwards', false)
    .option('--seed <text>', 'pacing and choice of devices depend on it alone (default: a new one)')
    .option('--json', 'one document on stdout', false)
    .option('--report <file>', 'write latencies, refusals and findings as JSON')
    .option('--fleet <id>', 'fleet of the devices; made as a synthetic one when missing', toFleet, 'sim')
    .option('--revoke <k>', 'how many are revoked (default: one in 40, at least one)', toCount(many))
    .option('--messages <m>', 'messages that each device sends at least', toCount(many), 5)
    .option('--concurrency <c>', 'devices that enroll, connect or rotate at a time', toCount(many), 32)
    .option('--keep', 'leave the devices in <data>/demo, and take up those that are there', false)
    .addOption(new Option('--fault <name>').argParser(toFault).hideHelp())
    .addHelpText('after', EPILOG)
    .action((scenario: Scenario, options: Record<string, unknown>) =>
      choose({ verb: 'run', options: toRun(scenario, options) }),
    )
}

const EPILOG = `
Exit codes: 0 the judge found everything right, 8 it did not, 7 no plane to reach, 2 usage.
The judge counts every session of the brokers while it revokes: let no other devices come and go meanwhile.

To test the judge, --fault plants one of:
${Object.entries(FAULTS)
  .map(([name, says]) => `  ${name.padEnd(13)} ${says}`)
  .join('\n')}
`

function toRun(scenario: Scenario, options: Record<string, unknown>): RunOptions {
  const given = options as Omit<RunOptions, 'scenario'> // commander has parsed each by the functions named above
  const devices = given.devices
  const revoked = Math.min(devices, given.revoke ?? Math.max(1, Math.round(devices / REVOKED_SHARE)))
  return {
    ...given,
    scenario,
    seed: given.seed ?? null,
    report: given.report ?? null,
    fault: given.fault ?? null,
    revoke: scenario.expects.revocation ? revoked : 0,
  }
}

function toScenario(name: string): Scenario {
  const scenario = SCENARIOS.find((each) => each.name === name)
  if (!scenario)
    throw new InvalidArgumentError(`It is one of ${SCENARIOS.map((each) => each.name).join(', ')}.`)
  return scenario
}

function toFleet(id: string): string {
  if (!isFleetId(id) || id.length > 40)
    throw new InvalidArgumentError('It is not a fleet id of at most 40 characters.')
  return id
}

function toFault(name: string): FaultName {
  if (!isFaultName(name)) throw new InvalidArgumentError(`It is one of ${Object.keys(FAULTS).join(', ')}.`)
  return name
}

function toCount({ least, most }: { least: number; most: number }): (text: string) => number {
  return (text) => {
    const value = Number(text)
    if (!/^\d+$/.test(text) || value < least || value > most) {
      throw new InvalidArgumentError(`It is a number from ${least} to ${most}.`)
    }
    return value
  }
}

/** Step at which this process ends itself with SIGKILL, for the crash tests (`MUSTER_CRASH_AT=rotate.3`). */
export function crashStep(environment: NodeJS.ProcessEnv): string | null {
  return environment.MUSTER_CRASH_AT ?? null
}
