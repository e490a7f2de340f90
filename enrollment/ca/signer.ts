import { createPublicKey, type KeyObject, sign } from 'node:crypto'
import { promisify } from 'node:util'
import { oid, sequence } from '#shared/pki/der-write'
import { spkiDer } from '#shared/pki/keys'
import { OID } from '#shared/pki/oid'

/** The port to a CA's private key, wherever it lies. */
export interface Signer {
  /** DER of the AlgorithmIdentifier that belongs into what is signed. */
  readonly algorithm: Buffer
  /** DER of the public key. */
  readonly spki: Buffer
  /**
   * The signature as certificates carry it, over the octets: for ECDSA the DER of r and s (RFC 5480 appendix A).
   * @throws MusterError unavailable when the key cannot be reached just now
   */
  sign(tbs: Uint8Array): Promise<Buffer>
  /** The same at once, where the key is in the memory of this process; left out where it lies elsewhere. */
  signNow?(tbs: Uint8Array): Buffer
}

/** RFC 5758 section 3.2: ECDSA identifiers have no parameters, not even NULL. */
const ECDSA_WITH_SHA256 = sequence(oid(OID.ecdsaWithSha256))

/** From this size on the hash takes longer than the way to the thread pool and back, octets. */
const LARGE_OCTETS = 256 * 1024

const signOffThread = promisify(sign) as (
  algorithm: string,
  data: Uint8Array,
  key: KeyObject,
) => Promise<Buffer> // the overload with a callback

/**
 * A P-256 key in memory. Synchronous underneath: handing 80 us to the thread pool costs more than it frees; large CRLs
 * are hashed and signed off the event loop.
 */
export function keySigner(key: KeyObject): Signer {
  return {
    algorithm: ECDSA_WITH_SHA256,
    spki: spkiDer(createPublicKey(key)),
    sign: async (tbs) =>
      tbs.length < LARGE_OCTETS ? sign('sha256', tbs, key) : signOffThread('sha256', tbs, key),
    signNow: (tbs) => sign('sha256', tbs, key),
  }
}
