import { randomUUID } from 'node:crypto'
import { isIPv6 } from 'node:net'
import { join } from 'node:path'
import { setTimeout as delay } from 'node:timers/promises'
import { makeDirectory } from '#shared/directory'
import { faultText, MOST_FAULTS, type Report, type ReportBatch } from '#shared/feed'
import type { Log } from '#shared/log'
import { serveMetrics } from '#shared/metrics-listener'
import type { Lifecycle } from '#shared/service'
import { lockDirectory } from '#shared/sqlite'
import type { Config } from './config.ts'
import { type Credentials, type Listener, openListener } from './door/listener.ts'
import { addReadings, type Meter, openMeter } from './metrics.ts'
import { createMqtt, type Mqtt } from './mqtt/aedes-hooks.ts'
import { Presence } from './mqtt/presence.ts'
import { obtainCredential } from './replica/admittance.ts'
import { type Credential, renewCredential } from './replica/credential.ts'
import { Follower } from './replica/follower.ts'
import { RegistryLink } from './replica/registry-link.ts'
import { keepRenewed } from './replica/renewal.ts'
import { openReplica, type Replica } from './replica/replica.ts'
import { Reporter } from './replica/reports.ts'
import { Sessions } from './sessions.ts'
import { Purger } from './store/purger.ts'
import type { SessionStore } from './store/session-store.ts'
import { openSessionStore } from './store/store-open.ts'

/** Longest wait for a registry that does not answer, while this broker could serve already, ms. */
const CATCH_UP_MS = 1_000

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
  /** Of the listener for metrics; null when there is none. */
  readonly metricsPort: number | null
}

/** What is there once the registry can be followed; `listener`, `mqtt` and `url` come later. */
interface Parts extends StartDeps {
  readonly config: Config
  readonly replica: Replica
  readonly store: SessionStore
  readonly link: RegistryLink
  readonly sessions: Sessions
  readonly purger: Purger
  readonly meter: Meter
  /** Parts that know of each other before each of them exists. */
  readonly wiring: Wiring
}

interface Wiring {
  credential: Credential
  listener: Listener | null
  mqtt: Mqtt | null
  presence: Presence | null
  reporter: Reporter | null
  url: string
}

/**
 * Starts a broker: its directory and credential, its replica, the stream, a complete state, its listener, its reports.
 * With a replica from an earlier run it serves whether or not the registry can be reached; if it can, what changed in
 * between is applied before anybody comes in.
 * @throws MusterError directory_in_use, directory_unusable, config_invalid, port_taken, and as `obtainCredential`
 */
export async function startBroker(config: Config, deps: StartDeps): Promise<RunningBroker> {
  const { log, lifecycle } = deps
  const parts = await openParts(config, deps)
  const { replica, sessions, wiring } = parts
  const reporter = openReporter(parts)
  const follower = openFollower(parts, reporter)
  if (replica.cursor() === null)
    log.info({ registry: wiring.credential.url }, 'waiting for the first snapshot')
  await follower.complete()
  await atMost(CATCH_UP_MS, follower.attempted())

  const report = reporting(parts, reporter)
  const { mqtt, port } = await openDoors(parts, { follower, report })
  wiring.url = urlOf(config.hosts[0] ?? 'localhost', port)
  reporter.start()
  lifecycle.started('renewal', startRenewal(parts, follower))
  const metricsPort = await openMetrics(parts, mqtt)
  return { url: wiring.url, port, replica, sessions, mqtt, follower, metricsPort }
}

/** Reports, and counts what is reported. */
function reporting({ meter, wiring }: Parts, reporter: Reporter): (report: Report) => void {
  return (report) => {
    meter.saw(report)
    wiring.presence?.saw(report)
    reporter.report(report)
  }
}

function tellPresence({ sessions, store, wiring, now, log, lifecycle }: Parts, mqtt: Mqtt): void {
  const presence = new Presence({
    ...{ sessions, now, retained: store.retained },
    publish: (message) => mqtt.publish(message),
    failed: (error) => log.error({ err: error }, 'cannot tell who is connected'),
  })
  wiring.presence = presence
  lifecycle.started('presence', () => presence.stop())
  presence.start()
}

async function openMetrics(parts: Parts, mqtt: Mqtt): Promise<number | null> {
  const { config, lifecycle, meter, wiring } = parts
  if (config.metrics === null) return null
  const certificate = () => wiring.credential.certificate
  const tlsFaults = () => parts.wiring.listener?.faults().length ?? 0
  addReadings(meter, { ...parts, mqtt, certificate, tlsFaults })
  const listener = await serveMetrics(meter.metrics, { address: config.metrics, log: parts.log })
  lifecycle.started('metrics', () => listener.stop())
  return listener.port
}

async function openParts(config: Config, deps: StartDeps): Promise<Parts> {
  const { lifecycle, now, log } = deps
  makeDirectory(config.directory)
  const lock = lockDirectory(join(config.directory, 'lock.db'))
  lifecycle.started('lock', () => lock.release())
  const credential = await obtainCredential(config, deps)
  const replica = openReplica(join(config.directory, 'broker.db'), {
    now,
    monotonic: () => performance.now(),
  })
  lifecycle.started('replica', () => replica.close())
  const { durability, limits } = config
  const store = openSessionStore(join(config.directory, 'sessions.db'), { durability, limits, log })
  lifecycle.started('sessions', () => store.destroy())
  const link = new RegistryLink(credential)
  lifecycle.started('link', () => link.close())
  const wiring: Wiring = { credential, listener: null, mqtt: null, presence: null, reporter: null, url: '' }
  const meter = openMeter()
  const sessions = new Sessions({
    now,
    limits,
    policyChanged: (fleet) => void wiring.mqtt?.review(fleet),
    closed: (afterMs) => meter.closed(afterMs),
  })
  const purger = new Purger({
    ...{ store, replica, log },
    random: deps.random,
    cleaned: () => sessions.cleaned(),
    changed: () => wiring.reporter?.purged(),
  })
  return { ...deps, config, replica, store, link, sessions, purger, meter, wiring }
}

