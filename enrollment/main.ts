import { randomBytes } from 'node:crypto'
import { type ErrorCode, isMusterError } from '#shared/errors'
import { openLog } from '#shared/log'
import { announceReady, Lifecycle, runUntilStopped } from '#shared/service'
import { readConfig } from './config.ts'
import type { Step } from './deps.ts'
import { startPlane } from './plane.ts'

/** Exit codes of a start that failed; anything else is 1. */
const EXIT_CODES: Partial<Record<ErrorCode, number>> = {
  config_invalid: 2,
  directory_in_use: 5,
  port_taken: 5,
  directory_unusable: 4,
  key_file_insecure: 4,
  passphrase_wrong: 4,
  clock_wrong: 8,
}

/** `muster enrollment`: serves until it is told to stop. A start that fails says why in one sentence and exits. */
export async function run(argv: string[]): Promise<void> {
  let lifecycle: Lifecycle | undefined
  try {
    const config = readConfig(argv, process.env)
    delete process.env.MUSTER_CA_PASSPHRASE // not for child processes, nor for who reads /proc later
    const log = openLog('enrollment', config.logLevel)
    lifecycle = new Lifecycle(log)
    const { whereabouts } = await startPlane(config, {
      log,
      lifecycle,
      now: Date.now,
      random: randomBytes,
      reached: crashPoint(config.crashAt),
    })
    announceReady(log, { ...whereabouts })
    runUntilStopped(lifecycle, log)
  } catch (error) {
    await lifecycle?.stop()
    process.stderr.write(`${sentence(error)}\n`)
    process.exit(isMusterError(error) ? (EXIT_CODES[error.code] ?? 1) : 1)
  }
}

/** Crash tests end the process here, between two steps of a recipe, as a power cut would. */
function crashPoint(crashAt: string | null): (step: Step) => void {
  return (step) => {
    if (step === crashAt) process.kill(process.pid, 'SIGKILL')
  }
}

function sentence(error: unknown): string {
  if (isMusterError(error)) return error.message
  return error instanceof Error ? (error.stack ?? error.message) : String(error)
}
