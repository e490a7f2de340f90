/**
 * The callbacks that Aedes asks, each one decision of `authorization.ts`, and the screen before them. Whatever throws
 * in them denies.
 */
import type { EventEmitter } from 'node:events'
import {
  type AuthorizationDeps,
  judgeConnect,
  judgePublish,
  judgeSubscribe,
  mayFire,
  mayForward,
} from './authorization.ts'
import type { GateDeps } from './gate.ts'
import type { Link, MqttClient, Will } from './mqtt-client.ts'
import { type ParsedPacket, packetFault } from './packet-faults.ts'
import { type Refusal, refusedReport } from './refusals.ts'
import type { SessionStore } from './session-store.ts'

/** "not authorized" (MQTT 3.1.1 section 3.2.2.3). */
const NOT_AUTHORIZED = 5
export type Done = (error?: Error | null) => void
type Answer<T> = (error: Error | null, value: T) => void
export interface Published {
  readonly topic: string
  readonly messageId?: number
  readonly qos: number
}
interface Subscription {
  readonly topic: string
}

export interface MqttDeps
  extends Omit<AuthorizationDeps, 'limits'>,
    Pick<GateDeps, 'report' | 'log' | 'limits' | 'sessions'> {
  /** How often this broker says that it is alive, ms; wills of dead ones are swept every fourth time. */
  readonly heartbeatMs?: number
  /** A store other than the one in memory, or one that fails. */
  readonly store?: SessionStore
}

/** Puts ourselves between the parser and Aedes: packets that break a rule, or come after the end, go no further. */
export function screen(parser: EventEmitter, deps: MqttDeps, link: Link): void {
  const { socket } = link.connection
  const listeners = parser.listeners('packet')
  parser.removeAllListeners('packet')
  const fail = (violation: string) => {
    if (socket.destroyed || link.connection.refused !== null) return
    refuse(deps, link, { code: 'packet', evidence: { violation } })
    link.ending = 'packet'
    socket.destroy()
  }
  parser.on('packet', (packet: ParsedPacket) => {
    if (socket.destroyed || link.connection.refused !== null) return
    const fault = packetFault(packet)
    if (fault !== null) return fail(fault)
    if (packet.cmd === 'disconnect') link.ending = 'client'
    for (const listener of listeners) listener.call(parser, packet)
  })
  parser.prependListener('error', (error: Error) => fail(error.message))
}

export function connectHooks(deps: MqttDeps) {
  return {
    preConnect(
      client: MqttClient,
      packet: { clientId: string; will?: Will; keepalive: number },
      answer: Answer<boolean>,
    ) {
      const link = client.req
      link.clientId = packet.clientId
      link.will = packet.will ?? null
      const longest = Math.max(1, Math.floor(deps.limits.keepaliveMs / 1000))
      if (packet.keepalive === 0 || packet.keepalive > longest) packet.keepalive = longest
      answer(null, link.connection.refused === null)
    },
    /** User name and password are not looked at: the certificate is the identity. */
    authenticate(client: MqttClient, _user: unknown, _password: unknown, answer: Answer<boolean>) {
      const refusal = orDeny(deps, 'connect', () => judgeConnect(deps, client.req), DENIED)
      if (refusal === null) return answer(null, true)
      refuse(deps, client.req, refusal)
      client.req.ending = refusal.code
      answer(Object.assign(new Error(refusal.code), { returnCode: NOT_AUTHORIZED }), false)
    },
  }
}

export function topicHooks(deps: MqttDeps, store: SessionStore, voidWill: (will: Will) => void) {
  return {
    authorizePublish(client: MqttClient | null, packet: Published & Partial<Will>, done: Done) {
      // A will: it fires after its client has closed, or was stored, and no client can store anything else.
      if (client === null || client.closed || packet.fingerprint !== undefined) {
        const will = packet as Will // by the line above
        if (!orDeny(deps, 'will', () => mayFire(deps, will), false)) voidWill(will)
        return done(null)
      }
      const refusal = judgeMessage(deps, client, packet.topic)
      if (refusal === null) return done(null)
      refuse(deps, client.req, refusal)
      client.req.ending = refusal.code
      done(new Error(refusal.code))
    },
    authorizeSubscribe(client: MqttClient, subscription: Subscription, answer: Answer<Subscription | null>) {
      const { topic } = subscription
      const refusal = orDeny(deps, 'subscribe', () => judgeSubscribe(deps, client.req, topic), DENIED)
      if (refusal === null) {
        store.grant(subscription)
        return answer(null, subscription)
      }
      refuse(deps, client.req, refusal)
      // A filter that was granted once and is denied now must not go on filling the queue.
      if (!client.clean)
        store.removeSubscriptions(client, [topic]).catch((error) => deps.log.error({ err: error }, 'store'))
      answer(null, null)
    },
    authorizeForward<P extends Published>(client: MqttClient, packet: P): P | null {
      try {
        return mayForward(client.req, packet.topic) ? packet : null
      } catch (error) {
        failed(deps, 'forward', error)
        return null
      }
    },
  }
}

/** Every message comes through here: no closure, no allocation. */
function judgeMessage(deps: MqttDeps, client: MqttClient, topic: string): Refusal | null {
  try {
    return judgePublish(client.req, topic)
  } catch (error) {
    failed(deps, 'publish', error)
    return DENIED
  }
}

/** The verdict of a hook that cannot decide. */
const DENIED: Refusal = { code: 'unrecorded', evidence: {} }

/** The verdict of `judge`, or `denial` when it throws. */
export function orDeny<T>(deps: MqttDeps, what: string, judge: () => T, denial: T): T {
  try {
    return judge()
  } catch (error) {
    failed(deps, what, error)
    return denial
  }
}

function failed(deps: MqttDeps, what: string, error: unknown): void {
  deps.log.error({ err: error, what }, 'hook failed')
}

/** Most refusals that are reported of one connection: a client may go on being denied for as long as it likes. */
const REPORTED = 20

/** Reports why a client was turned away, or one of its requests. */
export function refuse(deps: MqttDeps, link: Link, refusal: Refusal): void {
  if (link.refusals++ >= REPORTED) return
  deps.report(refusedReport(refusal, link.connection, deps.now()))
}
