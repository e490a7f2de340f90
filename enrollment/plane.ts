import { isIPv6 } from 'node:net'
import { join } from 'node:path'
import { makeDirectory } from '#shared/directory'
import { isMusterError, MusterError } from '#shared/errors'
import { writeFileDurably } from '#shared/files'
import type { OperatorProfile, Ready } from '#shared/layout'
import type { Log } from '#shared/log'
import { serveMetrics } from '#shared/metrics-listener'
import type { Lifecycle } from '#shared/service'
import { type DirectoryLock, lockDirectory } from '#shared/sqlite'
import { Bell } from './bell.ts'
import { BrokerFaults } from './broker-faults.ts'
import { caDirectory } from './ca/ca-directory.ts'
import { type Authority, openAuthority } from './ca/create-ca.ts'
import { proveKey } from './ca/key-access.ts'
import { type GenerationKeys, openGenerationKeys } from './ca/open-generation.ts'
import { loadModule } from './ca/pkcs11/module.ts'
import { Tokens } from './ca/pkcs11/tokens.ts'
import type { Config } from './config.ts'
import type { Deps, Step } from './deps.ts'
import { Generations } from './generations.ts'
import { startListeners } from './http/listeners.ts'
import { startJobs } from './jobs.ts'
import { openManufacturerTrust } from './manufacturer-trust.ts'
import { addReadings, type Meter, openMeter, type Reply } from './metrics.ts'
import { namesFor } from './names.ts'
import { OcspService } from './ocsp.ts'
import { keepOwn, type OwnPair } from './own-certificates.ts'
import { readPassphrase, readPin } from './passphrase.ts'
import { pruneJournal } from './registry/journal-retention.ts'
import { openRegistry } from './registry/open.ts'
import type { Registry } from './registry/registry.ts'
import { keepResponders } from './responder.ts'
import { startRetention } from './retention.ts'
import { RevocationLists } from './revocation-lists.ts'
import { followEnds } from './rollover.ts'
import { checkMadeBefore, clockEvidence, openSigningClock, type SigningClock } from './signing-clock.ts'
import { caKeysOf, publishTrust } from './trust.ts'

/** What the process gives to the plane: everything that tests replace. */
export interface Runtime {
  readonly log: Log
  readonly lifecycle: Lifecycle
  now(): number
  random(octets: number): Buffer
  reached(step: Step): void
  /** As of `SigningClockOptions`. */
  readonly mostIdleMs?: number
}

/** Where the running plane is, as `ready.json` names it. */
export type Whereabouts = Pick<Ready, 'enrollment' | 'admin' | 'http' | 'caFile' | 'operatorProfile'>

type Urls = Pick<Ready, 'enrollment' | 'admin' | 'http'>

export interface Plane {
  readonly whereabouts: Whereabouts
  readonly deps: Deps
  /** Renews the certificates of the plane that are due, as it does every hour. */
  renewOwn(): Promise<void>
  /** Of the listener for metrics; null when there is none. */
  readonly metricsPort: number | null
}

/**
 * Opens everything in the data directory and starts to serve; what it started is on the lifecycle.
 * @throws MusterError directory_in_use, directory_unusable, config_invalid, key_file_insecure, passphrase_wrong,
 *   clock_wrong, port_taken
 */