/** Stops after whoever reports, so that their last words are stored. */
function openReporter(parts: Parts): Reporter {
  const { replica, link, sessions, wiring, now, random, log, lifecycle } = parts
  const reporter = new Reporter({
    ...{ now, random, log },
    store: replica.spool,
    send: (batch) => link.report(batch),
    state: () => ({
      ...{ applied: replica.cursor(), sessions: sessions.count(), url: wiring.url },
      ...servingFaults(wiring.listener),
      ...purgeState(parts.purger),
    }),
    stored: (hold) => replica.markReported(hold),
    boot: randomUUID(),
  })
  wiring.reporter = reporter
  lifecycle.started('reports', () => reporter.stop())
  return reporter
}

/** What the listener was given and cannot use; the registry says it in `muster status`. */
function servingFaults(listener: Listener | null): Pick<ReportBatch, 'faults'> {
  const faults = listener?.faults() ?? []
  return faults.length === 0 ? {} : { faults: faults.slice(0, MOST_FAULTS).map(faultText) }
}

function purgeState(purger: Purger): Pick<ReportBatch, 'purged' | 'unpurged'> {
  const [purged, fault] = [purger.purged(), purger.fault()]
  return { ...(purged ? { purged } : {}), ...(fault === null ? {} : { unpurged: faultText(fault) }) }
}

function openFollower(parts: Parts, reporter: Reporter): Follower {
  const { replica, purger, link, sessions, wiring, now, random, log, lifecycle } = parts
  const follower = new Follower({
    ...{ replica, sessions, now, random, log },
    open: (path, signal) => link.open(path, signal),
    report: reporting(parts, reporter),
    purge: (devices) => purger.forget(devices),
    ordered: () => purger.ordered(),
    review: async () => wiring.mqtt?.review(),
    reviewDevice: async (device) => wiring.mqtt?.reviewDevice(device),
    renewalMoved: (connection) => wiring.mqtt?.tell(connection),
    newsForAll: () => wiring.mqtt?.tellAll(),
    trustChanged: () => wiring.listener?.reload(credentialsOf(parts)),
    moved: () => reporter.changed(),
  })
  follower.start()
  lifecycle.started('follower', () => follower.stop())
  return follower
}

/** MQTT, and the listener that lets clients in to it. */
async function openDoors(
  parts: Parts,
  { follower, report }: { follower: Follower; report(report: Report): void },
): Promise<{ mqtt: Mqtt; port: number }> {
  const { config, replica, store, sessions, purger, wiring, now, log, lifecycle } = parts
  const { maxStalenessMs, limits } = config
  const inside = {
    ...{ replica, sessions, store, report, now, log, limits, maxStalenessMs },
    forget: (identities: readonly string[]) => purger.forget(identities),
    claim: (clientId: string, identity: string) => purger.claim(clientId, identity),
    isOwed: (clientId: string, identity: string) => purger.isOwed(clientId, identity),
  }
  const mqtt = await createMqtt(inside)
  wiring.mqtt = mqtt
  lifecycle.started('mqtt', () => mqtt.close())
  lifecycle.started('purge', () => purger.stop())
  // What was decided while this broker was away.
  await mqtt.review()
  await purger.rest()
  if (config.isPresenceTold) tellPresence(parts, mqtt)
  const listener = await openListener({
    ...inside,
    ...credentialsOf(parts),
    mqtt,
    host: config.listen,
    port: config.port,
    hosts: config.hosts,
    isAlpnSpoken: config.isAlpnSpoken,
    ...(config.webSocket === null ? {} : { webSocket: config.webSocket }),
    trustDomain: wiring.credential.trustDomain,
    waitForRecord: (fingerprint) => follower.waitForRecord(fingerprint),
  })
  wiring.listener = listener
  if (listener.webSocketPort !== null) log.info({ port: listener.webSocketPort }, 'MQTT over WebSocket')
  lifecycle.started('listener', () => listener.close())
  return { mqtt, port: listener.port }
}

/** Keeps the certificate fresh; returns how to stop. Open connections stay when it changes. */
function startRenewal(parts: Parts, follower: Follower): () => Promise<void> {
  const { config, link, wiring, now, random, log } = parts
  const { directory, hosts } = config
  const stopping = new AbortController()
  const running = keepRenewed(
    {
      ...{ hosts, now, random, log },
      current: () => wiring.credential,
      renew: (credential) => renewCredential({ directory, credential, hosts, client: link.client }),
      async renewed(credential) {
        wiring.credential = credential
        wiring.listener?.reload(credentialsOf(parts))
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

function credentialsOf({ wiring, replica }: Parts): Credentials {
  const { certificate, key, ca: root } = wiring.credential
  const trusted = replica.issuers().filter((issuer) => issuer.trusted)
  return { certificate, key, root, trust: trusted.map(({ pem }) => pem) }
}

function urlOf(host: string, port: number): string {
  return `mqtts://${isIPv6(host) ? `[${host}]` : host}:${port}`
}

async function atMost(ms: number, work: Promise<void>): Promise<void> {
  const done = new AbortController()
  const deadline = delay(ms, undefined, { signal: done.signal }).catch(() => {}) // only its signal rejects it
  await Promise.race([work, deadline])
  done.abort()
}
