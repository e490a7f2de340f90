import type { MqttClient } from './mqtt-client.ts'

/** CONNECT as the parser has it. */
export interface ConnectPacket {
  readonly cmd: string
  readonly clientId?: string
  readonly clean?: boolean
  readonly will?: object
  readonly protocolVersion?: number
  readonly username?: string
  readonly password?: Uint8Array
  /** Seconds; `preConnect` may lower it. */
  keepalive?: number
}

type Answer = (error: Error | null, isGranted: boolean) => void

/** The parts of Aedes' Client that its own handling of CONNECT sets. */
interface Connecting extends Omit<MqttClient, 'id' | 'clean' | 'connected' | '_keepaliveTimer'> {
  id: string
  clean: boolean
  version: number
  connecting: boolean
  connected: boolean
  connackSent: boolean
  _authorized: boolean
  _parsingBatch: number
  _connectTimer: NodeJS.Timeout | null
  _keepaliveTimer: NodeJS.Timeout | null
  _keepaliveInterval: number
  _nextBatch(error?: Error): void
  emit(event: string, value?: unknown): boolean
}

export interface ShortConnectDeps {
  readonly client: MqttClient
  readonly broker: {
    readonly clients: Readonly<Record<string, MqttClient>>
    preConnect(client: MqttClient, packet: ConnectPacket, answer: Answer): void
    authenticate(client: MqttClient, user: unknown, password: Uint8Array | null, answer: Answer): void
    registerClient(client: MqttClient): void
    emit(event: string, ...values: unknown[]): boolean
  }
  /** Nothing is kept under this client id: no session, no queue, no will. */
  isUnknown(clientId: string): boolean
  /** The certificate alone is enough, which is known at once. */
  isDecidedAtOnce(): boolean
}

/** [MQTT-3.2.2] session not present, connection accepted. */
const ACCEPTED = Buffer.from([0x20, 0x02, 0x00, 0x00])

/**
 * The short way of a CONNECT with clean session and without a will, of a client under whose id nothing is kept and nobody
 * is connected: the same steps and hooks as Aedes' `handlers/connect.js`, in one turn, without looking in streams
 * for what is not there. False when it has to take the long way, and nothing has happened yet.
 */
export function connectShort(deps: ShortConnectDeps, packet: ConnectPacket): boolean {
  const { broker } = deps
  const { clientId = '', protocolVersion = 0 } = packet
  const client = deps.client as unknown as Connecting // its fields that Aedes' handling of CONNECT sets
  const isFirst = client._parsingBatch === 0 && !client.connecting && !client.connected && !client.closed
  const isSimple = packet.clean === true && !packet.will && clientId !== ''
  if (!isFirst || !isSimple || protocolVersion < 3 || protocolVersion > 4) return false
  if (broker.clients[clientId] !== undefined || !deps.isUnknown(clientId)) return false
  // With 3.1 Aedes looks at the length of the id.
  if (protocolVersion === 3 || !deps.isDecidedAtOnce()) return false
  let isLetIn = false
  broker.preConnect(deps.client, packet, (error, isGranted) => {
    isLetIn = error === null && isGranted
  })
  if (!isLetIn) return false
  begin(client, packet)
  broker.authenticate(deps.client, packet.username, packet.password ?? null, (error, isGranted) => {
    if (client.closed) return
    if (error === null && isGranted) accept(deps, client, packet)
    else refuse(client, error)
  })
  return true
}

function begin(client: Connecting, packet: ConnectPacket): void {
  if (client._connectTimer !== null) clearTimeout(client._connectTimer)
  client._connectTimer = null
  client._parsingBatch += 1
  client.connecting = true
  client.id = packet.clientId ?? ''
  client.clean = true
  client.version = packet.protocolVersion ?? 0
}

function accept(
  { client: registered, broker }: ShortConnectDeps,
  client: Connecting,
  packet: ConnectPacket,
): void {
  client._authorized = true
  keepAlive(client, { broker, seconds: packet.keepalive ?? 0 })
  broker.registerClient(registered)
  client.conn.write(ACCEPTED)
  broker.emit('connackSent', { cmd: 'connack', returnCode: 0, sessionPresent: false }, client)
  client.connackSent = true
  client.connecting = false
  client.connected = true
  broker.emit('clientReady', client)
  client.emit('connected')
  process.nextTick(client._nextBatch) // what else is in the octets that are being parsed comes before
}

/** [MQTT-3.1.2-24], as Aedes does it: the timer is refreshed with each packet. */
function keepAlive(
  client: Connecting,
  { broker, seconds }: { broker: ShortConnectDeps['broker']; seconds: number },
): void {
  if (seconds <= 0) return
  const over = () => {
    broker.emit('keepaliveTimeout', client)
    client.emit('error', new Error('keep alive timeout'))
  }
  client._keepaliveInterval = seconds * 1500 + 1
  client._keepaliveTimer = setTimeout(over, client._keepaliveInterval)
}

/** [MQTT-3.2.2-5]: the CONNACK says why, and then the connection is closed. */
function refuse(client: Connecting, error: Error | null): void {
  const returnCode = error !== null && 'returnCode' in error ? Number(error.returnCode) : 5
  client.conn.write(Buffer.from([0x20, 0x02, 0x00, returnCode]))
  setImmediate(() => {
    client.connecting = false
    client.close()
  })
}
