import { randomBytes, X509Certificate } from 'node:crypto'
import { readFileSync } from 'node:fs'
import { createServer } from 'node:net'
import { join } from 'node:path'
import { PassThrough } from 'node:stream'
import type { Test } from 'tap'
import { type AdminClient, openAdminClient, readOperatorProfile } from '#shared/admin-client'
import type { CertificateReply } from '#shared/api'
import { layout } from '#shared/layout'
import { openLog } from '#shared/log'
import { generateKey, privateKeyPem } from '#shared/pki/keys'
import { createCsr } from '#shared/pki/x509'
import { Lifecycle } from '#shared/service'
import type { Config } from '../../enrollment/config.ts'
import type { Deps, Step } from '../../enrollment/deps.ts'
import { startPlane, type Whereabouts } from '../../enrollment/plane.ts'
import { openTestClient, type TestClient } from './https.ts'

const DAY_MS = 86_400_000

export interface EnrollmentOptions {
  /** An existing data directory; a new one otherwise. */
  readonly data?: string
  readonly hosts?: readonly string[]
  /** Added to the machine's clock, ms; may be changed while it runs. */
  readonly clock?: { offsetMs: number }
  /** As of the service's `Runtime`; unless it is said, any time may pass between two looks at the clock. */
  readonly mostIdleMs?: number
  /** `--clock-is-right`. */
  readonly clockIsRight?: boolean
  reached?(step: Step): void
  /** Serve metrics, on any port. */
  readonly metrics?: boolean
}

/** An enrollment service in this process, on real ports of the loopback, with a data directory of its own. */
export interface RunningEnrollment {
  readonly data: string
  readonly config: Config
  readonly whereabouts: Whereabouts
  readonly deps: Deps
  /** Does what the service does every hour. */
  renewOwn(): Promise<void>
  readonly metricsPort: number | null
  /** As the local operator. */
  readonly admin: AdminClient
  readonly root: string
  /** Every line that was logged, at every level. */
  readonly logged: string[]
  /** A client of the enrollment listener; with a pair it presents the certificate. */
  client(pair?: Pair, options?: { tls12?: boolean }): TestClient
  adminClient(pair?: Pair): TestClient
  stop(): Promise<void>
}

export interface Pair {
  readonly certificate: string
  readonly key: string
}

/** Starts the service and stops it when the test ends. */
export async function startEnrollment(t: Test, options: EnrollmentOptions = {}): Promise<RunningEnrollment> {
  const data = options.data ?? t.testdir()
  const metrics = options.metrics === true ? { host: '127.0.0.1', port: 0 } : null
  const clockIsRight = options.clockIsRight === true
  const config = { ...(await freeConfig(data, options.hosts ?? [])), metrics, clockIsRight }
  const logged: string[] = []
  const sink = new PassThrough().on('data', (chunk) => logged.push(String(chunk)))
  const log = openLog('enrollment', 'trace', sink)
  const lifecycle = new Lifecycle(log)
  const clock = options.clock ?? { offsetMs: 0 }
  const { whereabouts, deps, renewOwn, metricsPort } = await startPlane(config, {
    log,
    lifecycle,
    now: () => Date.now() + clock.offsetMs,
    random: randomBytes,
    reached: options.reached ?? (() => {}),
    mostIdleMs: options.mostIdleMs ?? Number.POSITIVE_INFINITY,
  }).catch(async (error) => {
    await lifecycle.stop()
    throw error
  })
  const admin = openAdminClient(readOperatorProfile(whereabouts.operatorProfile))
  const root = readFileSync(whereabouts.caFile, 'utf8')
  const clients: TestClient[] = []
  const open = (url: string, pair?: Pair, more: { tls12?: boolean } = {}) => {
    const client = openTestClient({ url, ca: root, ...pair, ...more })
    clients.push(client)
    return client
  }
  const stop = async () => {
    for (const client of clients) client.close()
    await admin.close()
    await lifecycle.stop()
  }
  t.teardown(stop)
  return {
    data,
    config,
    whereabouts,
    deps,
    renewOwn,
    metricsPort,
    admin,
    root,
    logged,
    client: (pair, more) => open(whereabouts.enrollment, pair, more),
    adminClient: (pair) => open(whereabouts.admin, pair),
    stop,
  }
}

