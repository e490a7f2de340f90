/** The only importer of `ws`: WebSocket as a stream of octets, for the same gate that TLS sockets go through. */
import { createServer, type IncomingMessage, STATUS_CODES } from 'node:http'
import { Duplex } from 'node:stream'
import type { TLSSocket } from 'node:tls'
import { type RawData, type WebSocket, WebSocketServer } from 'ws'
import type { Ending } from '../ending.ts'
import type { Limits } from '../limits.ts'
import type { Guard } from './guarded-socket.ts'

/** Subprotocol of MQTT 3.1.1 and 5 [MQTT-6.0.0-3]. */
const SUBPROTOCOL = 'mqtt'
const PATH = '/mqtt'
const HEADER_BYTES = 8_192
/** Fixed header of the largest packet: type, and four octets of length. */
const FIXED_HEADER_BYTES = 5
const FRAGMENTS = 256
/** The client has closed without a word, or is not there any more (RFC 6455 section 7.1.5). */
const ABNORMAL = 1006
/** How long the client has for its part of the closing handshake, ms. */
const CLOSE_MS = 1_000
/** Answers to a client's pings that wait to be sent: whoever asks and does not read is cut off. */
const BOUNDS = { maxPendingAutoPongs: 4, closeTimeout: CLOSE_MS }

export interface WebSocketDoorDeps {
  readonly limits: Limits
  /** Origins of pages that may connect, as browsers name them; whoever names none is no browser and may. */
  readonly origins: readonly string[]
  /** The gate; says what it knows of the client. */
  enter(socket: TLSSocket, stream: Duplex): Guard
  /** A client that asked for something else, or whose page may not; with null one that has closed before it asked. Once each. */
  refused(address: string, violation: string | null): void
  /** Where the client of an open socket comes from. */
  addressOf(socket: TLSSocket): string
}

export interface WebSocketDoor {
  /** Takes a socket whose TLS handshake is done. */
  entered(socket: TLSSocket): void
}

/**
 * Speaks HTTP until the client has asked for MQTT over WebSocket, and then hands it to the gate: who it is, is asked
 * there and nowhere else. From the end of the TLS handshake it has `connectMs` for its request.
 */
export function openWebSocketDoor(deps: WebSocketDoorDeps): WebSocketDoor {
  const { limits } = deps
  const sockets = new WebSocketServer({
    noServer: true,
    clientTracking: false,
    perMessageDeflate: false,
    maxPayload: limits.packetBytes + FIXED_HEADER_BYTES,
    maxFragments: FRAGMENTS,
    ...BOUNDS, // not all in the declared types yet
    handleProtocols: (offered) => offered.has(SUBPROTOCOL) && SUBPROTOCOL,
  })
  const http = createServer({ maxHeaderSize: HEADER_BYTES }, (request, response) => {
    turnAway(deps, { tls: tlsOf(request), violation: 'HTTP without WebSocket' })
    response
      .writeHead(426, { connection: 'close', upgrade: 'websocket', 'content-type': 'text/plain' })
      .end(HINT)
  })
  http.on('clientError', (_, socket) => socket.destroy())
  http.on('upgrade', (request, socket, head) => {
    const tls = tlsOf(request)
    const refusal = refusalOf(request, deps.origins)
    if (refusal === null) {
      sockets.handleUpgrade(request, socket, head, (webSocket) => admit(deps, { webSocket, tls }))
      return
    }
    turnAway(deps, { tls, violation: refusal.violation })
    socket.on('error', () => socket.destroy())
    const fields = `connection: close\r\ncontent-type: text/plain\r\ncontent-length: ${HINT.length}`
    socket.end(`HTTP/1.1 ${refusal.status} ${STATUS_CODES[refusal.status]}\r\n${fields}\r\n\r\n${HINT}`)
    setTimeout(() => socket.destroy(), CLOSE_MS)
  })
  return {
    entered(tls) {
      const deadline = setTimeout(() => tls.destroy(), limits.connectMs)
      VISITS.set(tls, { deadline, address: deps.addressOf(tls) })
      tls.once('close', () => {
        clearTimeout(deadline)
        turnAway(deps, { tls, violation: null })
      })
      tls.disableRenegotiation()
      http.emit('connection', tls)
    },
  }
}

interface Visit {
  readonly deadline: NodeJS.Timeout
  /** A socket that has closed does not know it any more. */
  readonly address: string
}

/** For whoever asks by hand, or at another path, as many clients do when they are told none. */
const HINT = 'MQTT over WebSocket is here at /mqtt, with the subprotocol mqtt.\n'

/** Of sockets that have neither been upgraded nor turned away. */
const VISITS = new WeakMap<TLSSocket, Visit>()

