import { capReached } from '#shared/policy/caps'
import type { AdmissionReader } from '../door/gate.ts'
import type { MqttClient } from '../mqtt/mqtt-client.ts'
import type { Parcel } from '../mqtt/route.ts'
import type { Refusal } from '../refusals.ts'
import type { AdmissionRecord } from '../replica/replica.ts'
import type { SessionStore } from './session-store.ts'

interface Deps {
  readonly store: SessionStore
  readonly replica: AdmissionReader
  /** Forgets what of a client that connects was ordered to be forgotten, and is still there. */
  claim?(clientId: string, identity: string): void
}

/**
 * Judges whether the client may have a session that outlives its connection, and opens it. What a certificate that has
 * been revoked since has left under this client id is nobody's any more: it is discarded first.
 */
export function judgeSession(deps: Deps, client: MqttClient): Refusal | null {
  const { store, replica } = deps
  const { sessions, limits } = store
  const { device, fingerprint } = client.req.connection
  deps.claim?.(client.id, device)
  const stored = sessions.get(client.id)
  if (
    stored !== undefined &&
    stored.fingerprint !== fingerprint &&
    isOver(replica.record(stored.fingerprint))
  ) {
    sessions.discard(client.id).catch(() => {}) // logged; the session is gone from memory, and what follows waits behind it
  }
  if (client.clean) return null
  const others = sessions.clientsOf(device).filter((id) => id !== client.id)
  if (others.length >= limits.sessions) {
    return { code: 'quota', evidence: { limit: 'sessions', allowed: limits.sessions } }
  }
  sessions.open(client)
  return null
}

/** May the message be retained for its author? */
export function judgeRetained(
  { store }: Pick<Deps, 'store'>,
  client: MqttClient,
  parcel: Parcel,
): Refusal | null {
  const { device, policy } = client.req.connection
  const { topic, payload = '', qos = 0 } = parcel
  const owner = { identity: device, allowance: policy.allowance }
  const evidence = store.retained.fullness({ cmd: 'publish', topic, payload, qos, retain: true }, owner)
  return evidence === null ? null : { code: 'quota', evidence }
}

/**
 * Takes a place for a QoS 2 message among those that wait for PUBREL, or refuses it. Aedes looks at one number for all
 * clients, and gives the places back: with PUBREL, and when the message could not be stored. One that is there already
 * is not new; a second one while the first is taken in breaks [MQTT-2.3.1-2].
 */
export function judgeHalfReceived(
  { store }: Pick<Deps, 'store'>,
  client: MqttClient,
  { messageId = 0 }: Parcel,
): Refusal | null {
  const { _inboundInflight: places, req } = client
  if (store.sessions.incoming.has(client.id, messageId)) return null
  if (places.has(messageId)) return { code: 'packet', evidence: { violation: 'packet identifier in use' } }
  const { allowance } = req.connection.policy
  if (places.size >= allowance.caps.inflightInbound) {
    return { code: 'quota', evidence: capReached(allowance, 'inflightInbound') }
  }
  places.add(messageId)
  return null
}

/** The certificate is over for good: not held, not replaced by a newer one. */
function isOver(record: AdmissionRecord | null): boolean {
  return record === null || record.certificate.state === 'revoked' || record.device.state === 'retired'
}
