import type { Duplex } from 'node:stream'
import { endedBy } from '../ending.ts'
import type { Connection } from '../sessions.ts'
import type { Done, Routed } from './route.ts'

/** A will as Aedes keeps it. The last two are ours: who stored it, for the day when its client is long gone. */
export interface Will {
  readonly topic: string
  readonly payload: Buffer
  readonly qos: number
  readonly retain: boolean
  readonly clientId?: string
  /** The broker that took it. */
  readonly brokerId?: string
  fingerprint?: string
  /** Id of the connection that it belongs to. */
  connection?: string
}

/** What is known about one MQTT conversation beside what Aedes knows. */
export interface Link {
  readonly connection: Connection
  /** The client id as CONNECT had it; Aedes replaces an empty one. */
  clientId: string
  will: Will | null
  /** Filters that have been granted. */
  readonly filters: Set<string>
  /** CONNACK 0 has been sent. */
  isAccepted: boolean
  /** It has been said that the client asks for more than its rate. */
  isThrottled: boolean
  /** Refusals so far, reported or not. */
  refusals: number
}

/** The parts of Aedes' Client that we use. */
export interface MqttClient {
  readonly id: string
  readonly clean: boolean
  /** True from the first step of closing, which may be long before the socket has closed. */
  readonly closed: boolean
  readonly conn: Duplex
  /** What was given to `handle`. */
  readonly req: Link
  close(done?: () => void): void
  /** CONNECT has been answered, and all that it asks for is done. */
  readonly connected: boolean
  /** Runs from the last packet; null while there is none. */
  readonly _keepaliveTimer: NodeJS.Timeout | null
  /** Packets that Aedes has not done with; it reads on with each of them. */
  readonly _parsingBatch: number
  /** Packet identifiers of QoS 2 messages that came on this connection and wait for PUBREL. */
  readonly _inboundInflight: Set<number>
  /** By filter; what each was granted. */
  readonly subscriptions?: Readonly<Record<string, { readonly qos: number }>>
  /** Packet identifier of the next message that is sent to it and is in no queue. */
  _nextId: number
  /** How Aedes hands it a message. */
  deliver0(packet: Routed, done: Done): void
  deliverQoS(packet: Routed, done: Done): void
}

/** Whose client id it is: a service may have several, `<id>:<name>`. */
export function identityOf(clientId: string): string {
  const end = clientId.indexOf(':')
  return end === -1 ? clientId : clientId.slice(0, end)
}

/** True when the client cannot take part any more: closed, its socket gone, or decided against. */
export function isGone(client: MqttClient): boolean {
  return client.closed || client.conn.destroyed || client.req.connection.refused !== null
}

/** What it asked for, or answered, could not be stored: it says so again when it is back. */
export function cutOff(client: MqttClient): void {
  endedBy(client.req.connection, 'store')
  client.conn.destroy()
}
