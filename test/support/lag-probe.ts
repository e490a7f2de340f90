/** Imported into a process before its program: says how late its event loop was since the last time it was asked. */
import { monitorEventLoopDelay } from 'node:perf_hooks'

export interface Lag {
  readonly type: 'lag'
  /** ms, without the interval of the sampling. */
  readonly p99: number
  readonly max: number
  /** CPU time of the process since it began, ms. */
  readonly cpuMs: number
}

const RESOLUTION_MS = 10
const NS_PER_MS = 1e6
const delay = monitorEventLoopDelay({ resolution: RESOLUTION_MS })
delay.enable()
process.on('message', (asked) => {
  if (asked !== 'lag') return
  const late = (ns: number) => Math.max(0, Math.round(ns / NS_PER_MS) - RESOLUTION_MS)
  const { user, system } = process.cpuUsage()
  const cpuMs = Math.round((user + system) / 1_000)
  process.send?.({ type: 'lag', p99: late(delay.percentile(99)), max: late(delay.max), cpuMs } satisfies Lag)
  delay.reset()
})
process.channel?.unref()
