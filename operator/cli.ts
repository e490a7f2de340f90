import { type Command, CommanderError } from 'commander'
import { isMusterError, MusterError } from '#shared/errors'
import { announceFailure } from '#shared/service'
import { type Programs, programOf } from './commands/programs.ts'
import { type Context, type GlobalOptions, openContext } from './context.ts'
import { EXIT, type ExitCode } from './exit-codes.ts'
import { showFailure } from './failure.ts'
import type { Maintenance } from './maintenance.ts'
import { buildProgram } from './program.ts'
import { type StopSignals, stopSignals } from './stop-signals.ts'
import { processTerminal, type Terminal } from './terminal.ts'
import type { Invocation, Use } from './verb.ts'

export interface CliDeps extends Programs {
  /** Path of `bin/muster.mjs`, with which `muster up` starts its children. */
  readonly bin: string
  readonly maintenance?: () => Promise<Maintenance>
  /** The terminal of this process when absent. */
  readonly terminal?: Terminal
}

/**
 * `muster <argv>`. Never throws: what goes wrong is shown.
 * @returns the status to end with; null when the command is another program, which has set it or goes on serving
 */
export async function run(argv: readonly string[], deps: CliDeps): Promise<ExitCode | null> {
  const terminal = deps.terminal ?? processTerminal()
  const program = programOf(argv)
  try {
    if (program !== null) {
      await deps[program.name](program.args)
      return null
    }
    return await runCommand(argv, { ...deps, terminal })
  } catch (error) {
    if (program !== null && isMusterError(error)) await announceFailure(error.code, error.message)
    return showFailure(error, terminal, program === null && argv.includes('--json'))
  }
}

async function runCommand(
  argv: readonly string[],
  deps: CliDeps & { terminal: Terminal },
): Promise<ExitCode> {
  let status: ExitCode = EXIT.ok
  const use: Use =
    (verb) =>
    async (...received) => {
      const command = received.at(-1) as Command // commander's convention: the command comes last
      status = await withContext(command, deps, (context) =>
        // The options are what the command declares beside its verb.
        verb(context, { args: command.args, options: command.opts() } as Invocation<never>),
      )
    }
  try {
    await buildProgram({ use, bin: deps.bin, terminal: deps.terminal }).parseAsync(argv, { from: 'user' })
  } catch (error) {
    if (!(error instanceof CommanderError)) throw error
    if (error.exitCode === 0) return EXIT.ok
    if (error.code === 'commander.help') return EXIT.usage // the help has been shown
    throw new MusterError('invalid_request', error.message.replace(/^error: /, ''))
  }
  return status
}

/** Runs a verb with a context made from the options of the command and of `muster` itself. */
async function withContext(
  command: Command,
  { terminal, maintenance }: CliDeps & { terminal: Terminal },
  verb: (context: Context) => Promise<ExitCode>,
): Promise<ExitCode> {
  const options = command.optsWithGlobals<GlobalOptions>()
  let signals: StopSignals | undefined
  const context = openContext({
    options,
    terminal: options.color ? terminal : { ...terminal, paint: (_, text) => text },
    now: Date.now,
    ...(maintenance ? { maintenance } : {}),
    interrupted: () => {
      signals ??= stopSignals(Date.now)
      return signals.stop
    },
  })
  try {
    return await verb(context)
  } finally {
    signals?.release()
    await context.close()
  }
}
