import { readdirSync, statfsSync, statSync } from 'node:fs'
import { join } from 'node:path'
import type { BrokerView } from '#shared/api'
import { type Metrics, openMetrics } from '#shared/metrics'
import { refusalCode } from '#shared/refusals'
import { Tally } from '#shared/tally'
import type { Deps, Step } from './deps.ts'
import type { Registry, StatusCounts } from './registry/registry.ts'

/** What is counted as it happens; everything else is read when it is asked for. */
export interface Meter {
  readonly metrics: Metrics
  /** Counts what the recipes finish. */
  reached(step: Step): void
  /** The registry, with the refusals that it is told of counted. */
  counting(registry: Registry): Registry
  /** A reply has been sent, so many ms after its request. */
  replied(reply: Reply): void
}

export interface Reply {
  readonly listener: string
  /** The pattern of the route, `none` when there was none: never what the client wrote. */
  readonly route: string
  readonly status: number
  readonly afterMs: number
}

export interface Measured {
  readonly deps: Deps
  readonly directories: { readonly registry: string; readonly journal: string }
}

const MS = 1_000
/** Devices are counted at most so often: with a million of them that takes a while, ms. */
const COUNT_EVERY_MS = 60_000
const REPLY_BUCKETS_S = [0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5]
/** Replies that take as long as somebody listens. */
const STREAMS = new Set(['/v1/feed', '/v1/events', '/v1/plans/:id/receipt'])
const BROKER_STATES = ['invited', 'up', 'down'] as const satisfies readonly BrokerView['state'][]

export function openMeter(): Meter {
  const metrics = openMetrics()
  const issued = new Tally()
  const refusals = new Tally()
  const observeReply = metrics.histogram({
    name: 'muster_enrollment_reply_seconds',
    help: 'From request to reply, by listener and route; streams and long polls are left out.',
    labels: ['listener', 'route'],
    buckets: REPLY_BUCKETS_S,
  })
  const replies = new Map<string, { listener: string; status: string; count: number }>()
  metrics.counter({
    name: 'muster_enrollment_issued_total',
    help: 'Requests that were answered with a certificate, by recipe; one that is repeated counts again.',
    labels: ['recipe'],
    read: () => issued.readings('recipe'),
  })
  metrics.counter({
    name: 'muster_enrollment_refusals_total',
    help: 'Requests of devices that were refused and recorded, by refusal code.',
    labels: ['code'],
    read: () => refusals.readings('code'),
  })
  metrics.counter({
    name: 'muster_enrollment_replies_total',
    help: 'Replies, by listener and class of status.',
    labels: ['listener', 'status'],
    read: () =>
      [...replies.values()].map(({ listener, status, count }) => ({
        labels: { listener, status },
        value: count,
      })),
  })
  return {
    metrics,
    reached(step) {
      const [, recipe] = /^(enroll|renew|service)\.4$/.exec(step) ?? []
      if (recipe !== undefined) issued.add(recipe)
    },
    counting: (registry) => ({
      ...registry,
      recordRefusal(refusal) {
        refusals.add(refusalCode(refusal.code))
        return registry.recordRefusal(refusal)
      },
    }),
    replied({ listener, route, status, afterMs }) {
      const kind = `${Math.floor(status / 100)}xx`
      const known = replies.get(`${listener} ${kind}`) ?? { listener, status: kind, count: 0 }
      known.count += 1
      replies.set(`${listener} ${kind}`, known)
      if (!STREAMS.has(route)) observeReply(afterMs / MS, { listener, route })
    },
  }
}

/** Adds what is read when somebody asks. */
export function addReadings({ metrics }: Meter, measured: Measured): void {
  addRegistry(metrics, measured)
  addBrokers(metrics, measured)
  addRevocation(metrics, measured)
  addDisks(metrics, measured)
}

