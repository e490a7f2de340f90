import { existsSync } from 'node:fs'
import { isIP } from 'node:net'
import { join, resolve } from 'node:path'
import { type ParseArgsOptionsConfig, parseArgs } from 'node:util'
import { MusterError } from '#shared/errors'
import { DEFAULT_PORT_BASE, type Layout, layout, ports } from '#shared/layout'
import type { MetricsAddress } from '#shared/metrics-listener'
import { METRICS_OPTIONS, readMetricsAddress } from '#shared/metrics-options'

/** Version of the plane; a test keeps it equal to package.json. */
export const VERSION = '0.1.0'

/** Where a secret of the operator's comes from; `credential`: a file that systemd delivers. */
export type SecretSource =
  | { readonly from: 'text'; readonly text: string }
  | { readonly from: 'file'; readonly path: string }
  | { readonly from: 'credential'; readonly path: string }

/** Where the passphrase of the CA keys comes from; `made`: a file in ca/, written at the first run. */
export type PassphraseSource = SecretSource | { readonly from: 'made'; readonly path: string }

/** How long things are kept, ms. */
export interface Retention {
  /** Certificates, after they have expired. */
  readonly expiredMs: number
  /** Changes: a broker that was away for longer takes a snapshot. */
  readonly changesMs: number
  /** Audit entries; never shorter than changes. */
  readonly auditMs: number
  /** Backups that can be restored with the journal. */
  readonly journalMs: number
}

export interface Config {
  readonly layout: Layout
  /** Address to bind. */
  readonly listen: string
  /** How this machine reaches the service, whatever its public names are. */
  readonly localHost: string
  /** Names in server certificates, the public one first. */
  readonly hosts: readonly string[]
  readonly ports: { readonly enrollment: number; readonly admin: number; readonly http: number }
  /** Null takes the one that was fixed at the first run. */
  readonly trustDomain: string | null
  readonly logLevel: string
  /** Directory of the registry's journal. */
  readonly journal: string
  readonly retention: Retention
  /** Where `/metrics` is served; null for nowhere. */
  readonly metrics: MetricsAddress | null
  /** An operator says that the clock is right, although nothing happened here for long, or only later. */
  readonly clockIsRight: boolean
  readonly passphrase: PassphraseSource
  /** Of the token, for keys whose URI names no `pin-source`; null without any. */
  readonly pin: SecretSource | null
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
  journal: { type: 'string' },
  'keep-expired': { type: 'string' },
  'keep-changes': { type: 'string' },
  'keep-audit': { type: 'string' },
  'keep-journal': { type: 'string' },
  'clock-is-right': { type: 'boolean' },
  ...METRICS_OPTIONS,
} as const satisfies ParseArgsOptionsConfig

/** Always in the server certificate, so that tools on this machine need no configuration. */
const LOCAL_HOSTS = ['localhost', '127.0.0.1']
/** Addresses under which `localhost` is served, too. */
const SERVES_LOCALHOST = ['127.0.0.1', '::1', '0.0.0.0', '::']
const LOG_LEVELS = ['trace', 'debug', 'info', 'warn', 'error', 'fatal', 'silent']
const HOST = /^[A-Za-z0-9]([A-Za-z0-9.-]{0,251}[A-Za-z0-9])?$/
/** SPIFFE trust domain: at most 64 lower-case letters, digits, dots, dashes, underscores. */
const TRUST_DOMAIN = /^[a-z0-9]([a-z0-9._-]{0,62}[a-z0-9])?$/
const DAY_MS = 86_400_000
/** Option, default in days, and where it goes. */
const KEEP = [
  ['keep-expired', 90, 'expiredMs'],
  ['keep-changes', 7, 'changesMs'],
  ['keep-audit', 400, 'auditMs'],
  ['keep-journal', 35, 'journalMs'],
] as const
/** The highest port is base + 883. */
const PORT_BASE_MAX = 65_535 - 883

/**
 * Reads the options of `muster enrollment` and its environment.
 * @throws MusterError config_invalid, with every fault in one message
 */