/** A key, its CSR, and what enrollment made of it. */
export interface TestDevice extends Pair {
  readonly id: string
  readonly token: string
  readonly csr: string
  readonly serial: string
  readonly fingerprint: string
}

/** A device that is enrolled over HTTP with a one-use token of its own (batch `lab` unless named). */
export async function enrollDevice(
  service: RunningEnrollment,
  options: { id: string; batch?: string },
): Promise<TestDevice> {
  const { id, batch = 'lab' } = options
  const { token } = await service.admin.createToken({ batch, uses: 1 })
  const request = await newRequest(id)
  const client = service.client()
  const reply = await client.send('POST', '/v1/enroll', { json: { token, csr: request.csr } })
  client.close()
  if (reply.status !== 200) throw new Error(`enrollment of ${id} answered ${reply.status}: ${reply.text}`)
  const { certificate, serial }: CertificateReply = JSON.parse(reply.text)
  const fingerprint = new X509Certificate(certificate).fingerprint256.replaceAll(':', '').toLowerCase()
  return { id, token, csr: request.csr, key: request.key, certificate, serial, fingerprint }
}

/** A new key and a CSR for it. */
export async function newRequest(
  commonName?: string,
  uris: readonly string[] = [],
): Promise<{ key: string; csr: string; der: Buffer }> {
  const key = generateKey()
  const { pem, der } = await createCsr({ key, uris, ...(commonName === undefined ? {} : { commonName }) })
  return { key: privateKeyPem(key), csr: pem, der }
}

/** A broker that was invited and has its certificate. */
export async function enrollBroker(service: RunningEnrollment, id: string): Promise<Pair & { id: string }> {
  const { token } = await service.admin.inviteBroker({ id })
  const { key, csr } = await newRequest()
  const reply = await service
    .adminClient()
    .send('POST', '/v1/brokers/enroll', { json: { token, csr, hosts: ['localhost', '127.0.0.1'] } })
  if (reply.status !== 200) throw new Error(`the broker's enrollment answered ${reply.status}: ${reply.text}`)
  return { id, key, certificate: JSON.parse(reply.text).certificate }
}

/** The local operator's pair. */
export function operatorPair(service: { readonly whereabouts: { readonly operatorProfile: string } }): Pair {
  const { certificateFile, keyFile } = readOperatorProfile(service.whereabouts.operatorProfile)
  return { certificate: readFileSync(certificateFile, 'utf8'), key: readFileSync(keyFile, 'utf8') }
}

/** A configuration on three ports that are free just now. */
export async function freeConfig(data: string, hosts: readonly string[] = []): Promise<Config> {
  const [enrollment, admin, http] = await freePorts(3)
  return {
    layout: layout(join(data, 'plane')),
    listen: '127.0.0.1',
    localHost: 'localhost',
    hosts: [...hosts, 'localhost', '127.0.0.1'],
    ports: { enrollment: enrollment ?? 0, admin: admin ?? 0, http: http ?? 0 },
    trustDomain: null,
    logLevel: 'silent',
    journal: join(data, 'plane', 'journal'),
    retention: {
      expiredMs: 90 * DAY_MS,
      changesMs: 7 * DAY_MS,
      auditMs: 400 * DAY_MS,
      journalMs: 35 * DAY_MS,
    },
    metrics: null,
    passphrase: { from: 'made', path: join(data, 'plane', 'ca', 'passphrase') },
    clockIsRight: false,
    pin: null,
    crashAt: null,
  }
}

async function freePorts(count: number): Promise<number[]> {
  const servers = Array.from({ length: count }, () => createServer())
  const ports: number[] = []
  for (const server of servers) {
    await new Promise<void>((resolve) => server.listen(0, '127.0.0.1', resolve))
    const address = server.address()
    if (typeof address === 'object' && address) ports.push(address.port)
  }
  await Promise.all(servers.map((server) => new Promise((resolve) => server.close(resolve))))
  return ports
}
