/** MQTT clients for tests: mqtt.js as a device would use it, and one that sends whatever octets it is told. */
import { type ConnectionOptions, type TLSSocket, connect as tlsConnect } from 'node:tls'
import { connectAsync, type IClientOptions, type MqttClient } from 'mqtt'
import mqttPacket, { type IConnackPacket, type IConnectPacket, type Packet } from 'mqtt-packet'
import { PATIENCE_MS, type TestBroker } from './broker.ts'
import type { TestAuthority } from './pki.ts'

/** A broker as its clients see it. */
export interface Endpoint {
  readonly port: number
  readonly authority: TestAuthority
}

/** What a client presents; an empty one has no certificate. */
export interface Presented {
  readonly id?: string
  readonly keyPem?: string
  readonly chainPem?: string
}

function tlsOptions({ port, authority }: Endpoint, { keyPem, chainPem }: Presented): ConnectionOptions {
  return {
    host: '127.0.0.1',
    port,
    ca: authority.rootPem,
    servername: 'localhost',
    ...(keyPem === undefined || chainPem === undefined ? {} : { key: keyPem, cert: chainPem }),
  }
}

/** Connects with mqtt.js; rejects with its error when the broker refuses. It never reconnects by itself. */
export function connectDevice(
  broker: Endpoint,
  presented: Presented,
  options: IClientOptions = {},
): Promise<MqttClient> {
  const { servername: _, ...tls } = tlsOptions(broker, presented)
  const settings: object = {
    ...tls,
    protocol: 'mqtts',
    servername: 'localhost',
    clientId: presented.id ?? 'nobody',
    reconnectPeriod: 0,
    connectTimeout: PATIENCE_MS,
    ...options,
  }
  return connectAsync(`mqtts://127.0.0.1:${broker.port}`, settings as IClientOptions, false) // `servername` reaches tls.connect, but is not declared
}

/** The return code with which mqtt.js was refused. */
export function refusalOf(error: unknown): number | undefined {
  return (error as { code?: number }).code
}

export type RawPacket = Packet | Buffer

/** A TLS connection that speaks MQTT packet by packet. */
export class RawClient {
  readonly socket: TLSSocket
  readonly received: Packet[] = []
  /** Everything that arrived, undecoded. */
  octets = Buffer.alloc(0)
  readonly #closed: Promise<void>
  readonly #waiting = new Set<() => void>()

  constructor(socket: TLSSocket) {
    this.socket = socket
    const parser = mqttPacket.parser()
    parser.on('packet', (packet) => {
      this.received.push(packet)
      for (const look of this.#waiting) look()
    })
    parser.on('error', () => {})
    socket.on('data', (chunk: Buffer) => {
      this.octets = Buffer.concat([this.octets, chunk])
      parser.parse(chunk)
    })
    socket.on('error', () => {})
    this.#closed = new Promise((resolve) => {
      socket.once('close', () => {
        for (const look of this.#waiting) look()
        resolve()
      })
    })
  }

  /** Resolves when the socket has closed, rejects when it does not. */
  get closed(): Promise<void> {
    return new Promise((resolve, reject) => {
      const timer = setTimeout(() => reject(new Error('not closed in time')), PATIENCE_MS)
      void this.#closed.then(() => {
        clearTimeout(timer)
        resolve()
      })
    })
  }

  send(...packets: RawPacket[]): void {
    const octets = packets.map((packet) => (Buffer.isBuffer(packet) ? packet : mqttPacket.generate(packet)))
    if (!this.socket.destroyed) this.socket.write(Buffer.concat(octets))
  }

  /** The first packet of this kind that has arrived or will. Rejects when the socket closes before it. */
  next(cmd: Packet['cmd'], fits: (packet: Packet) => boolean = () => true): Promise<Packet> {
    return new Promise((resolve, reject) => {
      const look = () => {
        const at = this.received.findIndex((packet) => packet.cmd === cmd && fits(packet))
        const [found] = at === -1 ? [] : this.received.splice(at, 1)
        if (found === undefined && !this.socket.destroyed) return
        this.#waiting.delete(look)
        clearTimeout(timer)
        if (found === undefined) reject(new Error(`closed before ${cmd}`))
        else resolve(found)
      }
      const timer = setTimeout(() => reject(new Error(`no ${cmd} in time`)), PATIENCE_MS)
      this.#waiting.add(look)
      look()
    })
  }

  async connect(options: Partial<IConnectPacket> = {}): Promise<IConnackPacket> {
    this.send(connectPacket(options))
    return (await this.next('connack')) as IConnackPacket // by its cmd
  }

  /** A round trip: everything sent before it has been looked at. */
  async ping(): Promise<void> {
    this.send({ cmd: 'pingreq' })
    await this.next('pingresp')
  }
}

export function connectPacket(options: Partial<IConnectPacket> = {}): IConnectPacket {
  return {
    cmd: 'connect',
    protocolId: 'MQTT',
    protocolVersion: 4,
    clean: true,
    clientId: '',
    keepalive: 60,
    ...options,
  }
}

/** Opens TLS; resolves when the handshake is done on this side. */
export async function openRaw(
  broker: Endpoint,
  presented: Presented,
  options: ConnectionOptions = {},
): Promise<RawClient> {
  const socket = tlsConnect({ ...tlsOptions(broker, presented), ...options })
  const raw = new RawClient(socket)
  const opened = Promise.withResolvers<void>()
  const timer = setTimeout(() => opened.reject(new Error('no handshake in time')), PATIENCE_MS)
  socket.once('secureConnect', opened.resolve)
  socket.once('close', () => opened.reject(new Error('closed in the handshake')))
  try {
    await opened.promise
  } finally {
    clearTimeout(timer)
  }
  return raw
}

/** A raw client that the broker has let in under its own id. @throws Error when it is refused */
export async function enter(broker: TestBroker, presented: Presented, clean = true): Promise<RawClient> {
  const raw = await openRaw(broker, presented)
  const { returnCode } = await raw.connect({ clientId: presented.id ?? '', clean })
  if (returnCode !== 0) throw new Error(`refused ${returnCode}`)
  return raw
}

let messageIds = 0
const nextId = () => (messageIds = (messageIds % 30_000) + 1)

export function publish(topic: string, payload: string | Buffer, qos: 0 | 1 | 2 = 1, retain = false) {
  return { cmd: 'publish', topic, payload, qos, retain, dup: false, messageId: nextId() } as const
}

/** Resolves with what each filter was granted; 128 is a refusal. */
export async function subscribe(
  raw: RawClient,
  filters: string | readonly string[],
  qos: 0 | 1 | 2 = 1,
): Promise<number[]> {
  const messageId = nextId()
  const topics = typeof filters === 'string' ? [filters] : filters
  raw.send({ cmd: 'subscribe', messageId, subscriptions: topics.map((topic) => ({ topic, qos })) })
  const suback = await raw.next('suback', (packet) => packet.messageId === messageId)
  return suback.cmd === 'suback' ? (suback.granted as number[]) : [] // numbers in MQTT 3.1.1
}