export function readConfig(argv: readonly string[], env: Environment): Config {
  const faults: string[] = []
  const options = readOptions(argv, faults)
  const { data, portBase, listen, logLevel, trustDomain, hosts, journal } = options
  const base = Number(portBase)
  if (!Number.isInteger(base) || base < 1 || base > PORT_BASE_MAX) {
    faults.push(`--port-base must be a number from 1 to ${PORT_BASE_MAX}, not "${portBase}"`)
  }
  for (const host of hosts) {
    if (isIP(host) === 0 && !HOST.test(host)) {
      faults.push(`--host must be a DNS name or an IP address, not "${host}"`)
    }
  }
  if (isIP(listen) === 0) faults.push(`--listen must be an IP address, not "${listen}"`)
  if (trustDomain !== null && !TRUST_DOMAIN.test(trustDomain)) {
    faults.push(`--trust-domain must be lower-case letters, digits, ".", "_" and "-", not "${trustDomain}"`)
  }
  if (!LOG_LEVELS.includes(logLevel)) faults.push(`--log-level must be one of ${LOG_LEVELS.join(', ')}`)
  if (faults.length > 0) throw new MusterError('config_invalid', `Cannot start: ${faults.join('; ')}`)

  const directories = layout(data)
  const localHost = SERVES_LOCALHOST.includes(listen) ? 'localhost' : listen
  const { enrollment, admin, http } = ports(base)
  return Object.freeze({
    layout: directories,
    listen,
    localHost,
    hosts: Object.freeze([...new Set([...hosts, localHost, ...LOCAL_HOSTS])]),
    ports: Object.freeze({ enrollment, admin, http }),
    trustDomain,
    logLevel,
    journal: journal === null ? directories.journal : resolve(journal),
    retention: options.retention,
    metrics: options.metrics,
    clockIsRight: options.clockIsRight,
    passphrase: passphraseSource(env, directories.ca),
    pin: pinSource(env),
    crashAt: env.MUSTER_CRASH_AT ?? null,
  })
}

/** Not strict, so that one call finds every unknown option and missing value. */
function readOptions(argv: readonly string[], faults: string[]) {
  const { values, tokens } = parseArgs({ args: [...argv], options: OPTIONS, strict: false, tokens: true })
  for (const token of tokens) {
    if (token.kind === 'positional') faults.push(`"${token.value}" is not an option`)
    if (token.kind !== 'option') continue
    if (!Object.hasOwn(OPTIONS, token.name)) faults.push(`${token.rawName} is not an option`)
    else if (token.name === 'clock-is-right') {
      if (token.value !== undefined) faults.push(`${token.rawName} takes no value`)
    } else if (token.value === undefined) faults.push(`${token.rawName} needs a value`)
  }
  const text = (name: keyof typeof OPTIONS) => {
    const value = values[name]
    return typeof value === 'string' ? value : null
  }
  return {
    data: text('data') ?? OPTIONS.data.default,
    portBase: text('port-base') ?? OPTIONS['port-base'].default,
    listen: text('listen') ?? OPTIONS.listen.default,
    logLevel: text('log-level') ?? OPTIONS['log-level'].default,
    trustDomain: text('trust-domain'),
    clockIsRight: values['clock-is-right'] === true,
    journal: text('journal'),
    retention: readRetention(text, faults),
    metrics: readMetricsAddress(
      {
        'metrics-port': text('metrics-port') ?? undefined,
        'metrics-listen': text('metrics-listen') ?? undefined,
      },
      faults,
    ),
    hosts: (values.host ?? []).filter((host) => typeof host === 'string'),
  }
}

/** Each is a number of days or hours: `90d`, `36h`. */
function readRetention(text: (name: (typeof KEEP)[number][0]) => string | null, faults: string[]): Retention {
  const entries = KEEP.map(([option, days, name]) => {
    const value = text(option) ?? `${days}d`
    const [, count = '', unit] = /^([1-9]\d{0,5})([dh])$/.exec(value) ?? []
    if (count === '') faults.push(`--${option} must be days or hours, such as 90d or 36h, not "${value}"`)
    return [name, (Number(count) * DAY_MS) / (unit === 'h' ? 24 : 1)]
  })
  return Object.freeze(Object.fromEntries(entries)) as Retention // the names are those of KEEP
}

/** Where the secrets for the CA keys in a directory come from, by this process's environment. */
export function ownSecrets(ca: string): { passphrase: PassphraseSource; pin: SecretSource | null } {
  return { passphrase: passphraseSource(process.env, ca), pin: pinSource(process.env) }
}

function passphraseSource(env: Environment, ca: string): PassphraseSource {
  return secretSource(env, PASSPHRASE) ?? { from: 'made', path: join(ca, 'passphrase') }
}

/** A unit may have credentials for other things, so only one that is there counts. */
function pinSource(env: Environment): SecretSource | null {
  const source = secretSource(env, PIN)
  return source?.from === 'credential' && !existsSync(source.path) ? null : source
}

/** The variable that holds the secret, with `_FILE` the one that names its file, and the credential's name. */
const PASSPHRASE = { variable: 'MUSTER_CA_PASSPHRASE', credential: 'muster-ca-passphrase' } as const
const PIN = { variable: 'MUSTER_PKCS11_PIN', credential: 'muster-pkcs11-pin' } as const
/** Variables that hold secrets themselves: not for child processes. */
export const SECRET_VARIABLES = [PASSPHRASE.variable, PIN.variable] as const

function secretSource(
  env: Environment,
  { variable, credential }: typeof PASSPHRASE | typeof PIN,
): SecretSource | null {
  const [file, text] = [env[`${variable}_FILE`], env[variable]]
  if (file) return { from: 'file', path: file }
  if (text) return { from: 'text', text }
  if (!env.CREDENTIALS_DIRECTORY) return null
  return { from: 'credential', path: join(env.CREDENTIALS_DIRECTORY, credential) }
}
