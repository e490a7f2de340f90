import { existsSync, readFileSync } from 'node:fs'
import { join } from 'node:path'

/** Where Node's own OpenSSL looks for its configuration (OPENSSLDIR in Node's deps/openssl/openssl_common.gypi). */
const DEFAULT_FILES: Readonly<Partial<Record<NodeJS.Platform, string>>> = {
  linux: '/etc/ssl/openssl.cnf',
  darwin: '/System/Library/OpenSSL/openssl.cnf',
}

/** What Node would take of that file: a section of its own, which may also come from another file. */
const SAYS_SOMETHING_TO_NODE = /^\s*(nodejs_conf|\.include)\b/m

/** Options of Node that say how OpenSSL is configured, or may. Node takes `_` for `-`. */
const CONFIGURES_OPENSSL =
  /--(openssl|enable[-_]fips|force[-_]fips|experimental[-_](default[-_])?config[-_]file)/

export interface BrokerStart {
  /** Path of `bin/muster.mjs`. */
  readonly bin: string
  /** Options that Node is given in any case. */
  readonly execArgv: readonly string[]
  readonly environment: Readonly<Record<string, string | undefined>>
  /** The default file of OpenSSL where it is another one; for tests. */
  readonly defaultFile?: string
}

/**
 * Options of Node for a process that is to run `muster broker`: OpenSSL makes one TLS 1.3 ticket for each full handshake
 * instead of two, which spares a twentieth of the work. How many there are is the server's choice (RFC 8446 section
 * 4.6.1), at least as many as the client may have connections (appendix C.4); Node has no option for it, and OpenSSL reads
 * `broker/openssl.cnf` for a process, when it starts.
 *
 * None where that could take anything away: with a configuration of the operator's, by option, environment or the
 * default file, or with an OpenSSL that is not Node's own and is configured by the system. A broker without is the same
 * with two tickets.
 */
export function brokerNodeOptions(start: BrokerStart): string[] {
  const file = join(start.bin, '..', '..', 'broker', 'openssl.cnf')
  const { OPENSSL_CONF, NODE_OPTIONS = '' } = start.environment
  const isConfigured =
    OPENSSL_CONF !== undefined ||
    [...start.execArgv, NODE_OPTIONS].some((one) => CONFIGURES_OPENSSL.test(one))
  if (isConfigured || !existsSync(file) || !isDefaultSilent(start.defaultFile)) return []
  return [`--openssl-config=${file}`]
}

/** True when OpenSSL is Node's own, and reads nothing for Node in its default file. */
function isDefaultSilent(path = DEFAULT_FILES[process.platform]): boolean {
  const { node_shared_openssl: isShared } = process.config.variables as { node_shared_openssl?: unknown } // Node's own build
  if (isShared !== false || path === undefined) return false
  try {
    return !existsSync(path) || !SAYS_SOMETHING_TO_NODE.test(readFileSync(path, 'utf8'))
  } catch {
    return false // who knows what it says
  }
}
