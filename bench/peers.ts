import { readFileSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import type { BrokerUnderTest } from './broker.ts'
import { freePort, listening } from './cfssl.ts'
import type { BenchContext } from './harness.ts'
import { newDirectory, type Plane } from './plane.ts'
import { need, programBeside, ready, type Server, startServer, versionOf } from './processes.ts'

/** What listens for MQTT over TLS, ours or a peer. */
export interface MqttServer {
  readonly name: string
  readonly command: string
  readonly version: string
  readonly server: Server
  readonly port: number
}

/** Files, PEM: every side presents the same chain, and trusts the same CAs. */
export interface Material {
  readonly certificate: string
  readonly key: string
  readonly ca: string
}

/** What the broker of a plane presents and trusts, for its peers. */
export function materialOf(
  context: BenchContext,
  { plane, broker }: { plane: Plane; broker: BrokerUnderTest },
): Material {
  const ca = join(newDirectory(context), 'ca.crt')
  const issuers = [plane.layout.rootCertificate, join(plane.layout.ca, 'device-ca.crt')]
  writeFileSync(ca, issuers.map((path) => readFileSync(path, 'utf8').trimEnd()).join('\n'))
  const own = join(broker.directory, 'broker')
  return { certificate: join(own, 'broker.crt'), key: join(own, 'broker.key'), ca }
}

/** Ours, as one of the sides. */
export function musterSide({ server, port, command }: BrokerUnderTest): MqttServer {
  return { name: 'muster', command, version: nodeVersion(), server, port }
}

/**
 * Mosquitto with TLS 1.3 and client certificates, whose common name is the user; it asks for none of them a second
 * time, has no list of who may do what, and keeps nothing. `settings` are further lines of its configuration.
 * @throws MusterError unavailable
 */
export async function startMosquitto(
  context: BenchContext,
  { certificate, key, ca }: Material,
  settings: readonly string[] = [],
): Promise<MqttServer> {
  const program = need('mosquitto')
  const directory = newDirectory(context)
  const port = await freePort()
  const lines = [
    'per_listener_settings false',
    'persistence false',
    'log_dest none',
    'user root', // it reads the key as whoever started it; the port is none of the reserved ones
    `listener ${port} 127.0.0.1`,
    'max_connections -1',
    `cafile ${ca}`,
    `certfile ${certificate}`,
    `keyfile ${key}`,
    'tls_version tlsv1.3',
    'require_certificate true',
    'use_identity_as_username true',
    'allow_anonymous false',
    ...settings,
  ]
  const file = join(directory, 'mosquitto.conf')
  writeFileSync(file, `${lines.join('\n')}\n`)
  const server = startServer([program, '-c', file], { context, cwd: directory })
  await listening(port)
  const added = settings.map((line) => `, ${line}`).join('')
  return {
    name: 'mosquitto',
    command: `mosquitto -c FILE (TLS 1.3, require_certificate, use_identity_as_username, no persistence, no log${added})`,
    version: versionOf('mosquitto', ['-h']),
    server,
    port,
  }
}

/**
 * nats-server with MQTT over TLS and client certificates, nobody's identity looked at; sessions and messages of QoS 1
 * are in a JetStream of its own, on the disk.
 * @throws MusterError unavailable
 */
export async function startNats(
  context: BenchContext,
  { certificate, key, ca }: Material,
): Promise<MqttServer> {
  const program = need('nats-server')
  const directory = newDirectory(context)
  const [port, inner] = [await freePort(), await freePort()]
  const tls = `cert_file: "${certificate}", key_file: "${key}", ca_file: "${ca}", verify: true`
  const file = join(directory, 'nats.conf')
  writeFileSync(
    file,
    [
      'server_name: bench',
      `host: 127.0.0.1, port: ${inner}, max_connections: 100000`,
      `jetstream { store_dir: "${join(directory, 'store')}" }`,
      `mqtt { host: 127.0.0.1, port: ${port}, tls { ${tls} } }`,
      '',
    ].join('\n'),
  )
  const server = startServer([program, '-c', file], { context, cwd: directory })
  await listening(port)
  return {
    name: 'nats-server',
    command: 'nats-server -c FILE (mqtt with tls verify, jetstream in a directory of its own)',
    version: versionOf('nats-server', ['--version']),
    server,
    port,
  }
}

/** TLS of Node alone, and a constant CONNACK. */
export async function startBareNode(
  context: BenchContext,
  { certificate, key, ca }: Material,
): Promise<MqttServer> {
  const port = await freePort()
  const program = programBeside(import.meta.url, 'bare-node')
  const command = [process.execPath, program, String(port), certificate, key, ca]
  const server = startServer(command, { context, cwd: newDirectory(context), ipc: true })
  await ready(server, 'bare Node')
  return {
    name: 'bare Node TLS',
    command: 'node bench/bare-node.ts PORT CERT KEY CA',
    version: nodeVersion(),
    server,
    port,
  }
}

function nodeVersion(): string {
  return `Node ${process.versions.node}, OpenSSL ${process.versions.openssl}`
}
