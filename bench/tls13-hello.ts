import { randomBytes } from 'node:crypto'
import { binderKey, digest, finished, KEY_SHARE } from './tls13-keys.ts'

/** The first messages of TLS 1.3 (RFC 8446 sections 4.1 and 4.2), as far as the load needs them. */

/** What a server has given for the next connection, and when. */
export interface Ticket {
  readonly identity: Buffer
  readonly secret: Buffer
  readonly ageAdd: number
  /** Ms, of `performance.now()`. */
  readonly at: number
}

export interface ServerHello {
  /** The server's X25519 key. */
  readonly share: Buffer
  /** The server has taken the ticket. */
  readonly isResumed: boolean
}

const CLIENT_HELLO = 1
const SUITE = Buffer.from([0x13, 0x01]) // TLS_AES_128_GCM_SHA256
const X25519 = 0x001d
const EXTENSION = { keyShare: 51, preSharedKey: 41 } as const
/** RFC 8446 section 4.1.3: a ServerHello with it asks for another key share. */
const RETRY = Buffer.from('cf21ad74e59a6111be1d8c021e65b891c2a211167abb8c5e079e09e2c8a8339c', 'hex')
/** Of the binders of one identity: the lengths of list and binder, and the binder. */
const BINDERS_BYTES = 2 + 1 + 32

/** A vector with a length of so many octets before it. */
export function sized(width: 1 | 2 | 3, ...parts: readonly Buffer[]): Buffer {
  const content = Buffer.concat(parts)
  const length = Buffer.alloc(width)
  length.writeUIntBE(content.length, 0, width)
  return Buffer.concat([length, content])
}

export function message(type: number, content: Buffer): Buffer {
  return Buffer.concat([Buffer.from([type]), sized(3, content)])
}

function extension(type: number, content: Buffer): Buffer {
  return Buffer.concat([Buffer.from([type >> 8, type & 0xff]), sized(2, content)])
}

const EXTENSIONS = Buffer.concat([
  extension(0, sized(2, Buffer.from([0]), sized(2, Buffer.from('localhost')))), // server_name
  extension(10, sized(2, Buffer.from([X25519 >> 8, X25519]))), // supported_groups
  // signature_algorithms: ECDSA with P-256 and P-384, Ed25519, RSA-PSS
  extension(13, sized(2, Buffer.from('04030503080708040805', 'hex'))),
  extension(43, sized(1, Buffer.from([3, 4]))), // supported_versions: TLS 1.3
  extension(45, sized(1, Buffer.from([1]))), // psk_key_exchange_modes: with a key exchange
  extension(EXTENSION.keyShare, sized(2, Buffer.from([X25519 >> 8, X25519]), sized(2, KEY_SHARE))),
])

/** With a ticket it offers to go on with that session; nothing is sent before the answer. */
export function clientHello(ticket: Ticket | null): Buffer {
  const random = randomBytes(32)
  const none = Buffer.from([0])
  const start = [Buffer.from([3, 3]), random, none, sized(2, SUITE), sized(1, none)]
  if (ticket === null) return message(CLIENT_HELLO, Buffer.concat([...start, sized(2, EXTENSIONS)]))
  const age = Buffer.alloc(4)
  age.writeUInt32BE((Math.round(performance.now() - ticket.at) + ticket.ageAdd) >>> 0)
  const identities = sized(2, sized(2, ticket.identity), age)
  const empty = Buffer.alloc(BINDERS_BYTES)
  const offer = extension(EXTENSION.preSharedKey, Buffer.concat([identities, empty]))
  const hello = message(CLIENT_HELLO, Buffer.concat([...start, sized(2, EXTENSIONS, offer)]))
  const end = hello.length - BINDERS_BYTES
  const binder = finished(binderKey(ticket.secret), digest(hello.subarray(0, end)))
  sized(2, sized(1, binder)).copy(hello, end)
  return hello
}

/** @throws RangeError when it is one for which the load has no answer */
export function readServerHello(content: Buffer): ServerHello {
  if (content.subarray(2, 34).equals(RETRY)) throw new RangeError('the server wants another key exchange')
  let at = 35 + (content[34] ?? 0)
  if (!content.subarray(at, at + 2).equals(SUITE)) throw new RangeError('the server chose another suite')
  at += 5 // suite, compression, length of the extensions
  let share: Buffer | null = null
  let isResumed = false
  while (at < content.length) {
    const [type, length] = [content.readUInt16BE(at), content.readUInt16BE(at + 2)]
    const value = content.subarray(at + 4, at + 4 + length)
    if (type === EXTENSION.keyShare) share = value.subarray(4)
    if (type === EXTENSION.preSharedKey) isResumed = true
    at += 4 + length
  }
  if (share === null) throw new RangeError('the server speaks no TLS 1.3, or sent no key')
  return { share, isResumed }
}

/** NewSessionTicket (RFC 8446 section 4.6.1); the secret comes from its nonce. */
export function readTicket(content: Buffer, secretOf: (nonce: Buffer) => Buffer): Ticket {
  const nonce = content.subarray(9, 9 + (content[8] ?? 0))
  const at = 9 + nonce.length
  const identity = Buffer.from(content.subarray(at + 2, at + 2 + content.readUInt16BE(at)))
  return { identity, secret: secretOf(nonce), ageAdd: content.readUInt32BE(4), at: performance.now() }
}
