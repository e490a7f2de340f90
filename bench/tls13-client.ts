import { createHash, type KeyObject, sign } from 'node:crypto'
import type { Socket } from 'node:net'
import { clientHello, message, readServerHello, readTicket, sized, type Ticket } from './tls13-hello.ts'
import {
  CONTENT,
  expand,
  finished,
  handshakeSecret,
  masterSecret,
  Protection,
  sharedSecret,
} from './tls13-keys.ts'

const MESSAGE = {
  serverHello: 2,
  newSessionTicket: 4,
  encryptedExtensions: 8,
  certificate: 11,
  certificateRequest: 13,
  certificateVerify: 15,
  finished: 20,
} as const
const ECDSA_P256_SHA256 = Buffer.from([0x04, 0x03])
/** What a client signs is the transcript after this (RFC 8446 section 4.4.3). */
const SIGNED = Buffer.from(`${' '.repeat(64)}TLS 1.3, client CertificateVerify\0`)

/** No ticket is as short, and no answer to a CONNECT as long; octets. */
const SHORT_RECORD = 80
const NONE: Buffer = Buffer.alloc(0)

interface Secrets {
  readonly master: Buffer
  readonly client: Buffer
  readonly server: Buffer
}

export interface ClientIdentity {
  /** DER. */
  readonly certificate: Buffer
  /** P-256. */
  readonly key: KeyObject
}

export interface Tls13Events {
  /** The handshake is done: `send` may be called. */
  opened(): void
  received(octets: Buffer): void
  /** For the next connection to this server; null where there is none, or no ticket is wanted. */
  readonly ticket: ((ticket: Ticket) => void) | null
  failed(error: Error): void
}

/**
 * A client of TLS 1.3 that does just as much as a load must: Node's own takes more of the processor than the servers
 * that are measured. It proves that it has its key, and that the server has the same keys as it; what it does not do
 * is verify the server's certificate, which costs the server nothing. For loopback, never for anything else.
 */
export class Tls13Client {
  readonly #socket: Socket
  readonly #identity: ClientIdentity
  readonly #events: Tls13Events
  readonly #offered: Ticket | null
  readonly #transcript = createHash('sha256')
  #octets = NONE
  #messages = NONE
  #reading: Protection | null = null
  #writing: Protection | null = null
  #secrets: Secrets = { master: NONE, client: NONE, server: NONE }
  #resumption = NONE
  #isAsked = false
  #isOpen = false
  /** The server took the ticket that was offered. */
  isResumed = false

  /** Of a socket that connects; it sends the first message at once. */
  constructor(
    socket: Socket,
    { identity, ticket, events }: { identity: ClientIdentity; ticket: Ticket | null; events: Tls13Events },
  ) {
    this.#socket = socket
    this.#identity = identity
    this.#events = events
    this.#offered = ticket
    socket.on('data', (octets) => {
      try {
        this.#read(octets)
      } catch (error) {
        socket.destroy()
        events.failed(error as Error) // nothing here throws anything else
      }
    })
    const hello = clientHello(ticket)
    this.#transcript.update(hello)
    socket.write(Buffer.concat([Buffer.from([CONTENT.handshake, 3, 1]), sized(2, hello)]))
  }

