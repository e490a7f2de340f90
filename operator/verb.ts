import type { Command } from 'commander'
import type { Context } from './context.ts'
import type { ExitCode } from './exit-codes.ts'

/** What the user wrote after the command: arguments in order, options by name. */
export interface Invocation<Options> {
  readonly args: readonly string[]
  readonly options: Options
}

/** One command's work: it acts, answers, and says which status that means. */
export type Verb<Options> = (context: Context, invocation: Invocation<Options>) => Promise<ExitCode>

/** Turns a verb into what commander calls; the CLI supplies the context and takes the status. */
export type Use = <Options>(verb: Verb<Options>) => (...received: unknown[]) => Promise<void>

/** A noun (`muster token`) that only groups its verbs. */
export function noun(program: Command, name: string, description: string): Command {
  return program.command(name).description(description)
}
