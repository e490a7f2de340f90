/** What one client, or all of them together, may ask of the broker. Sizes in octets, times in ms. */
export interface Limits {
  /** Open sockets of the listener, identified or not; more are dropped at accept. */
  readonly connections: number
  /** From accept to the end of the TLS handshake. */
  readonly handshakeMs: number
  /** From the end of the handshake to the last octet of CONNECT. */
  readonly connectMs: number
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
  /** A session is judged again at least this often, so that no change can pass it by for longer. */
  readonly rejudgeMs: number
}

export const LIMITS = Object.freeze({
  connections: 20_000,
  handshakeMs: 6_000,
  connectMs: 5_000,
  connectBytes: 4_096,
  packetBytes: 262_144,
  writeBufferBytes: 1_048_576,
  replayBufferBytes: 65_536,
  recordWaitMs: 2_000,
  keepaliveMs: 1_200_000,
  subscriptions: 100,
  filterLevels: 10,
  inflightInbound: 20,
  rejudgeMs: 60_000,
}) satisfies Limits
