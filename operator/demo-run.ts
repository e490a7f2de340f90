import { howEnded, spawnShown, stopChild } from './child.ts'
import type { Context } from './context.ts'
import type { PlaneOptions } from './run-plane.ts'

/** Longest that the simulator may take to clean up when it is interrupted, ms. */
const STOP_DEADLINE_MS = 10_000

/** The fleet that `muster demo clear` forgets. */
const DEMO_FLEET = 'demo'

/** Plays the life of a fleet against the running plane; it shows its own progress. */
export async function runDemo(context: Context, options: PlaneOptions): Promise<void> {
  const { bin, demoDevices, signals } = options
  context.say(`Demo fleet: ${demoDevices} simulated devices            (--no-demo to skip)`)
  const child = spawnShown(bin, [
    ...['sim', 'run', 'lifecycle', '--data', context.options.data],
    ...['--devices', String(demoDevices), '--fleet', DEMO_FLEET, '--keep'],
  ])
  const stop = () => void stopChild(child, STOP_DEADLINE_MS) // never rejects: it waits for the end
  signals.stop.addEventListener('abort', stop, { once: true })
  signals.kill.addEventListener('abort', () => child.process.kill('SIGKILL'), { once: true })
  const ended = await child.ended
  signals.stop.removeEventListener('abort', stop)
  if (ended.status !== 0 && !signals.stop.aborted) {
    context.say(`The demo ${howEnded(ended)}; the plane goes on without it.`)
  }
}
