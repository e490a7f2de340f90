/** A client without Aedes and without a socket: it subscribes at an exchange, and says with which QoS it gets a message. */
import type { Standing } from '../../broker/judge/decisions.ts'
import type { Exchange } from '../../broker/mqtt/exchange.ts'
import type { MqttClient } from '../../broker/mqtt/mqtt-client.ts'
import type { Routed } from '../../broker/mqtt/route.ts'

/** Packet type (MQTT 3.1.1 section 2.2.1). */
const PUBLISH = 3

export interface FakeClient<S extends Standing> {
  readonly connection: S
  readonly client: MqttClient
  subscribe(filter: string, qos: 0 | 1): void
  leave(filter: string): void
  /** The first step of closing, and no other. */
  close(): void
}

/** Subscribes as Aedes does: the closure that the exchange gets hands a copy to the client's own `deliver…`. */
export function fakeClient<S extends Standing>(
  exchange: Exchange,
  { connection, got }: { connection: S; got(qos: number): void },
): FakeClient<S> {
  const handlers = new Map<string, (packet: Routed, done: () => void) => void>()
  const subscriptions: Record<string, { qos: number }> = Object.create(null)
  const write = ([head = 0]: Buffer) => {
    if (head >> 4 === PUBLISH) got((head >> 1) & 3)
  }
  const conn = { destroyed: false, cork() {}, uncork() {}, write }
  const deliver = (_: Routed, done: () => void) => done()
  const fake = {
    ...{ id: 'x', clean: true, closed: false, connected: true, conn, subscriptions, _nextId: 1 },
    ...{ req: { connection, isAccepted: true }, deliver0: deliver, deliverQoS: deliver },
  }
  const client = fake as unknown as MqttClient // the parts of it that are asked
  exchange.adopt(client)
  const leave = (filter: string) => {
    const handler = handlers.get(filter)
    if (handler !== undefined) exchange.removeListener(filter, handler)
    handlers.delete(filter)
  }
  return {
    ...{ connection, client, leave },
    subscribe(filter, qos) {
      leave(filter)
      subscriptions[filter] = { qos }
      const hand = qos === 0 ? fake.deliver0 : fake.deliverQoS
      const handler = (packet: Routed, done: () => void) => hand({ ...packet, retain: false }, done)
      handlers.set(filter, handler)
      exchange.subscribe(filter, handler)
    },
    close() {
      fake.closed = true
    },
  }
}
