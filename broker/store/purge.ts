import type { Log } from '#shared/log'
import type { AdmissionReader } from '../door/gate.ts'
import { endedBy } from '../ending.ts'
import { stillLive } from '../judge/admission.ts'
import { narrowLive, narrowStored, type Subscribed } from '../narrowing.ts'
import type { AdmissionRecord } from '../replica/replica.ts'
import type { RetainedOf } from './retained.ts'
import type { Session } from './session-rows.ts'
import type { SessionStore } from './session-store.ts'

export interface ReviewDeps {
  now(): number
  readonly store: SessionStore
  readonly replica: AdmissionReader
  readonly clients: Readonly<Record<string, Subscribed>>
  readonly log: Log
  /** Forgets identities, and goes on trying; by default what cannot be forgotten now stays. */
  forget?(identities: readonly string[]): Promise<void>
}

/** Sessions that are looked at in one turn of the event loop. */
export const SLICE = 200

/** Retained messages that are forgotten in one commit. */
const FORGOTTEN = 200

/** Identities that are purged in one commit: each may have a queue of a thousand rows. */
export const PURGED = 20

/** Forgets what is stored of these identities, some in each turn of the event loop. */
export async function purge(store: SessionStore, identities: readonly string[]): Promise<void> {
  for (let at = 0; at < identities.length; at += PURGED) {
    const some = identities.slice(at, at + PURGED)
    await Promise.all(some.map((identity) => purgeIdentity(store, identity)))
  }
}

async function purgeIdentity(store: SessionStore, identity: string): Promise<void> {
  await purgeClients(store, [identity, ...store.clientsOf(identity)])
}

/** Forgets the sessions and wills of clients, in one commit. */
export async function purgeClients(store: SessionStore, clients: readonly string[]): Promise<void> {
  await allOf([...new Set(clients)].flatMap((id) => [store.discard(id), store.delWill({ id })]))
}

/** Forgets what these identities have retained, some in each turn of the event loop. */
export async function forgetRetained(store: SessionStore, of: RetainedOf): Promise<void> {
  if (of.size === 0) return
  const { retained } = store
  const topics = retained.topicsOf(of)
  for (let at = 0; at < topics.length; at += FORGOTTEN) {
    // Something else may have come to a topic in the turns before.
    const some = topics.slice(at, at + FORGOTTEN).filter((topic) => retained.isOf(topic, of))
    const empty = { cmd: 'publish', payload: '', qos: 0, retain: true } as const // MQTT 3.1.1 section 3.3.1.3
    await allOf(some.map((topic) => store.storeRetained({ ...empty, topic })))
  }
}

/** Waits for all of them, also when one has failed. @throws what the first that failed has thrown */
async function allOf(work: readonly Promise<unknown>[]): Promise<void> {
  const failed = (await Promise.allSettled(work)).find(({ status }) => status === 'rejected')
  if (failed?.status === 'rejected') throw failed.reason
}

/** Judges every session, or those of one fleet, by what the replica says now; those of clients that are connected first. */
export async function review(deps: ReviewDeps, fleet?: string): Promise<void> {
  await inSlices(Object.values(deps.clients), async (client) => reviewLive(deps, client, fleet))
  await inSlices(deps.store.sessions.all(), (session) => reviewOne(deps, session, fleet))
}

/** Judges the sessions of one device. */
export async function reviewDevice(deps: ReviewDeps, device: string): Promise<void> {
  for (const id of [device, ...deps.store.clientsOf(device)]) {
    const client = deps.clients[id]
    if (client?.req.connection.device === device) reviewLive(deps, client, undefined)
  }
  const sessions = deps.store.clientsOf(device).map((id) => deps.store.sessions.get(id))
  await Promise.all(sessions.map((session) => session && reviewOne(deps, session, undefined)))
}

async function inSlices<T>(all: readonly T[], work: (one: T) => Promise<void>): Promise<void> {
  for (let at = 0; at < all.length; at += SLICE) {
    await Promise.all(all.slice(at, at + SLICE).map(work))
    await new Promise(setImmediate)
  }
}

function reviewLive(deps: ReviewDeps, client: Subscribed, fleet: string | undefined): void {
  const { connection } = client.req
  if (connection.refused !== null || (fleet !== undefined && connection.fleet !== fleet)) return
  try {
    narrowLive(client)
  } catch (error) {
    deps.log.error({ err: error, client: client.id }, 'cannot review a client')
    endedBy(connection, 'internal')
    client.conn.destroy()
  }
}

async function reviewOne(deps: ReviewDeps, session: Session, fleet: string | undefined): Promise<void> {
  try {
    const record = deps.replica.record(session.fingerprint)
    // Of a certificate that is not known nothing can be said here; whoever comes with another one finds nothing of it.
    if (record === null || (fleet !== undefined && record.fleet.id !== fleet)) return
    if (isTakenAway(record, deps.now())) return await forget(deps, session.identity)
    await narrowStored(deps, session, record)
  } catch (error) {
    deps.log.error({ err: error, client: session.client }, 'cannot review a session')
  }
}

async function forget({ store, forget }: ReviewDeps, identity: string): Promise<void> {
  if (forget === undefined) await purge(store, [identity])
  else await forget([identity])
}

/** Held or ended by somebody's decision; one that has expired or was replaced may come back with the next certificate. */
function isTakenAway(record: AdmissionRecord, now: number): boolean {
  const code = stillLive(record, now)
  return code === 'held' || code === 'revoked' || code === 'retired'
}
