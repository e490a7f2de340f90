/** Takes from clients and sessions what the policy does not grant any more. Nothing of it has been delivered since the change. */
import { compilePolicies } from '#shared/policy/compile'
import type { CompiledPolicy } from './judge/topic-policy.ts'
import type { MqttClient } from './mqtt/mqtt-client.ts'
import type { AdmissionRecord } from './replica/replica.ts'
import type { Entry } from './store/queue-entry.ts'
import type { Session } from './store/session-rows.ts'
import type { SessionStore } from './store/session-store.ts'
import type { Subscription } from './store/subscriptions.ts'

/** Parts of Aedes' Client that are private. */
export interface Subscribed extends MqttClient {
  readonly subscriptions?: Readonly<Record<string, { readonly qos: number }>>
  unsubscribe?(filters: object, done: () => void): void
}

export interface NarrowingDeps {
  readonly store: SessionStore
  readonly clients: Readonly<Record<string, Subscribed>>
}

/** Subscriptions of an open connection: those that are denied end, and those that have a higher QoS than is granted now. */
export function narrowLive(client: Subscribed): void {
  const { connection, filters } = client.req
  const subscribed = client.subscriptions ?? {}
  const denied = [...filters].filter(
    (filter) => !isGranted(connection.policy, { topic: filter, qos: subscribed[filter]?.qos ?? 0 }),
  )
  end(client, denied)
}

function end(client: Subscribed | undefined, filters: readonly string[]): void {
  if (client === undefined || filters.length === 0) return
  for (const filter of filters) client.req.filters.delete(filter)
  client.unsubscribe?.({ unsubscriptions: filters }, () => {})
}

/**
 * The same of a session that outlives its connection, and its queue. While its client is away nobody knows from where
 * it will come: a rule for certain networks is taken to grant, and its connection is judged when it is there.
 */
export async function narrowStored(
  { store, clients }: NarrowingDeps,
  { client, identity }: Session,
  { device, fleet }: AdmissionRecord,
): Promise<void> {
  const there = clients[client]
  const policies = { policy: fleet.policy, own: device.policy }
  const where = there === undefined ? { isSourceGiven: true } : { address: there.req.connection.address }
  const policy = compilePolicies(policies, { ...device, id: identity, ...where })
  const { subscriptions, queues } = store.sessions
  const denied = subscriptions.of(client).filter((subscription) => !isGranted(policy, subscription))
  // What was sent to a client that is there waits for its answer: it has its place among what is under way.
  const isUnderWay = ({ isSent }: Entry) => there !== undefined && isSent
  const entries = queues
    .entries(client)
    .filter((entry) => !isUnderWay(entry) && !policy.mayReceive(entry.message.topic))
  const filters = denied.map(({ topic }) => topic)
  end(there, filters)
  if (filters.length > 0) await store.sessions.unsubscribe(client, filters)
  await store.sessions.drop(client, entries)
}

function isGranted(policy: CompiledPolicy, { topic, qos }: Pick<Subscription, 'topic' | 'qos'>): boolean {
  return policy.subscribeQos(topic) >= qos
}
