/** The broker's data plane in this process: real TLS, real Aedes, a replica of maps behind the same interface. */
import { PassThrough } from 'node:stream'
import type { DeviceRecord, FleetRecord, Policy, Report } from '#shared/feed'
import { openLog } from '#shared/log'
import type { AdmissionReader, GateDeps } from '../../broker/door/gate.ts'
import { type Listener, openListener } from '../../broker/door/listener.ts'
import { stillLive } from '../../broker/judge/admission.ts'
import { LIMITS, type Limits } from '../../broker/limits.ts'
import { createMqtt, type Mqtt } from '../../broker/mqtt/aedes-hooks.ts'
import type { AdmissionRecord } from '../../broker/replica/replica.ts'
import { type Closed, type Selector, Sessions } from '../../broker/sessions.ts'
import type { SessionStore } from '../../broker/store/session-store.ts'
import { openSessionStore } from '../../broker/store/store-open.ts'
import {
  type IdentityOptions,
  TEST_DOMAIN,
  type TestAuthority,
  type TestIdentity,
  testIdentity,
} from './pki.ts'

export const DEVICE_POLICY: Policy = {
  publish: ['devices/${device.id}/#'],
  subscribe: ['devices/${device.id}/#', 'fleets/${device.fleet}/broadcast/#'],
}
export const SERVICE_POLICY: Policy = { publish: ['devices/+/commands/#'], subscribe: ['devices/#'] }

/** Longest wait for an event in a test, ms; only a hang meets it. */
export const PATIENCE_MS = 30_000

/** Resolves in the first turn of the event loop in which the condition holds; rejects after {@link PATIENCE_MS}. */
export async function until(holds: () => boolean | Promise<boolean>): Promise<void> {
  const deadline = Date.now() + PATIENCE_MS
  while (!(await holds())) {
    if (Date.now() > deadline) throw new Error(`never came true: ${holds}`)
    await new Promise(setImmediate)
  }
}

/** An admission replica of maps. `failure` makes every read throw. */
export class FakeReplica implements AdmissionReader {
  readonly records = new Map<string, AdmissionRecord>()
  readonly waiters = new Map<string, (record: AdmissionRecord | null) => void>()
  failure: Error | null = null
  /** Reads that still succeed before {@link failure} shows. */
  readsLeft = 0
  heardAt: number | null = Date.now()
  reads = 0
  /** Called at every read, before it. */
  onRead: (read: number) => void = () => {}

  record(fingerprint: string): AdmissionRecord | null {
    this.onRead(++this.reads)
    if (this.failure !== null && this.readsLeft-- <= 0) throw this.failure
    return this.records.get(fingerprint) ?? null
  }

  device(id: string): DeviceRecord | null {
    return this.#find(({ device }) => device.id === id)?.device ?? null
  }

  fleet(id: string): FleetRecord | null {
    return this.#find(({ fleet }) => fleet.id === id)?.fleet ?? null
  }

  #find(isIt: (record: AdmissionRecord) => boolean): AdmissionRecord | undefined {
    for (const record of this.records.values()) if (isIt(record)) return record
    return undefined
  }

  silentMs(now: number): number {
    return this.heardAt === null ? Number.MAX_SAFE_INTEGER : now - this.heardAt
  }

  waitForRecord(fingerprint: string): Promise<AdmissionRecord | null> {
    return new Promise((resolve) => this.waiters.set(fingerprint, resolve))
  }

  put(record: AdmissionRecord): void {
    this.records.set(record.certificate.fingerprint, record)
    this.waiters.get(record.certificate.fingerprint)?.(record)
  }
}

export interface TestBrokerOptions {
  readonly authority: TestAuthority
  readonly limits?: Partial<Limits>
  readonly maxStalenessMs?: number
  readonly heartbeatMs?: number
  readonly expireEveryMs?: number
  readonly store?: SessionStore
  readonly now?: () => number
  /** Keys of session tickets; random ones otherwise. */
  readonly ticketKeys?: Buffer
  /** Origins of pages that may come by WebSocket. */
  readonly origins?: readonly string[]
  readonly isAlpnSpoken?: boolean
  /** As many sessions are closed at once, with everything that belongs to them. */
  readonly few?: number
}

export interface RecordOptions extends IdentityOptions {
  readonly fleet?: string
  readonly batch?: string | null
  readonly policy?: Policy
}

export type RefusedReport = Extract<Report, { type: 'refused' }>

export interface TestBroker {
  readonly port: number
  readonly authority: TestAuthority
  readonly replica: FakeReplica
  readonly sessions: Sessions
  readonly mqtt: Mqtt
  readonly store: SessionStore
  readonly listener: Listener
  readonly reports: Report[]
  /** Lines of the log, as text. */
  readonly logged: () => string
  /** Issues a certificate and records it. */
  enroll(id: string, options?: RecordOptions): Promise<TestIdentity>
  /** The first report of the past or the future that fits. */
  report<T extends Report['type']>(
    type: T,
    fits?: (report: Extract<Report, { type: T }>) => boolean,
  ): Promise<Extract<Report, { type: T }>>
  refusals(code?: string): RefusedReport[]
  /** Changes a record and closes what it no longer lets in, in one tick, as the follower does. */
  change(
    identity: { fingerprint: string },
    change: (record: AdmissionRecord) => AdmissionRecord,
  ): Promise<Closed>
  revoke(identity: { fingerprint: string }): Promise<Closed>
  hold(identity: { fingerprint: string }): Promise<Closed>
  judge(selector: Selector): Promise<Closed>
  close(): Promise<void>
}

