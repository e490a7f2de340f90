import { createPublicKey, type KeyObject, sign } from 'node:crypto'
import { promisify } from 'node:util'
import { readSecretFile } from '#shared/files'
import { oid, sequence } from '#shared/pki/der-write'
import { readPrivateKey, spkiDer } from '#shared/pki/keys'
import { OID } from '#shared/pki/oid'

/** The port to a CA's private key, wherever it lies. */
export interface Signer {
  /** DER of the AlgorithmIdentifier that belongs into what is signed. */
  readonly algorithm: Buffer
  /** DER of the public key. */
  readonly spki: Buffer
  /** DER signature (RFC 5480 appendix A: SEQUENCE of r and s) over the octets. Rejects when the key cannot be reached. */
  sign(tbs: Uint8Array): Promise<Buffer>
}

/** RFC 5758 section 3.2: ECDSA identifiers have no parameters, not even NULL. */
const ECDSA_WITH_SHA256 = sequence(oid(OID.ecdsaWithSha256))

/**
 * A P-256 key from an encrypted PKCS#8 file of mode 0600. Synchronous underneath: handing 80 us to the thread
 * pool costs more than it frees.
 * @throws MusterError key_file_insecure, passphrase_wrong
 */
export function fileSigner(path: string, passphrase: string): Signer {
  return keySigner(readPrivateKey(readSecretFile(path).toString('utf8'), passphrase))
}

/** From this size on the hash takes longer than the way to the thread pool and back, octets. */
const LARGE_OCTETS = 256 * 1024

const signOffThread = promisify(sign) as (
  algorithm: string,
  data: Uint8Array,
  key: KeyObject,
) => Promise<Buffer> // the overload with a callback

/** A P-256 key in memory: a CA that is being created. Large CRLs are hashed and signed off the event loop. */
export function keySigner(key: KeyObject): Signer {
  return {
    algorithm: ECDSA_WITH_SHA256,
    spki: spkiDer(createPublicKey(key)),
    sign: async (tbs) =>
      tbs.length < LARGE_OCTETS ? sign('sha256', tbs, key) : signOffThread('sha256', tbs, key),
  }
}
