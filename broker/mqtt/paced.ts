import type { MqttClient } from './mqtt-client.ts'

/** The same packets, as fast as the client reads; the guard of its socket never makes a writer wait. */
export async function* paced<T>(
  packets: Iterable<T>,
  { client: { conn }, limit }: { client: MqttClient; limit: number },
): AsyncGenerator<T> {
  for (const packet of packets) {
    while (conn.writableLength > limit && !conn.destroyed) await drained(conn)
    if (conn.destroyed) return
    yield packet
  }
}

async function drained(conn: MqttClient['conn']): Promise<void> {
  const { promise, resolve } = Promise.withResolvers<void>()
  conn.once('drain', resolve)
  conn.once('close', resolve)
  await promise
  conn.off('drain', resolve)
  conn.off('close', resolve)
}
