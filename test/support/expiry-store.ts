/** A session store without a broker: sessions of clients that exist only by name. */
import { PassThrough } from 'node:stream'
import { openLog } from '#shared/log'
import { LIMITS } from '../../broker/limits.ts'
import type { MqttClient } from '../../broker/mqtt/mqtt-client.ts'
import type { SessionStore } from '../../broker/store/session-store.ts'
import { openSessionStore } from '../../broker/store/store-open.ts'

/** How long a client may stay away here, s. */
export const EXPIRY_S = 36_000

export function openStore(path: string, elapsed: () => number): SessionStore {
  const log = openLog('test', 'silent', new PassThrough().resume())
  const limits = { ...LIMITS, sessionExpirySeconds: EXPIRY_S }
  return openSessionStore(path, { durability: 'kill', limits, log, elapsed })
}

/** The client begins its session, or takes it up again. */
export function takeUp(store: SessionStore, id: string): void {
  const connection = { device: id, kind: 'device', fleet: 'lab', fingerprint: `${id}-1` }
  store.sessions.open({ id, req: { connection } } as unknown as MqttClient) // all that is looked at
}

/** A session with a subscription and so many messages in its queue. */
export async function fill(store: SessionStore, id: string, messages: number): Promise<void> {
  takeUp(store, id)
  await store.addSubscriptions({ id }, [{ topic: `to/${id}`, qos: 1 }])
  const packets = Array.from({ length: messages }, (_, n) => ({ topic: `to/${id}`, payload: `${n}`, qos: 1 }))
  await Promise.all(packets.map((packet) => store.outgoingEnqueue({ clientId: id }, packet)))
  store.sessions.left(id)
}

/** Everything that is kept under the id. */
export function kept(store: SessionStore, id: string): { isThere: boolean; filters: number; queue: number } {
  const { sessions } = store
  const filters = sessions.subscriptions.of(id).length
  return { isThere: sessions.get(id) !== undefined, filters, queue: sessions.queues.entries(id).length }
}
