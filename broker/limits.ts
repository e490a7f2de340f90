import { CAP_DEFAULTS, CAP_RANGES, SERVICE_TIMES } from '#shared/policy/caps'
import type { PacingLimits } from './door/pacing.ts'

/**
 * What one client, or all of them together, may ask of the broker. Sizes in octets, times in ms. Those that are caps
 * (`CAP_RANGES`) count for clients whose policy does not say them.
 */
export interface Limits extends PacingLimits {
  /** Open sockets of the listener, identified or not; more are dropped at accept. */
  readonly connections: number
  /** Of them from one address; IPv6 addresses count by their /64. */
  readonly connectionsPerAddress: number
  /** Of them whose client has not been let in yet: waiting, in the handshake, or before CONNECT. */
  readonly halfOpenPerAddress: number
  /** Connections that may be made with one certificate in a minute; 0 for any. */
  readonly connectsPerMinute: number
  /** Connections from one address that are refused in a minute; beyond that its next ones wait. 0 for any. */
  readonly refusedPerMinute: number
  /** From accept to the end of the TLS handshake. */
  readonly handshakeMs: number
  /** From the end of the handshake to the last octet of CONNECT. */
  readonly connectMs: number
  /** How often a client over WebSocket is asked for a sign of life; without one it is cut off at the next time. */
  readonly webSocketPingMs: number
  /** Remaining length of CONNECT: client id, will, user name and password together. */
  readonly connectBytes: number
  /** Remaining length of every later packet. */
  readonly packetBytes: number
  /** Octets that wait for a slow reader before its socket is destroyed. */
  readonly writeBufferBytes: number
  /** Octets that a replay (retained messages, offline queue) may have waiting before it pauses. */
  readonly replayBufferBytes: number
  /** Longest wait for the replica to learn of a certificate whose chain verifies. */
  readonly recordWaitMs: number
  /**
   * Longest keepalive. A client that asks for more, or for none (0), is held to this one: it is disconnected
   * after 1.5 times this without a packet [MQTT-3.1.2-24].
   */
  readonly keepaliveMs: number
  /** Subscriptions a client. */
  readonly subscriptions: number
  /** Levels of a filter. */
  readonly filterLevels: number
  /** QoS 2 messages of a client that wait for PUBREL. */
  readonly inflightInbound: number
  /** QoS 1 and 2 messages that are sent to a client and wait for its answer; more stay in its queue. */
  readonly inflightOutbound: number
  /** Messages that wait for one client. A message that finds its queue full is not queued for that client. */
  readonly queueMessages: number
  /** Topics and payloads that wait for one client. */
  readonly queueBytes: number
  /** Messages that wait for all clients together. */
  readonly queueTotalMessages: number
  readonly queueTotalBytes: number
  /** Payloads of waiting messages that are kept in memory; others are read from disk when they are sent. */
  readonly queueResidentBytes: number
  /** Retained messages of one identity. */
  readonly retainedMessages: number
  readonly retainedBytes: number
  /** Retained messages of all together; they are in memory. */
  readonly retainedTotalBytes: number
  /** Messages, and filters to subscribe to or to give up, that an identity may send: so many at once, so many a second; 0 for any. */
  readonly publishBurst: number
  readonly publishPerSecond: number
  /** For how long the client of a session may stay away before its session ends, s; 0 for ever. */
  readonly sessionExpirySeconds: number
  /** Sessions that outlive their connection, of one identity: a service may have several clients. */
  readonly sessions: number
  /** How many times the queue, in flight outbound, retained and rate of a device a service may have; what a policy says is as it is. */
  readonly serviceTimes: number
  /** A session is judged again at least this often, so that no change can pass it by for longer. */
  readonly rejudgeMs: number
}

export const LIMITS = Object.freeze({
  connections: 20_000,
  connectionsPerAddress: 10_000,
  halfOpenPerAddress: 1_000,
  connectsPerMinute: 120,
  refusedPerMinute: 600,
  handshakesPerSecond: 2_000,
  handshakesPerSecondLeast: 50,
  handshakeBurst: 50,
  loopLagMs: 50,
  waitingConnections: 4_096,
  waitingMs: 8_000,
  handshakeMs: 6_000,
  connectMs: 5_000,
  webSocketPingMs: 30_000,
  connectBytes: 4_096,
  packetBytes: 262_144,
  writeBufferBytes: 1_048_576,
  replayBufferBytes: 65_536,
  recordWaitMs: 2_000,
  keepaliveMs: 1_200_000,
  ...CAP_DEFAULTS,
  queueTotalMessages: 1_000_000,
  queueTotalBytes: 1_073_741_824,
  queueResidentBytes: 67_108_864,
  retainedTotalBytes: 268_435_456,
  sessions: 100,
  serviceTimes: SERVICE_TIMES,
  rejudgeMs: 60_000,
}) satisfies Limits

/** Least and most that `--limit` takes, for those limits that an operator may set. */
const RANGES = {
  connections: [1, 1_000_000],
  connectionsPerAddress: [1, 1_000_000],
  halfOpenPerAddress: [1, 1_000_000],
  connectsPerMinute: [0, 1_000_000],
  refusedPerMinute: [0, 1_000_000],
  handshakesPerSecond: [0, 100_000],
  handshakesPerSecondLeast: [1, 100_000],
  handshakeBurst: [1, 10_000],
  loopLagMs: [1, 10_000],
  waitingConnections: [0, 1_000_000],
  waitingMs: [100, 60_000],
  webSocketPingMs: [1_000, 3_600_000],
  packetBytes: [64, 268_435_455],
  writeBufferBytes: [1_024, 1_073_741_824],
  keepaliveMs: [1_000, 65_535_000],
  ...CAP_RANGES,
  queueTotalMessages: [0, 100_000_000],
  queueTotalBytes: [0, 1_099_511_627_776],
  queueResidentBytes: [0, 17_179_869_184],
  retainedTotalBytes: [0, 17_179_869_184],
  sessions: [0, 100_000],
  serviceTimes: [1, 1_000],
} as const satisfies Partial<Record<keyof Limits, readonly [number, number]>>

/** The limits with what `--limit <name>=<n>` changes of them; faults are added to `faults`. */
export function readLimits(settings: readonly string[], faults: string[]): Limits {
  const changed: Partial<Record<keyof Limits, number>> = {}
  for (const setting of settings) {
    const [, name = '', value = ''] = /^([A-Za-z]+)(?:=(.*))?$/.exec(setting) ?? []
    const range = Object.hasOwn(RANGES, name) ? RANGES[name as keyof typeof RANGES] : null // by the line before
    const number = /^\d{1,13}$/.test(value) ? Number(value) : -1
    if (range === null) {
      faults.push(
        `--limit must be <name>=<n> with one of ${Object.keys(RANGES).join(', ')}, not "${setting}"`,
      )
    } else if (number < range[0] || number > range[1]) {
      faults.push(`--limit ${name} must be a number from ${range[0]} to ${range[1]}, not "${value}"`)
    } else changed[name as keyof Limits] = number // as above
  }
  return Object.freeze({ ...LIMITS, ...changed })
}
