import type { MqttClient } from './mqtt-client.ts'

/** The parts of Aedes' Client that its own closing takes back. */
interface Closing extends Omit<MqttClient, 'closed' | 'connected' | '_keepaliveTimer'> {
  closed: boolean
  connected: boolean
  will: object | null
  _paused: boolean
  _keepaliveTimer: NodeJS.Timeout | null
  readonly _drainTimer: NodeJS.Timeout | null
}

export interface ShortCloseDeps {
  readonly broker: { unregisterClient(client: MqttClient): void }
  readonly store: { cleanIncoming(client: MqttClient): Promise<void> }
}

/**
 * The short way of a client that has gone and leaves nothing: a clean session without subscriptions and without a will,
 * that nobody waits for. What Aedes' `close` does for it, without the error for waiting writers, the stack trace of
 * which is dearer than all the rest, and without ending subscriptions that are not there. Any other client takes the
 * long way, which finds nothing to do after this one.
 */
export function closeShort({ broker, store }: ShortCloseDeps, registered: MqttClient): void {
  const client = registered as unknown as Closing // its fields that Aedes' closing sets
  const { conn } = client
  const isOpen = client.connected && !client.closed && client._drainTimer === null
  if (!isOpen || !client.clean || client.will !== null || conn.listenerCount('drain') > 0) return
  for (const _ in client.subscriptions) return
  client.closed = true
  client.connected = false
  client._paused = true // nothing of what came last is read
  if (client._keepaliveTimer !== null) clearTimeout(client._keepaliveTimer)
  client._keepaliveTimer = null
  broker.unregisterClient(registered)
  void store.cleanIncoming(registered).catch(() => {}) // as Aedes: it is tried again when the session begins anew
  conn.destroy()
}
