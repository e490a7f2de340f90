import {
  createCipheriv,
  createDecipheriv,
  createPublicKey,
  diffieHellman,
  generateKeyPairSync,
  hash,
} from 'node:crypto'

/** The keys of TLS 1.3 (RFC 8446 sections 5 and 7) for the one suite that the load offers: TLS_AES_128_GCM_SHA256. */

const HASH_BYTES = 32
const BLOCK_BYTES = 64
const KEY_BYTES = 16
const IV_BYTES = 12
const TAG_BYTES = 16
const ZEROS = Buffer.alloc(HASH_BYTES)
const NONE: Buffer = Buffer.alloc(0)
const EMPTY_HASH = digest(NONE)
/** SubjectPublicKeyInfo of an X25519 key, up to its 32 octets (RFC 8410 section 4). */
const X25519_SPKI = Buffer.from('302a300506032b656e032100', 'hex')

export const CONTENT = { changeCipherSpec: 20, alert: 21, handshake: 22, data: 23 } as const

export function digest(octets: Buffer): Buffer {
  return hash('sha256', octets, 'buffer')
}

/** HMAC (RFC 2104) with a key of one hash, by two hashes: `createHmac` takes four times as long. */
export function hmac(key: Buffer, octets: Buffer): Buffer {
  const inner = Buffer.alloc(BLOCK_BYTES + octets.length, 0x36)
  const outer = Buffer.alloc(BLOCK_BYTES + HASH_BYTES, 0x5c)
  for (const [index, octet] of key.entries()) {
    inner[index] = octet ^ 0x36
    outer[index] = octet ^ 0x5c
  }
  octets.copy(inner, BLOCK_BYTES)
  digest(inner).copy(outer, BLOCK_BYTES)
  return digest(outer)
}

/** HKDF-Expand-Label (RFC 8446 section 7.1); what TLS asks for fits into one block. */
export function expand(
  secret: Buffer,
  label: string,
  { context = NONE, length = HASH_BYTES }: { context?: Buffer; length?: number } = {},
): Buffer {
  const name = `tls13 ${label}`
  const info = Buffer.alloc(4 + name.length + context.length + 1)
  info.writeUInt16BE(length)
  info[2] = name.length
  info.write(name, 3, 'latin1')
  info[3 + name.length] = context.length
  context.copy(info, 4 + name.length)
  info[info.length - 1] = 1
  return hmac(secret, info).subarray(0, length)
}

/** The verify_data of Finished, and of a binder (RFC 8446 section 4.4.4). */
export function finished(secret: Buffer, transcript: Buffer): Buffer {
  return hmac(expand(secret, 'finished'), transcript)
}

const NO_PSK = hmac(ZEROS, ZEROS)

/** The key with which a ClientHello proves that it has the secret of a ticket. */
export function binderKey(psk: Buffer): Buffer {
  return expand(hmac(ZEROS, psk), 'res binder', { context: EMPTY_HASH })
}

export function handshakeSecret(psk: Buffer | null, shared: Buffer): Buffer {
  const early = psk === null ? NO_PSK : hmac(ZEROS, psk)
  return hmac(expand(early, 'derived', { context: EMPTY_HASH }), shared)
}

export function masterSecret(handshake: Buffer): Buffer {
  return hmac(expand(handshake, 'derived', { context: EMPTY_HASH }), ZEROS)
}

const ours = generateKeyPairSync('x25519')

/** One key for all connections of the load: making one costs as much as using it, and the server cannot tell. */
export const KEY_SHARE: Buffer = ours.publicKey
  .export({ type: 'spki', format: 'der' })
  .subarray(X25519_SPKI.length)

export function sharedSecret(theirs: Buffer): Buffer {
  const publicKey = createPublicKey({
    key: Buffer.concat([X25519_SPKI, theirs]),
    format: 'der',
    type: 'spki',
  })
  return diffieHellman({ privateKey: ours.privateKey, publicKey })
}

/** One direction of a connection under one key. */
export class Protection {
  readonly #key: Buffer
  readonly #iv: Buffer
  #sequence = 0

  constructor(secret: Buffer) {
    this.#key = expand(secret, 'key', { length: KEY_BYTES })
    this.#iv = expand(secret, 'iv', { length: IV_BYTES })
  }

  /** A whole record. */
  seal(content: Buffer, type: number): Buffer {
    const header = Buffer.from([CONTENT.data, 3, 3, 0, 0])
    header.writeUInt16BE(content.length + 1 + TAG_BYTES, 3)
    const cipher = createCipheriv('aes-128-gcm', this.#key, this.#nonce())
    cipher.setAAD(header)
    const sealed = [header, cipher.update(content), cipher.update(Buffer.from([type])), cipher.final()]
    return Buffer.concat([...sealed, cipher.getAuthTag()])
  }

  /** What is in a record, and its type. @throws when it was not sealed with this key */
  open(record: Buffer): { readonly content: Buffer; readonly type: number } {
    const tag = record.length - TAG_BYTES
    const decipher = createDecipheriv('aes-128-gcm', this.#key, this.#nonce())
    decipher.setAAD(record.subarray(0, 5)).setAuthTag(record.subarray(tag))
    const inner = decipher.update(record.subarray(5, tag))
    decipher.final()
    let end = inner.length - 1
    while (end > 0 && inner[end] === 0) end -= 1 // padding
    return { content: inner.subarray(0, end), type: inner[end] ?? 0 }
  }

  /** For a record that is not opened. */
  skip(): void {
    this.#sequence += 1
  }

  /** RFC 8446 section 5.3; no connection of the load comes near 2^32 records. */
  #nonce(): Buffer {
    const nonce = Buffer.from(this.#iv)
    nonce.writeUInt32BE((nonce.readUInt32BE(8) ^ this.#sequence) >>> 0, 8)
    this.#sequence += 1
    return nonce
  }
}
