import { type ErrorCode, isMusterError } from '#shared/errors'
import { openLog } from '#shared/log'
import { announceFailure, announceReady, Lifecycle, runUntilStopped } from '#shared/service'
import { readConfig } from './config.ts'
import { boundNewSpace } from './new-space.ts'
import { startBroker } from './start.ts'

/** Exit codes of a start that failed; anything else is 1. */
const EXIT_CODES: Partial<Record<ErrorCode, number>> = {
  config_invalid: 2,
  invalid_request: 2,
  token_unknown: 4,
  token_spent: 4,
  token_expired: 4,
  directory_in_use: 5,
  port_taken: 5,
  unreachable: 7,
  directory_unusable: 8,
  key_file_insecure: 8,
  check_failed: 8,
}

/** What to do, where the message does not say it. */
const FIXES: Partial<Record<ErrorCode, string>> = {
  port_taken: 'stop what listens there, or take another port',
  directory_in_use: 'stop the other broker, or take another directory with --data',
  unreachable: 'start the enrollment service, or check the url in the invitation',
  token_spent: 'make a new invitation with `muster broker invite`',
  token_expired: 'make a new invitation with `muster broker invite`',
  token_unknown: 'make a new invitation with `muster broker invite`',
}

/** `muster broker`: serves until it is told to stop. A start that fails says why in one sentence and exits. */
export async function run(argv: string[]): Promise<void> {
  let lifecycle: Lifecycle | undefined
  try {
    const config = readConfig(argv)
    boundNewSpace()
    const log = openLog('broker', config.logLevel)
    lifecycle = new Lifecycle(log)
    runUntilStopped(lifecycle, log) // from here on: the wait for the first snapshot can be long
    const { url } = await startBroker(config, { log, lifecycle, now: Date.now, random: Math.random })
    announceReady(log, { broker: url })
  } catch (error) {
    const { code, message } = described(error)
    process.stderr.write(`${message}\n`)
    await announceFailure(code, message)
    await lifecycle?.stop()
    process.exit(EXIT_CODES[code] ?? 1)
  }
}

function described(error: unknown): { code: ErrorCode; message: string } {
  if (!isMusterError(error)) {
    return {
      code: 'internal',
      message: error instanceof Error ? (error.stack ?? error.message) : String(error),
    }
  }
  const fix = FIXES[error.code]
  return { code: error.code, message: fix === undefined ? error.message : `${error.message}; fix: ${fix}` }
}
