import {
  createCipheriv,
  createPrivateKey,
  createPublicKey,
  generateKeyPairSync,
  hash,
  type KeyObject,
  randomBytes,
  scryptSync,
  verify,
} from 'node:crypto'
import { MusterError } from '../errors.ts'
import { integer, octetString, oid, sequence } from './der-write.ts'
import { OID } from './oid.ts'
import { derToPem } from './pem.ts'

/** A new P-256 private key. */
export function generateKey(): KeyObject {
  return generateKeyPairSync('ec', { namedCurve: 'P-256' }).privateKey
}

/**
 * The largest N that OpenSSL opens within its default memory limit of 32 MiB; 16 MiB and some 40 ms a guess.
 * (node:crypto itself would encrypt with 2 048 rounds of PBKDF2.)
 */
const SCRYPT = { N: 16_384, r: 8, p: 1 } as const

/** PKCS#8 PEM; encrypted with PBES2 (scrypt, AES-256-CBC; RFC 8018, RFC 7914) when a passphrase is given. */
export function privateKeyPem(key: KeyObject, passphrase?: string): string {
  if (passphrase === undefined) return key.export({ type: 'pkcs8', format: 'pem' }) as string // a PEM export is text
  const salt = randomBytes(16)
  const iv = randomBytes(16)
  const cipher = createCipheriv('aes-256-cbc', scryptSync(passphrase, salt, 32, SCRYPT), iv)
  const encrypted = Buffer.concat([
    cipher.update(key.export({ type: 'pkcs8', format: 'der' })),
    cipher.final(),
  ])
  const kdf = sequence(octetString(salt), integer(SCRYPT.N), integer(SCRYPT.r), integer(SCRYPT.p))
  const scheme = sequence(sequence(oid(OID.scrypt), kdf), sequence(oid(OID.aes256Cbc), octetString(iv)))
  return derToPem(sequence(sequence(oid(OID.pbes2), scheme), octetString(encrypted)), 'ENCRYPTED PRIVATE KEY')
}

/**
 * Opens a PKCS#8 PEM.
 * @throws MusterError passphrase_wrong; key_file_insecure when a passphrase is given and the key is not encrypted
 */
export function readPrivateKey(pem: string, passphrase?: string): KeyObject {
  const isEncrypted = pem.includes('BEGIN ENCRYPTED PRIVATE KEY')
  if (passphrase !== undefined && !isEncrypted) {
    throw new MusterError(
      'key_file_insecure',
      'Cannot use a private key: it is not encrypted with the passphrase',
    )
  }
  try {
    return createPrivateKey({ key: pem, ...(passphrase === undefined ? {} : { passphrase }) })
  } catch (cause) {
    if (!isEncrypted) throw cause
    throw new MusterError('passphrase_wrong', 'Cannot open a private key: the passphrase does not fit', {
      cause,
    })
  }
}

/** DER of the SubjectPublicKeyInfo, of a public key or of the public half of a private one. */
export function spkiDer(key: KeyObject): Buffer {
  const publicKey = key.type === 'public' ? key : createPublicKey(key)
  return publicKey.export({ type: 'spki', format: 'der' })
}

/** The hash that a CA's key signs with: SHA-384 on P-384, SHA-256 otherwise. */
export function hashOf(key: KeyObject): 'sha256' | 'sha384' {
  return key.asymmetricKeyDetails?.namedCurve === 'secp384r1' ? 'sha384' : 'sha256'
}

/** Whether a signature is one of this CA's key. */
export function verifyAs(key: KeyObject, of: { data: Uint8Array; signature: Uint8Array }): boolean {
  // by way of PEM: the key of a certificate object verifies nothing before that
  const publicKey = createPublicKey(key.export({ type: 'spki', format: 'pem' }))
  return verify(hashOf(key), of.data, publicKey, of.signature)
}

/** Lower-case hex. */
export function sha256Hex(data: Uint8Array | string): string {
  return hash('sha256', data) // in one call, which takes half the time of an object for it
}
