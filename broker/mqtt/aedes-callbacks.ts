/**
 * The callbacks that Aedes asks, each one decision of `authorization.ts`, and the screen before them. Whatever throws
 * in them denies.
 */
import type { EventEmitter } from 'node:events'
import { capReached } from '#shared/policy/caps'
import { nameOfRule, type Publication } from '#shared/policy/compile'
import type { GateDeps } from '../door/gate.ts'
import { holdReading } from '../door/guarded-socket.ts'
import { type ParsedPacket, packetFault } from '../door/packet-faults.ts'
import { endedBy } from '../ending.ts'
import {
  type AuthorizationDeps,
  judgeConnect,
  judgePublish,
  judgeSubscribe,
  mayFire,
  mayForward,
} from '../judge/authorization.ts'
import { asksForFactor, proveFactor } from '../judge/factor-at-connect.ts'
import type { PublishRate } from '../judge/publish-rate.ts'
import { openSecondFactors } from '../judge/second-factor.ts'
import { type Refusal, refusedReport } from '../refusals.ts'
import { judgeHalfReceived, judgeRetained, judgeSession } from '../store/session-quota.ts'
import { NO_SUBSCRIPTION, type SessionStore } from '../store/session-store.ts'
import type { Subscription } from '../store/subscriptions.ts'
import type { Link, MqttClient, Will } from './mqtt-client.ts'
import type { RepeatedFilters } from './repeated-filters.ts'
import type { Done, Parcel } from './route.ts'

/** "not authorized" (MQTT 3.1.1 section 3.2.2.3). */
const NOT_AUTHORIZED = 5
type Answer<T> = (error: Error | null, value: T) => void

export interface MqttDeps
  extends AuthorizationDeps,
    Pick<GateDeps, 'report' | 'log' | 'limits' | 'sessions'> {
  /** How often this broker says that it is alive, ms; wills of dead ones are swept every fourth time. */
  readonly heartbeatMs?: number
  /** From one look for sessions that are over to the next, ms. */
  readonly expireEveryMs?: number
  readonly store: SessionStore
  /** Forgets identities, and goes on trying; by default what cannot be forgotten now stays. */
  forget?(identities: readonly string[]): Promise<void>
  /** Forgets what of a client that connects was ordered to be forgotten, and is still there. */
  claim?(clientId: string, identity: string): void
  /** `fetch`, but for tests: of the keys that tokens are judged by. */
  fetch?(url: string, init: RequestInit): Promise<Response>
}

/** What the callbacks need beside their deps. */
export interface Inner {
  /** Takes a message of QoS 1 that is acknowledged when `done` says so. */
  acknowledge(packet: Parcel, client: MqttClient, done: Done): void
  /** True while the client gets from its queue what is being handed out. */
  isQueuedFor(client: MqttClient): boolean
  mayForward(client: MqttClient, topic: string): boolean
  voidWill(will: Will): void
  readonly traffic: Traffic
}

/** Plain counts, for whoever asks: messages that clients published, and that were handed to clients. */
export interface Traffic {
  published: number
  delivered: number
}

/** Puts ourselves between the parser and Aedes: packets that break a rule, or come after the end, go no further. */
export function screen(
  parser: EventEmitter,
  of: {
    readonly deps: MqttDeps & { readonly rate: PublishRate; readonly repeated: RepeatedFilters }
    readonly link: Link
    connect(packet: ParsedPacket): boolean
  },
): void {
  const { deps, link } = of
  let connect: typeof of.connect | null = of.connect
  const { socket } = link.connection
  const listeners = parser.listeners('packet')
  parser.removeAllListeners('packet')
  const fail = (violation: string) => {
    if (socket.destroyed || link.connection.refused !== null) return
    refuse(deps, link, { code: 'packet', evidence: { violation } })
    endedBy(link.connection, 'packet')
    socket.destroy()
  }
  parser.on('packet', (packet: ParsedPacket) => {
    if (socket.destroyed || link.connection.refused !== null) return
    const fault = packetFault(packet)
    if (fault !== null) return fail(fault)
    // Aedes answers it.
    if (packet.cmd === 'connect' && packet.protocolVersion === 5)
      refuse(deps, link, {
        code: 'packet',
        evidence: { violation: 'MQTT 5, which this broker does not speak: use 3.1.1' },
      })
    if (packet.cmd === 'connect') {
      if (connect === null) return fail('a second CONNECT') // [MQTT-3.1.0-2]
      const isDone = connect(packet)
      connect = null // it holds on to what it asks
      if (isDone) return
    }
    if (packet.cmd === 'disconnect') endedBy(link.connection, 'client')
    const asked = askedFor(packet)
    if (asked !== 0) pace(deps, link, asked)
    if (packet.cmd === 'subscribe') lowerQos(deps, link, packet)
    const seen = packet.cmd === 'subscribe' ? deps.repeated.reduced(packet) : packet
    for (const listener of listeners) listener.call(parser, seen)
  })
  parser.prependListener('error', (error: Error) => fail(error.message))
}

/** A message, or how many filters: what makes work for others, or for the disk. */
function askedFor(packet: ParsedPacket): Publication | number {
  const { cmd, subscriptions = [], unsubscriptions = [] } = packet
  return cmd === 'publish' ? (packet as Parcel & ParsedPacket) : subscriptions.length + unsubscriptions.length // a PUBLISH has a topic
}

