import { X509Certificate } from 'node:crypto'
import type { Report } from '#shared/feed'
import { type Metrics, openMetrics } from '#shared/metrics'
import { Tally } from '#shared/tally'
import type { Mqtt } from './mqtt/aedes-hooks.ts'
import type { Replica } from './replica/replica.ts'
import type { Sessions } from './sessions.ts'
import type { Purger } from './store/purger.ts'
import type { SessionStore } from './store/session-store.ts'

/** What is counted as it happens, whether or not anybody asks for it; everything else is read when it is asked for. */
export interface Meter {
  readonly metrics: Metrics
  /** Counts what a report says. */
  saw(report: Report): void
  /** A socket closed so many ms after the commit of the decision that ended it. */
  closed(afterMs: number): void
}

/** What the readings are read from. */
export interface Measured {
  readonly replica: Pick<Replica, 'cursor' | 'silentMs' | 'spool'>
  readonly sessions: Pick<Sessions, 'count'>
  readonly store: Pick<SessionStore, 'retained'> & {
    readonly sessions: Pick<SessionStore['sessions'], 'queues' | 'count' | 'expired'>
  }
  readonly mqtt: Pick<Mqtt, 'registered' | 'traffic'>
  /** PEM of the broker's own certificate as it is now. */
  certificate(): string
  /** What of the TLS material at hand is not in use. */
  tlsFaults(): number
  readonly purger: Pick<Purger, 'counts'>
  now(): number
}

const MS = 1_000
const CLOSE_BUCKETS_S = [0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5]

export function openMeter(): Meter {
  const metrics = openMetrics()
  const refusals = new Tally()
  const connects = new Tally()
  const disconnects = new Tally()
  metrics.counter({
    name: 'muster_broker_refusals_total',
    help: 'Clients and requests that were turned away, by refusal code.',
    labels: ['code'],
    read: () => refusals.readings('code'),
  })
  metrics.counter({
    name: 'muster_broker_connects_total',
    help: 'CONNECTs that were accepted, by TLS handshake: full or resumed.',
    labels: ['handshake'],
    read: () => connects.readings('handshake'),
  })
  metrics.counter({
    name: 'muster_broker_disconnects_total',
    help: 'Accepted clients whose connection ended, by reason.',
    labels: ['reason'],
    read: () => disconnects.readings('reason'),
  })
  const observeClose = metrics.histogram({
    name: 'muster_broker_close_seconds',
    help: 'From the commit of a hold or revocation to the close of each socket that it ended.',
    buckets: CLOSE_BUCKETS_S,
  })
  return {
    metrics,
    saw(report) {
      if (report.type === 'refused') refusals.add(report.code)
      else if (report.type === 'connected') connects.add(report.resumed ? 'resumed' : 'full')
      else if (report.type === 'disconnected') disconnects.add(report.reason)
    },
    closed: (afterMs) => observeClose(afterMs / MS),
  }
}

/** Adds what is read when somebody asks. */
export function addReadings({ metrics }: Meter, measured: Measured): void {
  addSessions(metrics, measured)
  addFeed(metrics, measured)
  addKept(metrics, measured)
  addStored(metrics, measured)
  addPurges(metrics, measured)
}

function addSessions(metrics: Metrics, { sessions, mqtt }: Measured): void {
  metrics.gauge({
    name: 'muster_broker_sessions',
    help: 'Open sockets of identified clients.',
    read: () => sessions.count(),
  })
  metrics.gauge({
    name: 'muster_broker_clients',
    help: 'MQTT clients that are connected.',
    read: () => mqtt.registered().counted,
  })
  metrics.counter({
    name: 'muster_broker_messages_received_total',
    help: 'PUBLISH packets of clients, permitted or not; wills are none.',
    read: () => mqtt.traffic().published,
  })
  metrics.counter({
    name: 'muster_broker_messages_delivered_total',
    help: 'Messages that were handed to clients: live, retained, or from their queues.',
    read: () => mqtt.traffic().delivered,
  })
}

function addFeed(metrics: Metrics, { replica, certificate, tlsFaults, now }: Measured): void {
  metrics.gauge({
    name: 'muster_broker_feed_position',
    help: 'The newest change of the registry that is applied here.',
    read: () => replica.cursor()?.position ?? 0,
  })
  metrics.gauge({
    name: 'muster_broker_feed_silence_seconds',
    help: 'Since the registry was last heard when this broker was up to date: how far behind it can be.',
    read: () => Math.min(replica.silentMs(now()), now()) / MS,
  })
  metrics.gauge({
    name: 'muster_broker_spool_reports',
    help: 'Reports that wait for the registry.',
    read: () => replica.spool.size(),
  })
  metrics.gauge({
    name: 'muster_broker_tls_faults',
    help: 'Certificates and CAs that were handed to this broker and cannot be used; its log says why.',
    read: tlsFaults,
  })
  metrics.gauge({
    name: 'muster_broker_certificate_not_after_seconds',
    help: 'When the certificate of this broker ends, seconds since 1970.',
    read: () => new X509Certificate(certificate()).validToDate.getTime() / MS,
  })
}

function addPurges(metrics: Metrics, { purger }: Measured): void {
  metrics.gauge({
    name: 'muster_broker_purges_waiting',
    help: 'What holds and revocations take and is still stored here: orders that came together, and single devices.',
    read: () => purger.counts().waiting,
  })
  metrics.counter({
    name: 'muster_broker_purge_failures_total',
    help: 'Attempts to forget it that the disk has refused.',
    read: () => purger.counts().failed,
  })
}

function addStored(metrics: Metrics, { store }: Measured): void {
  const queued = () => store.sessions.queues.totals()
  metrics.gauge({
    name: 'muster_broker_queue_messages',
    help: 'Messages that wait in the queues of sessions.',
    read: () => queued().messages,
  })
  metrics.gauge({
    name: 'muster_broker_queue_bytes',
    help: 'Topics and payloads of those messages.',
    read: () => queued().bytes,
  })
  metrics.gauge({
    name: 'muster_broker_queue_resident_bytes',
    help: 'The part of them that is in memory.',
    read: () => queued().residentBytes,
  })
  metrics.counter({
    name: 'muster_broker_queue_dropped_total',
    help: 'Messages that found the queue of a session full, each counted once a queue.',
    read: () => queued().dropped,
  })
  metrics.gauge({
    name: 'muster_broker_retained_messages',
    help: 'Retained messages.',
    read: () => store.retained.totals().messages,
  })
  metrics.gauge({
    name: 'muster_broker_retained_bytes',
    help: 'Topics and payloads of retained messages, and 256 octets for each.',
    read: () => store.retained.totals().bytes,
  })
}

function addKept(metrics: Metrics, { store }: Measured): void {
  metrics.gauge({
    name: 'muster_broker_kept_sessions',
    help: 'Sessions that outlive their connection, of clients that are connected or away.',
    read: () => store.sessions.count,
  })
  metrics.counter({
    name: 'muster_broker_expired_sessions_total',
    help: 'Sessions that have ended because their clients stayed away for longer than they may.',
    read: () => store.sessions.expired,
  })
}
