import { isIP } from 'node:net'
import type { MetricsAddress } from './metrics-listener.ts'

/** What every service takes for its metrics, as `parseArgs` has it. */
export const METRICS_OPTIONS = {
  'metrics-port': { type: 'string' },
  'metrics-listen': { type: 'string', default: '127.0.0.1' },
} as const

const PORT_MAX = 65_535

/** Null without a port: then nothing listens. Faults are added to `faults`. */
export function readMetricsAddress(
  values: { readonly 'metrics-port'?: string | undefined; readonly 'metrics-listen'?: string | undefined },
  faults: string[],
): MetricsAddress | null {
  const { 'metrics-port': text, 'metrics-listen': host = METRICS_OPTIONS['metrics-listen'].default } = values
  if (isIP(host) === 0) faults.push(`--metrics-listen must be an IP address, not "${host}"`)
  if (text === undefined) return null
  const port = /^\d{1,5}$/.test(text) ? Number(text) : -1
  if (port < 0 || port > PORT_MAX)
    faults.push(`--metrics-port must be a number from 0 to ${PORT_MAX}, not "${text}"`)
  return { host, port }
}
