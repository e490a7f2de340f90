import { Command } from 'commander'
import { addAuditCommands } from './commands/audit.ts'
import { addBatchCommands } from './commands/batch.ts'
import { addBrokerCommands } from './commands/broker.ts'
import { addCaCommands } from './commands/ca.ts'
import { addCaFileCommands } from './commands/ca-files.ts'
import { addDemoCommands } from './commands/demo.ts'
import { addDeviceCommands } from './commands/device.ts'
import { addEventCommands } from './commands/events.ts'
import { addExplainCommand } from './commands/explain.ts'
import { addFleetCommands } from './commands/fleet.ts'
import { addHoldCommand } from './commands/hold.ts'
import { addKeyCommands } from './commands/key.ts'
import { addManufacturerCommands } from './commands/manufacturer.ts'
import { addOperatorCommands } from './commands/operator-token.ts'
import { addPlanCommands } from './commands/plan.ts'
import { addPolicyCommands } from './commands/policy.ts'
import { addProgramCommands } from './commands/programs.ts'
import { addReleaseCommand } from './commands/release.ts'
import { addRevokeCommand } from './commands/revoke.ts'
import { addFactorCommands } from './commands/second-factor.ts'
import { addServiceCommands } from './commands/service.ts'
import { addStatusCommand } from './commands/status.ts'
import { addTokenCommands } from './commands/token.ts'
import { addUpCommand } from './commands/up.ts'
import { addVersionCommand, musterVersion } from './commands/version.ts'
import { processTerminal, type Terminal } from './terminal.ts'
import type { Use } from './verb.ts'

export interface ProgramParts {
  readonly use: Use
  /** Path of `bin/muster.mjs`. */
  readonly bin: string
  readonly terminal: Terminal
}

/** What acts through the admin API, in the order of the help. */
const OPERATOR_COMMANDS = [
  addBrokerCommands,
  addStatusCommand,
  addTokenCommands,
  addBatchCommands,
  addManufacturerCommands,
  addFleetCommands,
  addPolicyCommands,
  addDeviceCommands,
  addKeyCommands,
  addServiceCommands,
  addFactorCommands,
  addHoldCommand,
  addReleaseCommand,
  addRevokeCommand,
  addPlanCommands,
  addExplainCommand,
  addEventCommands,
  addCaCommands,
  addAuditCommands,
  addCaFileCommands,
  addDemoCommands,
  addOperatorCommands,
  addVersionCommand,
]

/** For who only wants to look at the commands: its verbs do nothing. */
const LOOK: ProgramParts = { use: () => async () => {}, bin: '', terminal: processTerminal() }

/** Every command of `muster`, in the order of its help. */
export function buildProgram({ use, bin, terminal }: ProgramParts = LOOK): Command {
  const program = new Command('muster')
    .description(
      'Gives every device its own certificate, lets only those onto the broker, takes them away again.',
    )
    .version(musterVersion(), '--version', 'print the version')
    .option('--data <directory>', 'data directory of the plane', 'data')
    .option('--profile <file>', 'operator profile of a plane on another machine')
    .option('--json', 'one document on stdout')
    .option('--quiet', 'no word beside the result')
    .option('--no-color', 'no colours; NO_COLOR works too')
    .option('--no-input', 'never ask: fail instead')
    .configureHelp({ showGlobalOptions: true })
    .exitOverride()
    .configureOutput({
      writeOut: (text) => terminal.out(text.trimEnd()),
      writeErr: (text) => terminal.err(text.trimEnd()),
      outputError: () => {}, // the CLI shows every error in its own way
    })
  addUpCommand(program, use, bin)
  addProgramCommands(program)
  for (const add of OPERATOR_COMMANDS) add(program, use)
  return program
}