  send(octets: Buffer): void {
    if (this.#writing === null || !this.#isOpen) throw new TypeError('The handshake is not done')
    this.#socket.write(this.#writing.seal(octets, CONTENT.data))
  }

  #read(octets: Buffer): void {
    this.#octets = this.#octets.length === 0 ? octets : Buffer.concat([this.#octets, octets])
    while (this.#octets.length >= 5) {
      const end = 5 + this.#octets.readUInt16BE(3)
      if (this.#octets.length < end) return
      const record = this.#octets.subarray(0, end)
      this.#octets = this.#octets.subarray(end)
      const type = record[0] ?? 0
      if (this.#isUnwanted(record)) this.#reading?.skip()
      else if (type === CONTENT.data && this.#reading !== null) {
        const opened = this.#reading.open(record)
        this.#take(opened.type, opened.content)
      } else if (type !== CONTENT.changeCipherSpec) this.#take(type, record.subarray(5))
    }
  }

  /** A ticket that nobody wants is known by its length, and costs nothing. */
  #isUnwanted(record: Buffer): boolean {
    return this.#isOpen && this.#events.ticket === null && record.length > SHORT_RECORD
  }

  #take(type: number, content: Buffer): void {
    if (type === CONTENT.data) {
      this.#events.received(content)
      return
    }
    if (type !== CONTENT.handshake) throw new Error(`the server sent the alert ${content.toString('hex')}`)
    this.#messages = this.#messages.length === 0 ? content : Buffer.concat([this.#messages, content])
    while (this.#messages.length >= 4) {
      const end = 4 + this.#messages.readUIntBE(1, 3)
      if (this.#messages.length < end) return
      const whole = this.#messages.subarray(0, end)
      this.#messages = this.#messages.subarray(end)
      this.#understand(whole)
    }
  }

  #understand(whole: Buffer): void {
    const [type, content] = [whole[0], whole.subarray(4)]
    if (type === MESSAGE.newSessionTicket) {
      const secretOf = (nonce: Buffer) => expand(this.#resumption, 'resumption', { context: nonce })
      this.#events.ticket?.(readTicket(content, secretOf))
    } else if (type === MESSAGE.finished) this.#finish(whole)
    else {
      this.#transcript.update(whole)
      if (type === MESSAGE.serverHello) this.#agree(content)
      if (type === MESSAGE.certificateRequest) this.#isAsked = true
    }
  }

  #agree(content: Buffer): void {
    const { share, isResumed } = readServerHello(content)
    this.isResumed = isResumed
    const psk = isResumed ? (this.#offered?.secret ?? null) : null
    const handshake = handshakeSecret(psk, sharedSecret(share))
    const context = this.#hash()
    const client = expand(handshake, 'c hs traffic', { context })
    const server = expand(handshake, 's hs traffic', { context })
    this.#secrets = { master: masterSecret(handshake), client, server }
    this.#reading = new Protection(server)
    this.#writing = new Protection(client)
  }

  /** The server is done; the client's certificate, its proof and its end go out in one record. */
  #finish(whole: Buffer): void {
    const { master, client, server } = this.#secrets
    if (this.#writing === null || !whole.subarray(4).equals(finished(server, this.#hash())))
      throw new Error('the server has other keys')
    this.#transcript.update(whole)
    const context = this.#hash()
    const flight = this.#isAsked ? this.#prove() : []
    const end = message(MESSAGE.finished, finished(client, this.#hash()))
    this.#transcript.update(end)
    this.#socket.write(this.#writing.seal(Buffer.concat([...flight, end]), CONTENT.handshake))
    this.#writing = new Protection(expand(master, 'c ap traffic', { context }))
    this.#reading = new Protection(expand(master, 's ap traffic', { context }))
    this.#resumption = expand(master, 'res master', { context: this.#hash() })
    this.#isOpen = true
    this.#events.opened()
  }

  #prove(): Buffer[] {
    const { certificate, key } = this.#identity
    const [none, noExtensions] = [Buffer.from([0]), Buffer.from([0, 0])]
    const chain = message(
      MESSAGE.certificate,
      Buffer.concat([none, sized(3, sized(3, certificate), noExtensions)]),
    )
    this.#transcript.update(chain)
    const signature = sign('sha256', Buffer.concat([SIGNED, this.#hash()]), key)
    const proof = message(MESSAGE.certificateVerify, Buffer.concat([ECDSA_P256_SHA256, sized(2, signature)]))
    this.#transcript.update(proof)
    return [chain, proof]
  }

  #hash(): Buffer {
    return this.#transcript.copy().digest()
  }
}
