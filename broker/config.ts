import { isIP } from 'node:net'
import { parseArgs } from 'node:util'
import { MusterError } from '#shared/errors'
import { DEFAULT_PORT_BASE, layout, ports } from '#shared/layout'
import type { MetricsAddress } from '#shared/metrics-listener'
import { METRICS_OPTIONS, readMetricsAddress } from '#shared/metrics-options'
import type { Durability } from '#shared/sqlite'
import { type Limits, readLimits } from './limits.ts'

export interface Config {
  /** The broker's own directory. */
  readonly directory: string
  /** File of `muster broker invite`, for the first start. */
  readonly invitation: string | null
  /** Address to bind. */
  readonly listen: string
  /** 0 for any. */
  readonly port: number
  /** Where MQTT is spoken over WebSocket, and the origins of pages that may use it; null for nowhere. */
  readonly webSocket: { readonly port: number; readonly origins: readonly string[] } | null
  /** The protocol may be named in the handshake of TLS (RFC 7301). */
  readonly isAlpnSpoken: boolean
  /** Services are told, over MQTT, which devices are connected. */
  readonly isPresenceTold: boolean
  /** Names in the server certificate, the public one first. */
  readonly hosts: readonly string[]
  /** How long known devices are admitted while the registry is silent, ms. */
  readonly maxStalenessMs: number
  /** What an acknowledged message survives. */
  readonly durability: Durability
  readonly limits: Limits
  /** Where `/metrics` is served; null for nowhere. */
  readonly metrics: MetricsAddress | null
  readonly logLevel: string
}

const NONE: string[] = []

const OPTIONS = {
  data: { type: 'string', default: 'data' },
  invite: { type: 'string' },
  'port-base': { type: 'string', default: String(DEFAULT_PORT_BASE) },
  port: { type: 'string' },
  'websocket-port': { type: 'string' },
  'websocket-origin': { type: 'string', multiple: true, default: NONE },
  alpn: { type: 'boolean', default: false },
  presence: { type: 'boolean', default: false },
  host: { type: 'string', multiple: true, default: NONE },
  listen: { type: 'string', default: '127.0.0.1' },
  'max-staleness': { type: 'string', default: '24h' },
  durability: { type: 'string', default: 'full' },
  limit: { type: 'string', multiple: true, default: NONE },
  ...METRICS_OPTIONS,
  'log-level': { type: 'string', default: 'info' },
} as const

/** Always in the certificate, so that tools on this machine need no configuration. */
const LOCAL_HOSTS = ['localhost', '127.0.0.1']
const LOG_LEVELS = ['trace', 'debug', 'info', 'warn', 'error', 'fatal', 'silent']
const HOST = /^[A-Za-z0-9]([A-Za-z0-9.-]{0,251}[A-Za-z0-9])?$/
/** As browsers send it: scheme, host, and a port that is not the scheme's (RFC 6454 section 6.2). */
const ORIGIN = /^https?:\/\/[A-Za-z0-9.-]{1,253}(:\d{1,5})?$/
const UNIT_MS = { s: 1_000, m: 60_000, h: 3_600_000, d: 86_400_000 } as const
const PORT_MAX = 65_535

/**
 * Reads the options of `muster broker`.
 * @throws MusterError config_invalid, with every fault in one message
 */
export function readConfig(argv: readonly string[]): Config {
  const faults: string[] = []
  const values = readOptions(argv, faults)
  for (const host of values.host) {
    if (isIP(host) === 0 && !HOST.test(host))
      faults.push(`--host must be a DNS name or an IP address, not "${host}"`)
  }
  if (isIP(values.listen) === 0) faults.push(`--listen must be an IP address, not "${values.listen}"`)
  if (!LOG_LEVELS.includes(values['log-level'])) {
    faults.push(`--log-level must be one of ${LOG_LEVELS.join(', ')}`)
  }
  const config = {
    directory: layout(values.data).broker,
    invitation: values.invite ?? null,
    listen: values.listen,
    port: readPort(values, faults),
    webSocket: readWebSocket(values, faults),
    isAlpnSpoken: values.alpn,
    isPresenceTold: values.presence,
    hosts: Object.freeze([...new Set([...values.host, ...LOCAL_HOSTS])]),
    maxStalenessMs: readDuration(values['max-staleness'], faults),
    durability: readDurability(values.durability, faults),
    limits: readLimits(values.limit, faults),
    metrics: readMetricsAddress(values, faults),
    logLevel: values['log-level'],
  }
  if (faults.length > 0) throw new MusterError('config_invalid', `Cannot start: ${faults.join('; ')}`)
  return Object.freeze(config)
}

function readOptions(argv: readonly string[], faults: string[]) {
  try {
    return parseArgs({ args: [...argv], options: OPTIONS, allowPositionals: false }).values
  } catch (error) {
    faults.push((error as Error).message) // parseArgs throws nothing but its TypeErrors
    return parseArgs({ args: [], options: OPTIONS }).values
  }
}

function readPort(values: { 'port-base': string; port?: string }, faults: string[]): number {
  const offset = ports(0).broker
  const [name, text, first, last] =
    values.port === undefined
      ? (['--port-base', values['port-base'], 1, PORT_MAX - offset] as const)
      : (['--port', values.port, 0, PORT_MAX] as const)
  const port = /^\d{1,5}$/.test(text) ? Number(text) : -1
  if (port < first || port > last)
    faults.push(`${name} must be a number from ${first} to ${last}, not "${text}"`)
  return values.port === undefined ? port + offset : port
}

function readWebSocket(
  values: { 'websocket-port'?: string; 'websocket-origin': readonly string[] },
  faults: string[],
): Config['webSocket'] {
  const { 'websocket-port': text, 'websocket-origin': origins } = values
  for (const origin of origins) {
    if (!ORIGIN.test(origin))
      faults.push(`--websocket-origin must be like https://console.example.net, not "${origin}"`)
  }
  if (text === undefined) {
    if (origins.length > 0) faults.push('--websocket-origin needs --websocket-port')
    return null
  }
  const port = /^\d{1,5}$/.test(text) ? Number(text) : PORT_MAX + 1
  if (port > PORT_MAX) faults.push(`--websocket-port must be a number from 0 to ${PORT_MAX}, not "${text}"`)
  return Object.freeze({ port, origins: Object.freeze(origins.map((origin) => origin.toLowerCase())) })
}

function readDurability(text: string, faults: string[]): Durability {
  if (text === 'kill' || text === 'full') return text
  faults.push(`--durability must be kill or full, not "${text}"`)
  return 'full'
}

function readDuration(text: string, faults: string[]): number {
  const [, amount, unit] = /^(\d{1,6})([smhd])$/.exec(text) ?? []
  if (amount !== undefined) return Number(amount) * UNIT_MS[unit as keyof typeof UNIT_MS] // one of [smhd]
  faults.push(`--max-staleness must be a number with s, m, h or d, like 24h, not "${text}"`)
  return 0
}
