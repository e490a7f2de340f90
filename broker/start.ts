import { randomUUID } from 'node:crypto'
import { mkdirSync } from 'node:fs'
import { isIPv6 } from 'node:net'
import { join } from 'node:path'
import type { Report } from '#shared/feed'
import type { Log } from '#shared/log'
import type { Lifecycle } from '#shared/service'
import { lockDirectory } from '#shared/sqlite'
import { obtainCredential } from './admittance.ts'
import { createMqtt, type Mqtt } from './aedes-hooks.ts'
import type { Config } from './config.ts'
import { type Credential, renewCredential } from './credential.ts'
import { Follower } from './follower.ts'
import { LIMITS } from './limits.ts'
import { type Credentials, type Listener, openListener } from './listener.ts'
import { RegistryLink } from './registry-link.ts'
import { keepRenewed } from './renewal.ts'
import { openReplica, type Replica } from './replica.ts'
import { Reporter } from './reports.ts'
import { Sessions } from './sessions.ts'

export interface StartDeps {
  readonly log: Log
  /** Gets every part as it starts, also when a later one fails. */
  readonly lifecycle: Lifecycle
  now(): number
  /** From 0 up to 1, for jitter. */
  random(): number
}

export interface RunningBroker {
  /** `mqtts://host:port` */
  readonly url: string
  readonly port: number
  readonly replica: Replica
  readonly sessions: Sessions
  readonly mqtt: Mqtt
  readonly follower: Follower
}

/** Parts that know of each other before each of them exists. */
interface Wiring {
  credential: Credential
  listener: Listener | null
  mqtt: Mqtt | null
  url: string
}

/**
 * Starts a broker: 1 its directory, 2 its credential, 3 its replica, 4 the stream, 5 a complete state, 6 its listener,
 * 7 its reports. With a replica from an earlier run it serves at once, whether or not the registry can be reached.
 * @throws MusterError directory_in_use, directory_unusable, config_invalid, port_taken, and as `obtainCredential`
 */
export async function startBroker(config: Config, deps: StartDeps): Promise<RunningBroker> {
  const { log, lifecycle, now } = deps
  mkdirSync(config.directory, { recursive: true, mode: 0o700 })
  const lock = lockDirectory(join(config.directory, 'lock.db'))
  lifecycle.started('lock', () => lock.release())
  const credential = await obtainCredential(config, deps)
  const replica = openReplica(join(config.directory, 'broker.db'))
  lifecycle.started('replica', () => replica.close())
  const link = new RegistryLink(credential)
  lifecycle.started('link', () => link.close())

  const wiring: Wiring = { credential, listener: null, mqtt: null, url: '' }
  const sessions = new Sessions({ now })
  const reporter = openReporter(deps, { replica, link, sessions, wiring })
  const report = (report: Report) => reporter.report(report)
  const follower = new Follower({
    ...{ replica, sessions, report, now, random: deps.random, log },
    open: (path, signal) => link.open(path, signal),
    purge: async (devices) => wiring.mqtt?.purge(devices),
    trustChanged: () => wiring.listener?.reload(credentialsOf(wiring, replica)),
    moved: () => reporter.changed(),
  })
  follower.start()
  lifecycle.started('follower', () => follower.stop())
  if (replica.cursor() === null) log.info({ registry: credential.url }, 'waiting for the first snapshot')
  await follower.complete()

  const inside = {
    replica,
    sessions,
    report,
    now,
    log,
    limits: LIMITS,
    maxStalenessMs: config.maxStalenessMs,
  }
  const mqtt = await createMqtt(inside)
  wiring.mqtt = mqtt
  lifecycle.started('mqtt', () => mqtt.close())
  const listener = await openListener({
    ...inside,
    ...credentialsOf(wiring, replica),
    mqtt,
    host: config.listen,
    port: config.port,
    trustDomain: credential.trustDomain,
    waitForRecord: (fingerprint) => follower.waitForRecord(fingerprint),
  })
  wiring.listener = listener
  lifecycle.started('listener', () => listener.close())
  wiring.url = urlOf(config.hosts[0] ?? 'localhost', listener.port)
  reporter.start()
  lifecycle.started('renewal', startRenewal(config, { ...deps, link, follower, replica, wiring }))
  return { url: wiring.url, port: listener.port, replica, sessions, mqtt, follower }
}

interface ReporterParts {
  readonly replica: Replica
  readonly link: RegistryLink
  readonly sessions: Sessions
  readonly wiring: Wiring
}

/** Stops after whoever reports, so that their last words are stored. */
function openReporter(deps: StartDeps, { replica, link, sessions, wiring }: ReporterParts): Reporter {
  const reporter = new Reporter({
    ...{ now: deps.now, random: deps.random, log: deps.log },
    store: replica.spool,
    send: (batch) => link.report(batch),
    state: () => ({ applied: replica.cursor(), sessions: sessions.count(), url: wiring.url }),
    stored: (hold) => replica.markReported(hold),
    boot: randomUUID(),
  })
  deps.lifecycle.started('reports', () => reporter.stop())
  return reporter
}

/** Keeps the certificate fresh; returns how to stop. Open connections stay when it changes. */
function startRenewal(
  config: Config,
  parts: StartDeps & Omit<ReporterParts, 'sessions'> & { readonly follower: Follower },
): () => Promise<void> {
  const { link, follower, replica, wiring, now, random, log } = parts
  const { directory, hosts } = config
  const stopping = new AbortController()
  const running = keepRenewed(
    {
      ...{ hosts, now, random, log },
      current: () => wiring.credential,
      renew: (credential) => renewCredential({ directory, credential, hosts, client: link.client }),
      async renewed(credential) {
        wiring.credential = credential
        wiring.listener?.reload(credentialsOf(wiring, replica))
        follower.reconnect()
        await link.use(credential)
      },
    },
    stopping.signal,
  )
  return async () => {
    stopping.abort()
    await running
  }
}

function credentialsOf({ credential }: Wiring, replica: Replica): Credentials {
  const { certificate, key, ca: root } = credential
  const trusted = replica.issuers().filter((issuer) => issuer.trusted)
  return { certificate, key, root, trust: trusted.map(({ pem }) => pem) }
}

function urlOf(host: string, port: number): string {
  return `mqtts://${isIPv6(host) ? `[${host}]` : host}:${port}`
}