export async function startPlane(config: Config, runtime: Runtime): Promise<Plane> {
  const { lifecycle } = runtime
  openDirectories(config)
  const lock = takeLock(config)
  lifecycle.started('lock', () => lock.release())

  const whereabouts = whereaboutsOf(config)
  const meter = openMeter()
  const deps = await openDeps(config, { ...runtime, meter })
  const server = await keepServerPair(deps, config)
  await keepOperator(deps, { config, whereabouts })
  await deps.revocationLists.refresh(deps.now())

  const listeners = await startListeners(deps, {
    config,
    lifecycle,
    pair: server,
    // of each reply it costs more than to look whether anything was committed
    ...(config.metrics === null ? {} : { replied: (reply: Reply) => meter.replied(reply) }),
  })
  const renewOwn = async () => {
    deps.ocsp.renew(await keepResponders(deps, config.layout.enrollment))
    listeners.reload(await keepServerPair(deps, config))
    await keepOperator(deps, { config, whereabouts })
  }
  deps.authority.onChange(async () => {
    await renewOwn()
    await deps.revocationLists.refresh(deps.now())
  })
  lifecycle.started('jobs', startJobs(deps, { renewOwn }))
  lifecycle.started('retention', await startRetention(deps, retentionOf(config)))
  const metricsPort = await openMetricsOf(meter, { config, deps, lifecycle })
  return { whereabouts, deps, renewOwn, metricsPort }
}

async function openMetricsOf(
  meter: Meter,
  { config, deps, lifecycle }: { config: Config; deps: Deps; lifecycle: Lifecycle },
): Promise<number | null> {
  const { metrics: address, layout, journal } = config
  if (address === null) return null
  const directories = { registry: layout.enrollment, journal }
  addReadings(meter, { deps, directories })
  const listener = await serveMetrics(meter.metrics, { address, log: deps.log })
  lifecycle.started('metrics', () => listener.stop())
  return listener.port
}

/** @throws MusterError directory_unusable */
function openDirectories({ layout }: Config): void {
  for (const path of [layout.root, layout.ca, layout.enrollment, layout.operator]) makeDirectory(path)
}

function retentionOf({ layout, journal, retention }: Config): Parameters<typeof startRetention>[1] {
  return { retention, auditHead: layout.auditHead, pruneJournal: (before) => pruneJournal(journal, before) }
}

/** One writer per data directory. @throws MusterError directory_in_use */
function takeLock({ layout }: Config): DirectoryLock {
  try {
    return lockDirectory(join(layout.enrollment, 'lock.db'))
  } catch (cause) {
    if (!isMusterError(cause, 'directory_in_use')) throw cause
    throw new MusterError(
      'directory_in_use',
      `Cannot use the data directory "${layout.root}": another enrollment service works in it; fix: stop that one, or choose another directory with --data`,
      { cause },
    )
  }
}

/** As this machine reaches them: the public name may not resolve here. */
function whereaboutsOf(config: Config): Whereabouts {
  const { rootCertificate: caFile, operatorProfile } = config.layout
  return { ...urlsAt(config.localHost, config), caFile, operatorProfile }
}

/** As everybody else reaches them. */
function publicUrls(config: Config): Urls {
  return urlsAt(config.hosts[0] ?? 'localhost', config)
}

function urlsAt(host: string, { ports }: Pick<Config, 'ports'>): Urls {
  const name = isIPv6(host) ? `[${host}]` : host
  return {
    enrollment: `https://${name}:${ports.enrollment}`,
    admin: `https://${name}:${ports.admin}`,
    http: `http://${name}:${ports.http}`,
  }
}

