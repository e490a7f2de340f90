import { openLog } from '#shared/log'
import { announceReady, Lifecycle, runUntilStopped } from '#shared/service'
import { readConfig, SECRET_VARIABLES } from './config.ts'
import type { Step } from './deps.ts'
import { startPlane } from './plane.ts'
import { randomPool } from './random-pool.ts'
import { startFault } from './start-fault.ts'

/**
 * `muster enrollment`: serves until it is told to stop.
 * @throws MusterError as `readConfig` and `startPlane`; what had started by then has been stopped
 */
export async function run(argv: string[]): Promise<void> {
  const config = readConfig(argv, process.env)
  let lifecycle: Lifecycle | undefined
  try {
    for (const name of SECRET_VARIABLES) delete process.env[name] // not for child processes
    const log = openLog('enrollment', config.logLevel)
    lifecycle = new Lifecycle(log)
    const { whereabouts } = await startPlane(config, {
      log,
      lifecycle,
      now: Date.now,
      random: randomPool(),
      reached: crashPoint(config.crashAt),
    })
    announceReady(log, { ...whereabouts })
    runUntilStopped(lifecycle, log)
  } catch (error) {
    await lifecycle?.stop()
    throw startFault(error, config)
  }
}

/** Crash tests end the process here, between two steps of a recipe, as a power cut would. */
function crashPoint(crashAt: string | null): (step: Step) => void {
  return (step) => {
    if (step === crashAt) process.kill(process.pid, 'SIGKILL')
  }
}
