import { type AdminClient, openAdminClient, readOperatorProfile } from '#shared/admin-client'
import { isMusterError, MusterError } from '#shared/errors'
import { layout } from '#shared/layout'
import { EXIT, type ExitCode } from './exit-codes.ts'
import { type Maintenance, noMaintenance } from './maintenance.ts'
import type { Terminal } from './terminal.ts'

/** Version of every `--json` document. */
export const SCHEMA_VERSION = 1

/** Options that every command takes. */
export interface GlobalOptions {
  readonly data: string
  /** Operator profile of a plane on another machine; the data directory's own when absent. */
  readonly profile?: string
  readonly json?: boolean
  readonly quiet?: boolean
  readonly color: boolean
  readonly input: boolean
}

/** What a command works with. */
export interface Context {
  readonly options: GlobalOptions
  readonly terminal: Terminal
  now(): number
  /** Ends when the user interrupts; for a command that would go on by itself. */
  interrupted(): AbortSignal
  /** The admin API, opened at first use. @throws MusterError unreachable when no plane is known here */
  plane(): AdminClient
  /** Work on the data directory itself. @throws MusterError unsupported */
  maintenance(): Promise<Maintenance>
  /** The result: one document with `--json`, the text otherwise; on stdout. */
  answer(document: object, text: () => string): ExitCode
  /** A sentence for the person at the terminal; not the result. */
  say(text: string): void
  close(): Promise<void>
}

export interface ContextParts {
  readonly options: GlobalOptions
  readonly terminal: Terminal
  readonly now: () => number
  readonly interrupted: () => AbortSignal
  readonly maintenance?: () => Promise<Maintenance>
}

export function openContext(parts: ContextParts): Context {
  const { options, terminal } = parts
  let client: AdminClient | undefined
  return {
    ...parts,
    maintenance: parts.maintenance ?? noMaintenance,
    plane() {
      client ??= findPlane(options)
      return client
    },
    answer(document, text) {
      terminal.out(
        options.json ? JSON.stringify({ schemaVersion: SCHEMA_VERSION, ...document }, null, 2) : text(),
      )
      return EXIT.ok
    },
    say(text) {
      if (!options.quiet) terminal.err(text)
    },
    close: async () => client?.close(),
  }
}

function findPlane({ data, profile }: GlobalOptions): AdminClient {
  try {
    return openAdminClient(readOperatorProfile(profile ?? layout(data).operatorProfile))
  } catch (cause) {
    if (!isMusterError(cause, 'not_found')) throw cause
    throw new MusterError(
      'unreachable',
      `Cannot find a plane in "${profile ?? data}": there is no operator profile`,
      {
        cause,
      },
    )
  }
}
