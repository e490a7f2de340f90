import type { TLSSocket } from 'node:tls'
import { MqttClient } from 'mqtt'
import { MusterError } from '#shared/errors'
import { type DeviceTime, machineTime } from './device-time.ts'
import { openServerSocket, type ServerSocket } from './server-socket.ts'

export interface LinkOptions {
  /** `mqtts://host:port`. */
  readonly url: string
  /** PEM of the roots that are believed. */
  readonly ca: string
  /** Judges the dates of the broker's chain; without it, the clock of this machine does. */
  readonly time?: Pick<DeviceTime, 'judge'>
  readonly clientId: string
  readonly certificate: string
  readonly key: string
  /** TLS session of an earlier link with the same pair, to be resumed when the broker agrees. */
  readonly session?: Buffer | undefined
  /** False keeps subscriptions and queued messages at the broker between links; default true. */
  readonly clean?: boolean
  readonly onMessage?: (topic: string, payload: Buffer) => void
  readonly now: () => number
}

/** One connection to a broker, from CONNACK 0 to the close of its socket; it does not return by itself. */
export interface Link {
  /** True when the TLS session was resumed. */
  readonly resumed: boolean
  /** When the socket closed, whoever closed it. */
  readonly closed: Promise<number>
  /** Sends at QoS 1; resolves at PUBACK. @throws MusterError unreachable when the link closes first */
  publish(topic: string, payload: string): Promise<void>
  /** At QoS 1; resolves at SUBACK. @throws MusterError forbidden, unreachable */
  subscribe(filter: string): Promise<void>
  /** The newest TLS session that can be resumed. */
  session(): Buffer | undefined
  /** Sends DISCONNECT and resolves when the socket has closed. */
  end(): Promise<void>
}

export type OpenLink = (options: LinkOptions) => Promise<Link>

/** From the first SYN to the end of the handshake, and from there to CONNACK, ms. */
const CONNECT_DEADLINE_MS = 15_000
/** A broker that does not close after DISCONNECT is left, ms. */
const END_DEADLINE_MS = 2_000
const KEEPALIVE_S = 60
/** Return code of a broker that is to be asked again later (MQTT 3.1.1 section 3.2.2.3): it says nothing of the pair. */
const SERVER_UNAVAILABLE = 3

/**
 * Connects with mutual TLS and MQTT 3.1.1.
 * @throws MusterError forbidden when a CONNACK says no (evidence `returnCode`), unreachable otherwise
 */
export async function openLink(options: LinkOptions): Promise<Link> {
  const { socket, session } = await openSocket(options)
  socket.setNoDelay(true)
  const closed = new Promise<number>((resolve) => socket.once('close', () => resolve(options.now())))
  const client = await openSession(socket, options)
  const waiting = new Set<(reason: MusterError) => void>()
  socket.once('close', () => {
    for (const fail of waiting) fail(gone(options))
  })
  /** Runs one exchange with the broker; it fails when the socket closes first. */
  const exchange = (send: (done: (error?: Error | null) => void) => void) =>
    new Promise<void>((resolve, reject) => {
      if (socket.destroyed) return reject(gone(options))
      waiting.add(reject)
      send((error) => {
        waiting.delete(reject)
        if (error) reject(error instanceof MusterError ? error : gone(options, error))
        else resolve()
      })
    })
  return {
    resumed: socket.isSessionReused(),
    closed,
    session,
    publish: (topic, payload) =>
      exchange((done) => client.publish(topic, payload, { qos: 1 }, (error) => done(error))),
    subscribe: (filter) =>
      exchange((done) =>
        // an error with a packet is a SUBACK that says no [MQTT-3.9.3-2]
        client.subscribe(filter, { qos: 1 }, (error) =>
          done(error && 'packet' in error ? denied(filter) : error),
        ),
      ),
    end: () => endLink(client, { socket, closed }),
  }
}

/** To a broker that is proven to be one, now. */
async function openSocket(options: LinkOptions): Promise<ServerSocket> {
  const { hostname, port } = new URL(options.url)
  const host = hostname.replace(/^\[|\]$/g, '') // an IPv6 address is in brackets in a URL only
  const { ca, certificate, key, session } = options
  const opened = await openServerSocket({
    ...{ host, port: Number(port), ca, certificate, key, session },
    deadlineMs: CONNECT_DEADLINE_MS,
  })
  try {
    const time = options.time ?? machineTime(options.now)
    time.judge(host, opened.validity)
    return opened
  } catch (error) {
    opened.socket.destroy()
    throw error
  }
}

/** CONNECT goes out with the last flight of the handshake; a refused client hears it in a CONNACK. */
function openSession(socket: TLSSocket, options: LinkOptions): Promise<MqttClient> {
  const client = new MqttClient(() => socket, {
    protocolId: 'MQTT',
    protocolVersion: 4,
    clientId: options.clientId,
    clean: options.clean ?? true,
    keepalive: KEEPALIVE_S,
    reconnectPeriod: 0,
    connectTimeout: CONNECT_DEADLINE_MS,
    resubscribe: false,
  })
  return new Promise((resolve, reject) => {
    let last: Error | undefined
    client.once('connect', () => resolve(client))
    client.on('error', (error) => {
      last = error
      if (isReason(error) && error.code !== SERVER_UNAVAILABLE) reject(refused(options, error.code))
      else socket.destroy()
    })
    client.once('close', () => reject(gone(options, last)))
    client.on('message', (topic, payload) => options.onMessage?.(topic, payload))
  })
}

async function endLink(
  client: MqttClient,
  link: { socket: TLSSocket; closed: Promise<number> },
): Promise<void> {
  const alarm = setTimeout(() => link.socket.destroy(), END_DEADLINE_MS)
  client.end()
  await link.closed
  clearTimeout(alarm)
}

/** True for an error that carries a return code of CONNACK; those of sockets carry texts. */
function isReason(error: Error): error is Error & { code: number } {
  return 'code' in error && typeof error.code === 'number' && error.code > 0
}

function refused({ clientId, url }: LinkOptions, returnCode: number): MusterError {
  return new MusterError('forbidden', `Cannot connect "${clientId}" to ${url}: CONNACK ${returnCode}`, {
    evidence: { returnCode },
  })
}

function gone({ clientId, url }: LinkOptions, cause?: Error): MusterError {
  const why = cause?.message ?? 'the connection closed'
  return new MusterError('unreachable', `Cannot reach ${url} as "${clientId}": ${why}`, { cause })
}

function denied(filter: string): MusterError {
  return new MusterError('forbidden', `Cannot subscribe to "${filter}": the broker denied it`)
}