/** A client that asks for more than its rate, or than that of the rule which grants its message, is read more slowly. */
export function pace(
  deps: MqttDeps & { readonly rate: PublishRate },
  link: Link,
  asked: Publication | number,
): void {
  const { device, socket, policy } = link.connection
  const { allowance, hasRates } = policy
  const { publishBurst: burst, publishPerSecond: perSecond } = allowance.caps
  if (perSecond === 0 && !hasRates) return
  const now = deps.now()
  const isMessage = typeof asked !== 'number'
  const size = { now, burst, perSecond }
  const holdMs = deps.rate.take(device, isMessage ? size : { ...size, cost: asked })
  const rule = isMessage && hasRates ? policy.publishRule(asked) : null
  const ruleHoldMs = rule === null ? 0 : deps.rate.takeOfRule(rule, now)
  if (holdMs === 0 && ruleHoldMs === 0) return
  const ms = Math.max(holdMs, ruleHoldMs)
  deps.rate.hold(device, { now, ms })
  holdReading(socket, ms)
  if (link.isThrottled) return
  link.isThrottled = true
  const evidence =
    holdMs > 0 || rule === null
      ? capReached(allowance, 'publishPerSecond')
      : { limit: 'perSecond', allowed: rule.perSecond, rule: nameOfRule(rule.origin) }
  refuse(deps, link, { code: 'quota', evidence })
}

/** A subscription may be granted with a lower QoS than it asks for, and SUBACK says so [MQTT-3.8.4-6]: Aedes answers with what it finds here. */
function lowerQos(deps: MqttDeps, { connection }: Link, packet: ParsedPacket): void {
  for (const subscription of packet.subscriptions ?? []) {
    const granted = orDeny(deps, 'subscribe', () => connection.policy.subscribeQos(subscription.topic), -1)
    if (granted >= 0 && granted < subscription.qos) subscription.qos = granted
  }
}

export function connectHooks(deps: MqttDeps) {
  const factors = openSecondFactors(deps)
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
    /** The certificate is the identity, and a user name is not looked at; a password only where one is asked for. */
    authenticate(client: MqttClient, _user: unknown, password: Uint8Array | null, answer: Answer<boolean>) {
      const judge = () => judgeConnect(deps, client.req)
      // Last, because it begins the session: whoever is turned away has none, and who is judged twice has one that is new.
      const judgeAll = () => judge() ?? judgeSession(deps, client)
      const decide = (refusal: Refusal | null) => {
        if (refusal === null) return answer(null, true)
        refuse(deps, client.req, refusal)
        endedBy(client.req.connection, refusal.code)
        answer(Object.assign(new Error(refusal.code), { returnCode: NOT_AUTHORIZED }), false)
      }
      const isAsked = orDeny(deps, 'factor', () => asksForFactor(deps, client.req), true)
      const refusal = orDeny(deps, 'connect', isAsked ? judge : judgeAll, DENIED)
      if (!isAsked || refusal !== null) return decide(refusal)
      proveFactor({ ...deps, factors }, { link: client.req, password }).then(
        (fault) => decide(fault ?? orDeny(deps, 'connect', judgeAll, DENIED)), // it took its time: once more
        (error: unknown) => {
          failed(deps, 'factor', error)
          decide(DENIED)
        },
      )
    },
  }
}

export function topicHooks(deps: MqttDeps, inner: Inner) {
  const { store } = deps
  return {
    authorizePublish(client: MqttClient | null, packet: Parcel & Partial<Will>, done: Done) {
      // A will: it fires after its client has closed, or was stored, and no client can store anything else.
      if (client === null || client.closed || packet.fingerprint !== undefined) {
        const will = packet as Will // by the line above
        if (!orDeny(deps, 'will', () => mayFire(deps, will, client?.req.connection.address), false))
          inner.voidWill(will)
        return done(null)
      }
      inner.traffic.published++
      const refusal = judgeMessage(deps, client, packet)
      if (refusal === null) return packet.qos === 1 ? inner.acknowledge(packet, client, done) : done(null)
      refuse(deps, client.req, refusal)
      endedBy(client.req.connection, refusal.code)
      done(new Error(refusal.code))
    },
    authorizeSubscribe(client: MqttClient, subscription: Subscription, answer: Answer<Subscription | null>) {
      if (subscription === NO_SUBSCRIPTION) return answer(null, null)
      const { topic } = subscription
      const { subscriptions } = store.sessions
      const isKept = !client.clean && subscriptions.has(client.id, topic)
      const judge = () => judgeSubscribe(client.req, { topic, qos: subscription.qos, isKept })
      const refusal = orDeny(deps, 'subscribe', judge, DENIED)
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
    authorizeForward<P extends { readonly topic: string }>(client: MqttClient, packet: P): P | null {
      // From a queue nothing but by its delivery.
      if (inner.isQueuedFor(client) || !inner.mayForward(client, packet.topic)) return null
      inner.traffic.delivered++
      return packet
    },
  }
}

/** May a message on the topic reach the client? */
export function forwarding(deps: MqttDeps): Inner['mayForward'] {
  return (client, topic) => {
    try {
      return client.req.isAccepted && mayForward(client.req, topic) // nothing before CONNACK
    } catch (error) {
      failed(deps, 'forward', error)
      return false
    }
  }
}

/** Every message comes through here: no closure, no allocation. */
function judgeMessage(deps: MqttDeps, client: MqttClient, packet: Parcel): Refusal | null {
  try {
    let refusal = judgePublish(client.req, packet)
    if (refusal === null && packet.retain === true) refusal = judgeRetained(deps, client, packet)
    return refusal === null && packet.qos === 2 ? judgeHalfReceived(deps, client, packet) : refusal
  } catch (error) {
    failed(deps, 'publish', error)
    return DENIED
  }
}

/** The same of a message that takes the short way, or the long one when it is not granted. */
export function isGranted(deps: MqttDeps, { req }: MqttClient, message: Publication): boolean {
  try {
    return judgePublish(req, message) === null
  } catch (error) {
    failed(deps, 'publish', error)
    return false
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