export async function openTestBroker(options: TestBrokerOptions): Promise<TestBroker> {
  const { authority } = options
  const now = options.now ?? Date.now
  const replica = new FakeReplica()
  const limits = { ...LIMITS, ...options.limits }
  const sessions = new Sessions({
    now,
    limits,
    ...(options.few === undefined ? {} : { sliceSize: options.few }),
  })
  const reports: Report[] = []
  const watchers = new Set<() => void>()
  const lines = new PassThrough()
  const deps: GateDeps = {
    now,
    trustDomain: TEST_DOMAIN,
    replica,
    waitForRecord: (fingerprint) => replica.waitForRecord(fingerprint),
    maxStalenessMs: options.maxStalenessMs ?? 86_400_000,
    sessions,
    limits,
    log: openLog('test', 'debug', lines),
    report(report) {
      reports.push(report)
      for (const watcher of watchers) watcher()
    },
  }
  const { log } = deps
  const { heartbeatMs, store = openSessionStore(':memory:', { durability: 'full', limits, log }) } = options
  const mqtt = await createMqtt({
    ...deps,
    store,
    ...(heartbeatMs === undefined ? {} : { heartbeatMs }),
    ...(options.expireEveryMs === undefined ? {} : { expireEveryMs: options.expireEveryMs }),
  })
  const server = await testIdentity(authority, 'broker-1', { kind: 'broker' })
  const listener = await openListener({
    ...deps,
    host: '127.0.0.1',
    port: 0,
    hosts: ['localhost', '127.0.0.1'],
    webSocket: { port: 0, origins: options.origins ?? [] },
    isAlpnSpoken: options.isAlpnSpoken ?? false,
    certificate: server.chainPem,
    key: server.keyPem,
    root: authority.rootPem,
    trust: [authority.device.pem],
    mqtt,
    ...(options.ticketKeys === undefined ? {} : { ticketKeys: options.ticketKeys }),
  })
  const judge = (selector: Selector) =>
    sessions.close(selector, {
      judge: ({ fingerprint }) => stillLive(replica.record(fingerprint), now()),
      since: now(),
    })
  const change: TestBroker['change'] = (identity, changeOf) => {
    replica.put(changeOf(recordOf(replica, identity.fingerprint)))
    return judge({ kind: 'certificate', id: identity.fingerprint })
  }
  return {
    port: listener.port,
    authority,
    replica,
    sessions,
    mqtt,
    store,
    listener,
    reports,
    logged: () => String(lines.read() ?? ''),
    async enroll(id, record = {}) {
      const identity = await testIdentity(authority, id, record)
      replica.put(admissionRecord(identity, record))
      return identity
    },
    report: (type, fits = () => true) =>
      new Promise((resolve, reject) => {
        const look = () => {
          const found = reports.find((report) => report.type === type && fits(report as never)) // type was compared
          if (found === undefined) return
          watchers.delete(look)
          clearTimeout(timer)
          resolve(found as never) // as above
        }
        const timer = setTimeout(() => {
          reject(new Error(`no ${type} report: ${JSON.stringify(reports.slice(-5))}`))
        }, PATIENCE_MS)
        watchers.add(look)
        look()
      }),
    refusals: (code) =>
      reports.filter(
        (report): report is RefusedReport =>
          report.type === 'refused' && (code ?? report.code) === report.code,
      ),
    change,
    judge,
    revoke: (identity) =>
      change(identity, (record) => ({
        ...record,
        certificate: { ...record.certificate, state: 'revoked', revokedAt: now(), reason: 'keyCompromise' },
      })),
    hold: (identity) =>
      change(identity, (record) => ({
        ...record,
        hold: { id: 'plan-1', scope: { kind: 'device', id: record.device.id }, state: 'active' },
      })),
    async close() {
      await listener.close()
      await mqtt.close()
    },
  }
}

function recordOf(replica: FakeReplica, fingerprint: string): AdmissionRecord {
  const record = replica.records.get(fingerprint)
  if (record === undefined) throw new TypeError('not enrolled')
  return record
}

/** What the registry would say about an identity that has just been issued. */
export function admissionRecord(identity: TestIdentity, options: RecordOptions = {}): AdmissionRecord {
  const kind = identity.kind === 'service' ? 'service' : 'device'
  const fleet = options.fleet ?? (kind === 'service' ? 'services' : 'default')
  const policy = options.policy ?? (kind === 'service' ? SERVICE_POLICY : DEVICE_POLICY)
  const { fingerprint, serial, issuer, notBefore, notAfter, id } = identity
  return {
    certificate: {
      fingerprint,
      serial,
      issuer,
      device: id,
      state: 'active',
      notBefore,
      notAfter,
      supersededFrom: null,
      revokedAt: null,
      reason: null,
    },
    device: { id, kind, fleet, batch: options.batch ?? null, state: 'active' },
    fleet: { id: fleet, policy, policyEpoch: 1 },
    hold: null,
  }
}
