import { isIP } from 'node:net'
import { join } from 'node:path'
import { type ParseArgsOptionsConfig, parseArgs } from 'node:util'
import { MusterError } from '#shared/errors'
import { DEFAULT_PORT_BASE, type Layout, layout, ports } from '#shared/layout'

/** Version of the plane; a test keeps it equal to package.json. */
export const VERSION = '0.1.0'

/** Where the passphrase of the CA keys comes from; `made`: a file in ca/, written at the first run. */
export type PassphraseSource =
  | { readonly from: 'text'; readonly text: string }
  | { readonly from: 'file'; readonly path: string }
  | { readonly from: 'made'; readonly path: string }

export interface Config {
  readonly layout: Layout
  /** Address to bind. */
  readonly listen: string
  /** Names in server certificates, the public one first. */
  readonly hosts: readonly string[]
  readonly ports: { readonly enrollment: number; readonly admin: number; readonly http: number }
  /** Null takes the one that was fixed at the first run. */
  readonly trustDomain: string | null
  readonly logLevel: string
  readonly passphrase: PassphraseSource
  /** Ends the process by SIGKILL after this step of a recipe (tests, docs/issuance-cycle.md). */
  readonly crashAt: string | null
}

type Environment = Readonly<Record<string, string | undefined>>

const OPTIONS = {
  data: { type: 'string', default: 'data' },
  'port-base': { type: 'string', default: String(DEFAULT_PORT_BASE) },
  host: { type: 'string', multiple: true },
  listen: { type: 'string', default: '127.0.0.1' },
  'trust-domain': { type: 'string' },
  'log-level': { type: 'string', default: 'info' },
} as const satisfies ParseArgsOptionsConfig

/** Always in the server certificate, so that tools on this machine need no configuration. */
const LOCAL_HOSTS = ['localhost', '127.0.0.1']
const LOG_LEVELS = ['trace', 'debug', 'info', 'warn', 'error', 'fatal', 'silent']
const HOST = /^[A-Za-z0-9]([A-Za-z0-9.-]{0,251}[A-Za-z0-9])?$/
/** SPIFFE trust domain: at most 64 lower-case letters, digits, dots, dashes, underscores. */
const TRUST_DOMAIN = /^[a-z0-9]([a-z0-9._-]{0,62}[a-z0-9])?$/
/** The highest port is base + 883. */
const PORT_BASE_MAX = 65_535 - 883

/**
 * Reads the options of `muster enrollment` and its environment.
 * @throws MusterError config_invalid, with every fault in one message
 */
export function readConfig(argv: readonly string[], env: Environment): Config {
  const faults: string[] = []
  const values = readOptions(argv, faults)
  const base = Number(values['port-base'])
  if (!Number.isInteger(base) || base < 1 || base > PORT_BASE_MAX) {
    faults.push(`--port-base must be a number from 1 to ${PORT_BASE_MAX}, not "${values['port-base']}"`)
  }
  const given = values.host ?? []
  for (const host of given) {
    if (isIP(host) === 0 && !HOST.test(host))
      faults.push(`--host must be a DNS name or an IP address, not "${host}"`)
  }
  if (isIP(values.listen) === 0) faults.push(`--listen must be an IP address, not "${values.listen}"`)
  const trustDomain = values['trust-domain'] ?? null
  if (trustDomain !== null && !TRUST_DOMAIN.test(trustDomain)) {
    faults.push(`--trust-domain must be lower-case letters, digits, ".", "_" and "-", not "${trustDomain}"`)
  }
  if (!LOG_LEVELS.includes(values['log-level']))
    faults.push(`--log-level must be one of ${LOG_LEVELS.join(', ')}`)
  if (faults.length > 0) throw new MusterError('config_invalid', `Cannot start: ${faults.join('; ')}`)

  const directories = layout(values.data)
  const { enrollment, admin, http } = ports(base)
  return Object.freeze({
    layout: directories,
    listen: values.listen,
    hosts: Object.freeze([...new Set([...given, ...LOCAL_HOSTS])]),
    ports: Object.freeze({ enrollment, admin, http }),
    trustDomain,
    logLevel: values['log-level'],
    passphrase: passphraseSource(env, directories.ca),
    crashAt: env.MUSTER_CRASH_AT ?? null,
  })
}

function readOptions(argv: readonly string[], faults: string[]) {
  try {
    return parseArgs({ args: [...argv], options: OPTIONS, allowPositionals: false }).values
  } catch (error) {
    faults.push((error as Error).message) // parseArgs throws nothing but its TypeErrors
    return parseArgs({ args: [], options: OPTIONS }).values
  }
}

function passphraseSource(env: Environment, ca: string): PassphraseSource {
  if (env.MUSTER_CA_PASSPHRASE_FILE) return { from: 'file', path: env.MUSTER_CA_PASSPHRASE_FILE }
  if (env.MUSTER_CA_PASSPHRASE) return { from: 'text', text: env.MUSTER_CA_PASSPHRASE }
  if (env.CREDENTIALS_DIRECTORY) {
    return { from: 'file', path: join(env.CREDENTIALS_DIRECTORY, 'muster-ca-passphrase') }
  }
  return { from: 'made', path: join(ca, 'passphrase') }
}