/** A client may ask many times before it hears the first answer. */
function turnAway(
  deps: WebSocketDoorDeps,
  { tls, violation }: { tls: TLSSocket; violation: string | null },
): void {
  const visit = VISITS.get(tls)
  if (visit !== undefined) deps.refused(visit.address, violation)
  VISITS.delete(tls)
}

function tlsOf({ socket }: IncomingMessage): TLSSocket {
  return socket as TLSSocket // `entered` hands over no others
}

interface UpgradeRefusal {
  readonly status: number
  readonly violation: string
}

/** What is wrong with a request for an upgrade, beside what `ws` itself refuses. */
export function refusalOf(
  { url = '', headers }: Pick<IncomingMessage, 'url' | 'headers'>,
  origins: readonly string[],
): UpgradeRefusal | null {
  const { origin } = headers
  if (url.split('?', 1)[0] !== PATH) return { status: 404, violation: `no WebSocket at ${url.slice(0, 100)}` }
  if (origin !== undefined && !origins.includes(origin.toLowerCase())) {
    return { status: 403, violation: `origin ${origin.slice(0, 100)} may not connect` }
  }
  const protocols = (headers['sec-websocket-protocol'] ?? '').split(',').map((name) => name.trim())
  return protocols.includes(SUBPROTOCOL) ? null : { status: 400, violation: 'no subprotocol mqtt' }
}

function admit(deps: WebSocketDoorDeps, { webSocket, tls }: { webSocket: WebSocket; tls: TLSSocket }): void {
  clearTimeout(VISITS.get(tls)?.deadline)
  VISITS.delete(tls)
  const stream = new WebSocketStream(webSocket, { tls, pingMs: deps.limits.webSocketPingMs })
  const guard = deps.enter(tls, stream)
  const most = 2 * deps.limits.connectBytes + HEADER_BYTES
  let octets = 0
  // Frames that wait to be whole are in no packet yet: until CONNECT is there they are counted as they arrive.
  const counted = (chunk: Buffer) => {
    octets += chunk.length
    if (guard.walk.packets > 0) tls.off('data', counted)
    else if (octets > most) stream.fail(`${octets} octets before CONNECT, ${most} allowed`)
  }
  tls.on('data', counted)
}

interface Carrier {
  readonly tls: TLSSocket
  /** How often the client is asked for a sign of life, ms. */
  readonly pingMs: number
}

/**
 * The octets of a WebSocket's binary frames, however they are cut [MQTT-6.0.0-2]. It has closed when its TLS socket
 * has. Emits `fault` with the rule that the client broke before it is destroyed for that, and with its {@link Ending}.
 */
class WebSocketStream extends Duplex {
  readonly #webSocket: WebSocket
  readonly #tls: TLSSocket
  readonly #pings: NodeJS.Timeout
  #isAnswered = true

  constructor(webSocket: WebSocket, { tls, pingMs }: Carrier) {
    super({ autoDestroy: true, allowHalfOpen: true })
    this.#webSocket = webSocket
    this.#tls = tls
    webSocket.on('message', (data, isBinary) => this.#take(data, isBinary))
    webSocket.on('error', (error) => this.fail(`WebSocket: ${error.message}`))
    webSocket.on('pong', () => {
      this.#isAnswered = true
    })
    webSocket.on('close', (code) => {
      if (!this.destroyed && code !== ABNORMAL) this.push(null)
      this.destroy()
    })
    this.#pings = setInterval(() => this.#ping(), pingMs)
  }

  fail(violation: string, ending: Ending = 'packet'): void {
    if (this.destroyed) return
    this.emit('fault', violation, ending)
    this.destroy()
  }

  override _read(): void {
    this.#webSocket.resume()
  }

  override _write(chunk: Buffer, _: string, done: (error?: Error | null) => void): void {
    this.#webSocket.send(chunk, { binary: true }, done)
  }

  override _writev(chunks: { chunk: Buffer }[], done: (error?: Error | null) => void): void {
    this.#webSocket.send(Buffer.concat(chunks.map(({ chunk }) => chunk)), { binary: true }, done)
  }

  override _final(done: (error?: Error | null) => void): void {
    this.#webSocket.close()
    done()
  }

  override _destroy(error: Error | null, done: (error: Error | null) => void): void {
    clearInterval(this.#pings)
    if (this.#tls.closed) done(error)
    else this.#tls.once('close', () => done(error))
    this.#webSocket.terminate()
    this.#tls.destroy()
  }

  #take(data: RawData, isBinary: boolean): void {
    if (!isBinary)
      this.fail('a WebSocket frame of text') // [MQTT-6.0.0-1]
    else if (!this.destroyed && !this.push(data)) this.#webSocket.pause()
  }

  #ping(): void {
    if (this.#isAnswered) this.#webSocket.ping()
    else this.fail('no answer to a WebSocket ping', 'keepalive')
    this.#isAnswered = false
  }
}
