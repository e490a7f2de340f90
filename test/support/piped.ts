/** An MQTT client without a network: below the guard of its socket everything is the broker's own. */
import { type Duplex, duplexPair } from 'node:stream'
import mqttPacket, { type Packet } from 'mqtt-packet'
import { guardSocket } from '../../broker/door/guarded-socket.ts'
import { LIMITS } from '../../broker/limits.ts'
import { type Connection, openConnection } from '../../broker/sessions.ts'
import { type TestBroker, until } from './broker.ts'
import { connectPacket } from './mqtt-clients.ts'

let connections = 0

/** A client on a pipe instead of TLS: what it writes arrives as it was cut. */
export class Piped {
  readonly connection: Connection
  readonly received: Packet[] = []
  octets = Buffer.alloc(0)
  /** What no client could read. */
  readonly faults: string[] = []
  readonly #wire: Duplex

  constructor(broker: TestBroker, id: string, wire?: Duplex) {
    const record = [...broker.replica.records.values()].find(({ device }) => device.id === id)
    if (record === undefined) throw new TypeError('not enrolled')
    const [ours, theirs] = duplexPair()
    this.#wire = ours
    const { fingerprint, serial, issuer } = record.certificate
    const { batch, kind } = record.device
    this.connection = openConnection({
      ...{ id: `p${++connections}`, socket: theirs, fingerprint, serial, issuer, device: id, kind, batch },
      ...{ fleet: record.fleet.id, address: '127.0.0.1', openedAt: Date.now() },
      policy: broker.sessions.policyFor(record, '127.0.0.1'),
      wire,
    })
    const guard = guardSocket(theirs, { limits: LIMITS, onViolation() {}, onSlow() {} })
    guard.connection = this.connection
    broker.sessions.add(this.connection)
    theirs.on('error', () => {})
    theirs.once('close', () => broker.sessions.remove(this.connection))
    ours.on('error', () => {})
    const parser = mqttPacket.parser()
    parser.on('packet', (packet) => this.received.push(packet))
    parser.on('error', (error) => this.faults.push(error.message))
    ours.on('data', (chunk: Buffer) => {
      this.octets = Buffer.concat([this.octets, chunk])
      parser.parse(chunk)
    })
    broker.mqtt.handle(this.connection)
  }

  get isClosed(): boolean {
    return this.connection.socket.destroyed
  }

  /** Nothing that was written waits to be read: what comes while reading is held stays on this side. */
  get isRead(): boolean {
    return this.connection.socket.readableLength === 0 && this.#wire.writableLength === 0
  }

  /** Each piece is read before the next one is written. */
  async write(...pieces: Buffer[]): Promise<void> {
    for (const piece of pieces) {
      if (this.isClosed) return
      this.#wire.write(piece)
      await turns(2)
    }
  }

  writeAtOnce(...pieces: Buffer[]): void {
    for (const piece of pieces) this.#wire.write(piece)
  }

  send(...packets: Packet[]): Promise<void> {
    return this.write(Buffer.concat(packets.map((packet) => mqttPacket.generate(packet))))
  }

  /** Reads nothing from now on. */
  pause(): void {
    this.#wire.pause()
  }

  async has(cmd: Packet['cmd']): Promise<void> {
    await until(() => this.isClosed || this.received.some((packet) => packet.cmd === cmd))
  }

  async enter(options: Parameters<typeof connectPacket>[0] = {}): Promise<this> {
    await this.send(connectPacket({ clientId: this.connection.device, ...options }))
    await this.has('connack')
    await turns(5)
    return this
  }

  async subscribe(...subscriptions: { topic: string; qos: 0 | 1 | 2 }[]): Promise<this> {
    this.received.length = 0
    await this.send({ cmd: 'subscribe', messageId: 9, subscriptions })
    await this.has('suback')
    await turns(5)
    return this
  }

  messages(): string[] {
    return this.received.flatMap((packet) =>
      packet.cmd === 'publish'
        ? [
            `${packet.topic} q${packet.qos} r${packet.retain} d${packet.dup} ${packet.payload.toString('hex')}`,
          ]
        : [],
    )
  }

  close(): void {
    this.#wire.destroy()
    this.connection.socket.destroy()
  }
}

/** So many turns of the event loop. */
export async function turns(count: number): Promise<void> {
  for (let left = count; left > 0; left--) await new Promise(setImmediate)
}
