import { once } from 'node:events'
import { readFileSync, writeFileSync } from 'node:fs'
import { connect, createServer } from 'node:net'
import { join } from 'node:path'
import { setTimeout } from 'node:timers/promises'
import { MusterError } from '#shared/errors'
import type { Layout } from '#shared/layout'
import { privateKeyPem, readPrivateKey } from '#shared/pki/keys'
import { openSqlite, type Sqlite } from '#shared/sqlite'
import type { BenchContext } from './harness.ts'
import type { Target } from './load.ts'
import { newDirectory } from './plane.ts'
import { need, type Server, startServer } from './processes.ts'

/** The tables of cfssl's own migrations (certdb/sqlite). */
const TABLES = `
  CREATE TABLE certificates (
    serial_number blob NOT NULL, authority_key_identifier blob NOT NULL, ca_label blob, status blob NOT NULL,
    reason int, expiry timestamp, revoked_at timestamp, pem blob NOT NULL,
    PRIMARY KEY (serial_number, authority_key_identifier));
  CREATE TABLE ocsp_responses (
    serial_number blob NOT NULL, authority_key_identifier blob NOT NULL, body blob NOT NULL, expiry timestamp,
    PRIMARY KEY (serial_number, authority_key_identifier),
    FOREIGN KEY (serial_number, authority_key_identifier) REFERENCES certificates (serial_number, authority_key_identifier));`

const READY_DEADLINE_MS = 20_000

/**
 * `rollback` is the journal that cfssl gets when nobody asks SQLite for another; in `wal` mode it pays less for each
 * transaction. Both are durable: cfssl leaves `synchronous` at FULL.
 */
export type Database = 'none' | 'rollback' | 'wal'

export interface Cfssl {
  readonly database: Database
  readonly server: Server
  readonly target: Target
  readonly command: string
  /** Rows in its database; 0 without one. */
  recorded(): number
}

/** `cfssl serve` with the CA and the server certificate of our own plane, so that both do the same cryptography. */
export async function startCfssl(
  context: BenchContext,
  { of, database }: { of: Layout; database: Database },
): Promise<Cfssl> {
  const cfssl = need('cfssl')
  const directory = newDirectory(context)
  const port = await freePort()
  writeKeys(directory, of)
  const db = database === 'none' ? null : makeDatabase(context, { directory, database })
  const args = ['serve', '-address', '127.0.0.1', '-port', String(port), '-loglevel', '4']
  args.push(
    '-ca',
    'ca.crt',
    '-ca-key',
    'ca.key',
    '-config',
    'config.json',
    '-tls-cert',
    'server.crt',
    '-tls-key',
    'server.key',
  )
  if (database !== 'none') args.push('-db-config', 'db.json')
  const server = startServer([cfssl, ...args], { context, cwd: directory })
  await listening(port)
  return {
    database,
    server,
    target: { port, ca: readFileSync(of.rootCertificate, 'utf8') },
    command: `cfssl ${args.join(' ')}`.replace(String(port), 'PORT'),
    recorded: () =>
      (db?.prepare('SELECT count(*) FROM certificates').pluck().get() as number | undefined) ?? 0, // count() is a number
  }
}

/** CA and server certificate of a plane, with keys that are not encrypted. */
export function writeKeys(directory: string, of: Layout): void {
  const passphrase = readFileSync(join(of.ca, 'passphrase'), 'utf8').trim()
  const key = readPrivateKey(readFileSync(join(of.ca, 'device-ca.key'), 'utf8'), passphrase)
  const files = {
    'ca.crt': readFileSync(join(of.ca, 'device-ca.crt'), 'utf8'),
    'ca.key': privateKeyPem(key),
    'server.crt': readFileSync(join(of.enrollment, 'server.crt'), 'utf8'),
    'server.key': readFileSync(join(of.enrollment, 'server.key'), 'utf8'),
    'config.json': JSON.stringify({
      signing: {
        default: {
          usages: ['digital signature', 'client auth'],
          expiry: '720h',
          crl_url: 'http://localhost:8080/crl/bench.crl',
          issuer_urls: ['http://localhost:8080/ca/bench.crt'],
        },
      },
    }),
    'db.json': JSON.stringify({
      driver: 'sqlite3',
      data_source: `${join(directory, 'certificates.db')}?_busy_timeout=60000`,
    }),
  }
  for (const [name, text] of Object.entries(files))
    writeFileSync(join(directory, name), text, { mode: 0o600 })
}

function makeDatabase(
  context: BenchContext,
  { directory, database }: { directory: string; database: Database },
): Sqlite {
  const db = openSqlite(join(directory, 'certificates.db'), { busyTimeoutMs: 1_000, migrations: [TABLES] })
  if (database === 'rollback') db.pragma('journal_mode = DELETE')
  context.ended(() => void db.close())
  return db
}

export async function freePort(): Promise<number> {
  const probe = createServer().listen(0, '127.0.0.1')
  await once(probe, 'listening')
  const address = probe.address()
  probe.close()
  await once(probe, 'close')
  if (typeof address === 'string' || address === null) throw new TypeError('a TCP server has a port')
  return address.port
}

/** Resolves when the port accepts a connection. @throws MusterError unavailable */
export async function listening(port: number): Promise<void> {
  for (
    const deadline = performance.now() + READY_DEADLINE_MS;
    performance.now() < deadline;
    await setTimeout(50)
  ) {
    const socket = connect(port, '127.0.0.1')
    try {
      await once(socket, 'connect')
      return
    } catch {
      // not yet
    } finally {
      socket.destroy()
    }
  }
  throw new MusterError('unavailable', `Cannot run the bench: a peer did not listen on port ${port} in time`)
}