function addRegistry(metrics: Metrics, { deps }: Measured): void {
  const { registry } = deps
  const counts = openCounts(deps)
  metrics.gauge({
    name: 'muster_enrollment_devices',
    help: 'Devices by state, and those that are online; services and synthetic ones are left out. At most a minute old.',
    labels: ['state'],
    async read() {
      const { expected, pending, active, retired, online } = await counts()
      const states = { expected, pending, active, retired, online }
      return Object.entries(states).map(([state, value]) => ({ labels: { state }, value }))
    },
  })
  metrics.gauge({
    name: 'muster_enrollment_holds',
    help: 'Holds that are in force. At most a minute old.',
    read: async () => (await counts()).holds,
  })
  metrics.gauge({
    name: 'muster_enrollment_position',
    help: 'The newest change of the registry.',
    read: async () => (await registry.cursor()).position,
  })
  metrics.counter({
    name: 'muster_enrollment_commits_total',
    help: 'Commits of the registry.',
    read: () => registry.commits().groups,
  })
  metrics.counter({
    name: 'muster_enrollment_commit_intents_total',
    help: 'Intents in those commits: divided by them, the size of a group.',
    read: () => registry.commits().intents,
  })
}

function openCounts({ registry, now }: Deps): () => Promise<StatusCounts> {
  let counted: { readonly at: number; readonly counts: Promise<StatusCounts> } | null = null
  return () => {
    const at = now()
    if (counted === null || Math.abs(at - counted.at) >= COUNT_EVERY_MS) {
      const counts = registry.counts(at)
      counted = { at, counts }
      counts.catch(() => {
        counted = null // the next reading tries again
      })
    }
    return counted.counts
  }
}

function addBrokers(metrics: Metrics, { deps }: Measured): void {
  const brokers = () => deps.registry.listBrokers(deps.now())
  metrics.gauge({
    name: 'muster_enrollment_brokers',
    help: 'Brokers by state.',
    labels: ['state'],
    async read() {
      const all = await brokers()
      return BROKER_STATES.map((state) => ({
        labels: { state },
        value: all.filter((broker) => broker.state === state).length,
      }))
    },
  })
  metrics.gauge({
    name: 'muster_enrollment_broker_behind_changes',
    help: 'Changes that a broker has not applied yet, by its last report.',
    labels: ['broker'],
    read: async () =>
      (await brokers()).flatMap(({ id, behind }) =>
        behind === null ? [] : [{ labels: { broker: id }, value: behind }],
      ),
  })
}

function addRevocation(metrics: Metrics, { deps }: Measured): void {
  const { authority, revocationLists, ocsp } = deps
  metrics.gauge({
    name: 'muster_enrollment_ca_not_after_seconds',
    help: 'When the CAs that sign now end, seconds since 1970.',
    labels: ['ca'],
    read: () =>
      authority.cas
        .filter(({ isCurrent }) => isCurrent)
        .map(({ role, notAfter }) => ({ labels: { ca: role }, value: notAfter / MS })),
  })
  metrics.gauge({
    name: 'muster_enrollment_crl_next_update_seconds',
    help: 'When the oldest of the CRLs of the device CA ends, seconds since 1970; 0 before the first.',
    read: () => (revocationLists.current.nextUpdate ?? 0) / MS,
  })
  metrics.gauge({
    name: 'muster_enrollment_crl_entries',
    help: 'Certificates on the full CRL of the device CA.',
    read: () => revocationLists.current.published?.entries ?? 0,
  })
  metrics.gauge({
    name: 'muster_enrollment_ocsp_presigned',
    help: 'OCSP answers that are kept.',
    read: () => ocsp.presigned,
  })
  metrics.gauge({
    name: 'muster_enrollment_ocsp_signer_not_after_seconds',
    help: 'When the certificate that signs OCSP answers ends, seconds since 1970.',
    read: () => ocsp.notAfter / MS,
  })
}

function addDisks(metrics: Metrics, { directories }: Measured): void {
  metrics.gauge({
    name: 'muster_enrollment_journal_bytes',
    help: 'Size of the journal of the registry.',
    read: () =>
      readdirSync(directories.journal)
        .filter((name) => name.endsWith('.log'))
        .reduce(
          (sum, name) =>
            sum + (statSync(join(directories.journal, name), { throwIfNoEntry: false })?.size ?? 0),
          0,
        ),
  })
  metrics.gauge({
    name: 'muster_enrollment_disk_free_bytes',
    help: 'Room on the disks of the registry and its journal.',
    labels: ['of'],
    read: () =>
      Object.entries(directories).map(([of, path]) => {
        const { bavail, bsize } = statfsSync(path)
        return { labels: { of }, value: bavail * bsize }
      }),
  })
}
