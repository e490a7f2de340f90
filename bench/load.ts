import { connect as connectPlain } from 'node:net'
import { type ConnectionOptions, connect } from 'node:tls'
import { Reply } from './reply.ts'

/**
 * The load: ready-made requests, written as they are, on plain TLS sockets. An HTTP client would cost more than some
 * of the servers that it measures.
 */
export interface Target {
  readonly port: number
  /** PEM; null for plain TCP. */
  readonly ca: string | null
}

export interface Load {
  /** Whole HTTP/1.1 requests. */
  readonly requests: readonly Buffer[]
  readonly connections: number
  /** Called with each reply; what it throws ends the load. */
  check(reply: { status: number; body: string }): void
}

const DEADLINE_MS = 120_000

/** Every server is asked for the same key exchange: the newer ones would otherwise be measured with a dearer one. */
function tlsOptions({ port, ca }: Target): ConnectionOptions {
  return {
    host: '127.0.0.1',
    port,
    ca: ca ?? [],
    servername: 'localhost',
    ecdhCurve: 'X25519',
    minVersion: 'TLSv1.3',
  }
}

/** Sends the requests over connections that stay open, one at a time on each. */
export async function keepAlive(target: Target, load: Load): Promise<void> {
  const queue = load.requests.values()
  const clients = Array.from({ length: load.connections }, async () => {
    const client = await open(target)
    for (const request of queue) load.check(await client.ask(request))
    client.close()
  })
  await Promise.all(clients)
}

/** Sends each request over a connection of its own: full handshake, request, reply, end. */
export async function fresh(target: Target, load: Load): Promise<void> {
  const queue = load.requests.values()
  const clients = Array.from({ length: load.connections }, async () => {
    for (const request of queue) {
      const client = await open(target)
      load.check(await client.ask(request))
      client.close()
    }
  })
  await Promise.all(clients)
}

interface Client {
  ask(request: Buffer): Promise<{ status: number; body: string }>
  close(): void
}

async function open(target: Target): Promise<Client> {
  const socket = target.ca === null ? connectPlain(target.port, '127.0.0.1') : connect(tlsOptions(target))
  socket.setNoDelay(true)
  let waiting = Promise.withResolvers<{ status: number; body: string }>()
  let reply = new Reply()
  const connected = Promise.withResolvers<void>()
  const fail = (error: Error) => {
    connected.reject(error)
    waiting.reject(error)
  }
  socket.setTimeout(DEADLINE_MS, () => socket.destroy(new Error('the server did not answer in time')))
  socket.once(target.ca === null ? 'connect' : 'secureConnect', () => connected.resolve())
  socket.once('error', fail)
  socket.once('close', () => fail(new Error('the server closed the connection')))
  socket.on('data', (octets) => {
    const whole = reply.add(octets)
    if (whole === null) return
    reply = new Reply()
    waiting.resolve(whole)
  })
  waiting.promise.catch(() => {}) // nobody asks on a connection that fails while it is idle
  await connected.promise
  return {
    ask(request) {
      waiting = Promise.withResolvers()
      socket.write(request)
      return waiting.promise
    },
    close: () => socket.destroy(),
  }
}
