import type { Log } from '#shared/log'
import { stillLive } from './admission.ts'
import type { AdmissionReader } from './gate.ts'
import type { MqttClient } from './mqtt-client.ts'
import type { AdmissionRecord } from './replica.ts'
import type { Session } from './session-rows.ts'
import type { SessionStore } from './session-store.ts'
import { compilePolicy } from './topic-policy.ts'

/** What a purge takes beside sessions, queues, half-received messages and wills. */
export interface Purge {
  /** Retained messages that the identity has published; telemetry that others go on reading, unless this is said. */
  readonly retained?: boolean
}

export interface ReviewDeps {
  now(): number
  readonly store: SessionStore
  readonly replica: AdmissionReader
  readonly clients: Readonly<
    Record<string, MqttClient & { unsubscribe?(filters: object, done: () => void): void }>
  >
  readonly log: Log
}

/** Sessions that are looked at in one turn of the event loop. */
const SLICE = 200

/** Identities that are purged in one commit: each may have a queue of a thousand rows. */
const PURGED = 20

/** Forgets what is stored of these identities, some in each turn of the event loop. */
export async function purge(
  store: SessionStore,
  identities: readonly string[],
  what: Purge = {},
): Promise<void> {
  for (let at = 0; at < identities.length; at += PURGED) {
    const some = identities.slice(at, at + PURGED)
    await Promise.all(some.map((identity) => purgeIdentity(store, identity, what)))
  }
}

async function purgeIdentity(
  store: SessionStore,
  identity: string,
  { retained = false }: Purge,
): Promise<void> {
  const clients = new Set([identity, ...store.clientsOf(identity)])
  const emptied = retained ? store.retained.topicsOf(identity) : []
  await Promise.all([
    ...[...clients].flatMap((id) => [store.discard(id), store.delWill({ id })]),
    ...emptied.map((topic) =>
      store.storeRetained({ cmd: 'publish', topic, payload: '', qos: 0, retain: true }),
    ),
  ])
}

/** Judges every stored session, or those of one fleet, by what the replica says now. */
export async function review(deps: ReviewDeps, fleet?: string): Promise<void> {
  const sessions = deps.store.sessions.all()
  for (let at = 0; at < sessions.length; at += SLICE) {
    const slice = sessions.slice(at, at + SLICE)
    await Promise.all(slice.map((session) => reviewOne(deps, session, fleet)))
    await new Promise(setImmediate)
  }
}

async function reviewOne(deps: ReviewDeps, session: Session, fleet: string | undefined): Promise<void> {
  try {
    const record = deps.replica.record(session.fingerprint)
    // Of a certificate that is not known nothing can be said here; whoever comes with another one finds nothing of it.
    if (record === null || (fleet !== undefined && record.fleet.id !== fleet)) return
    if (isTakenAway(record, deps.now())) return await purge(deps.store, [session.identity])
    await narrow(deps, session, record)
  } catch (error) {
    deps.log.error({ err: error, client: session.client }, 'cannot review a session')
  }
}

/** Held or ended by somebody's decision; one that has expired or was replaced may come back with the next certificate. */
function isTakenAway(record: AdmissionRecord, now: number): boolean {
  const code = stillLive(record, now)
  return code === 'held' || code === 'revoked' || code === 'retired'
}

async function narrow(
  { store, clients }: ReviewDeps,
  { client, identity }: Session,
  record: AdmissionRecord,
): Promise<void> {
  const policy = compilePolicy(record.fleet.policy, { id: identity, fleet: record.fleet.id })
  const { subscriptions, queues } = store.sessions
  const filters = subscriptions.of(client).map(({ topic }) => topic)
  const denied = filters.filter((filter) => !policy.maySubscribe(filter))
  const entries = queues.entries(client).filter(({ message }) => !policy.mayReceive(message.topic))
  for (const filter of denied) clients[client]?.req.filters.delete(filter)
  if (denied.length > 0) {
    clients[client]?.unsubscribe?.({ unsubscriptions: denied }, () => {})
    await store.sessions.unsubscribe(client, denied)
  }
  await store.sessions.drop(client, entries)
}
