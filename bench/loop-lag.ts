import { writeFileSync } from 'node:fs'
import { monitorEventLoopDelay } from 'node:perf_hooks'

/**
 * Loaded before a server (`--import …/loop-lag.ts?out=FILE`): writes the longest time for which its event loop stood
 * still, ms, whenever it is asked to (SIGUSR2), and begins anew.
 */
const out = new URL(import.meta.url).searchParams.get('out')
const delay = monitorEventLoopDelay({ resolution: 1 })
delay.enable()
process.on('SIGUSR2', () => {
  if (out !== null) writeFileSync(out, String(delay.max / 1e6))
  delay.reset()
})