async function openDeps(config: Config, runtime: Runtime & { meter: Meter }): Promise<Deps> {
  const { layout } = config
  const { log, now, random, reached, lifecycle, meter } = runtime
  const urls = publicUrls(config)
  const names = namesFor(layout.ca, {
    trustDomain: config.trustDomain,
    httpBase: urls.http,
  })
  checkMadeBefore(now()) // the CAs are signed, too
  let clock: Pick<SigningClock, 'check'> = { check: checkMadeBefore }
  const access = { ...openKeyAccess(config, runtime), checkClock: () => clock.check(now()) }
  const base = await openAuthority({
    directory: layout.ca,
    ...access,
    now: now(),
    clock: 'later',
    ...names,
  })
  const registry = await openRegistry(layout.registry, {
    journal: config.journal,
    trustDomain: names.trustDomain,
    epoch: random(16).toString('hex'),
    now: now(),
  })
  lifecycle.started('registry', () => registry.close())
  const { mostIdleMs } = runtime
  const signingClock = openSigningClock(
    await clockEvidence(registry, { isRight: config.clockIsRight }),
    mostIdleMs === undefined ? {} : { mostIdleMs },
  )
  signingClock.check(now()) // before anything is done because some time is over, a cut-over above all
  clock = signingClock
  await registry.cancelUnfinishedClaims({ now: now(), by: 'plane' })
  const keys = openGenerationKeys(caDirectory(layout.ca), access)
  const authority = await openGenerations(registry, { base, keys, now: now() })
  const changed = new Bell()
  registry.onCommit(() => changed.ring())
  const caKeys = new Set(caKeysOf(authority))
  authority.onChange(async () => {
    for (const key of caKeysOf(authority)) caKeys.add(key)
    await publishTrust({ registry, authority, now })
  })
  await publishTrust({ registry, authority, now })
  const responders = await keepResponders(
    { registry, authority, signingClock, now, random },
    layout.enrollment,
  )
  return {
    registry: meter.counting(registry),
    authority,
    caKeys,
    signingClock,
    revocationLists: new RevocationLists({ registry, authority, directory: join(layout.ca, 'crl') }),
    ocsp: new OcspService({ registry, responders, signingClock, now }),
    manufacturers: await openManufacturerTrust({ registry, now }),
    brokerFaults: new BrokerFaults(log),
    log,
    auditHead: layout.auditHead,
    adminUrl: urls.admin,
    now,
    random,
    reached(step) {
      reached(step)
      meter.reached(step)
    },
    changed,
    reported: new Bell(),
  }
}

/** Sessions with security modules end when all that signs has stopped. @throws MusterError passphrase_wrong, key_file_insecure */
function openKeyAccess({ passphrase, pin }: Config, { lifecycle, now, random }: Runtime) {
  const tokens = new Tokens({ load: loadModule, pin: () => readPin(pin), now })
  lifecycle.started('security modules', () => tokens.close())
  return { passphrase: readPassphrase(passphrase, random), tokens }
}

/** The CAs as the rollovers have left them. @throws MusterError clock_wrong */
async function openGenerations(
  registry: Registry,
  of: { base: Authority; keys: GenerationKeys; now: number },
): Promise<Generations> {
  const { base, keys, now } = of
  const rollovers = await registry.listRollovers()
  const authority = new Generations(base, { keys, rollovers, now })
  await followEnds({ registry, authority, now: () => now })
  authority.checkClock(now)
  for (const { signer } of [...authority.deviceIssuers, authority.infrastructure]) await proveKey(signer)
  if (rollovers.length > 0) return authority // the rollovers have recorded whom brokers trust
  const { id, pem } = authority.device
  await registry.recordIssuer({ id, pem, trusted: true }, { now, by: 'plane' })
  return authority
}

function keepServerPair(deps: Deps, { layout, hosts }: Config): Promise<OwnPair> {
  return keepOwn(deps, {
    kind: 'server',
    owner: 'enrollment',
    hosts,
    certificateFile: join(layout.enrollment, 'server.crt'),
    keyFile: join(layout.enrollment, 'server.key'),
  })
}

/** The certificate and profile with which tools on this machine act as operator `local`. */
async function keepOperator(deps: Deps, place: { config: Config; whereabouts: Whereabouts }): Promise<void> {
  const { operator, operatorProfile } = place.config.layout
  const caFile = join(operator, 'ca.crt')
  const certificateFile = join(operator, 'operator.crt')
  const keyFile = join(operator, 'operator.key')
  await keepOwn(deps, { kind: 'operator', owner: 'local', hosts: [], certificateFile, keyFile })
  const { admin } = place.whereabouts
  const profile: OperatorProfile = { schemaVersion: 1, admin, caFile, certificateFile, keyFile }
  writeFileDurably(caFile, deps.authority.bundle.roots.join(''))
  writeFileDurably(operatorProfile, `${JSON.stringify(profile, null, 2)}\n`)
}
