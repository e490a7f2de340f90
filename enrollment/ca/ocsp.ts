import { createHash } from 'node:crypto'
import { bitsOf, fields, readDer } from '#shared/pki/der'
import {
  authorityKeyIdentifier,
  basicConstraints,
  extKeyUsage,
  keyUsage,
  ocspNoCheck,
  subjectKeyIdentifier,
} from '#shared/pki/extensions'
import { encodeName } from '#shared/pki/name'
import { type CertId, type CertStatus, encodeOcspResponse, encodeResponseData } from '#shared/pki/ocsp'
import { OID } from '#shared/pki/oid'
import type { Issuer } from './issue.ts'
import { lintResponder } from './lint.ts'
import type { Signer } from './signer.ts'
import { assemble, encodeTbs, keyIdentifier } from './template.ts'

/** Who signs responses for an issuer, which has delegated it (RFC 6960 section 4.2.2.2). */
export interface Responder {
  /** DER of its certificate. */
  readonly certificate: Buffer
  /** Ms since 1970, the last valid second. */
  readonly notAfter: number
  readonly signer: Signer
}

export interface ResponderRequest {
  /** DER of the SubjectPublicKeyInfo. */
  readonly spki: Buffer
  /** 16 random octets, hex. */
  readonly serial: string
  /** Ms since 1970, whole seconds. */
  readonly notBefore: number
  readonly notAfter: number
}

/**
 * Makes the certificate of a responder: it may sign OCSP responses and nothing else, names no identity, so that no
 * listener takes it, and says that nobody need ask whether it is revoked; so it is short-lived.
 * @throws MusterError lint_failed (evidence: rule)
 */
export async function issueResponderCertificate(issuer: Issuer, request: ResponderRequest): Promise<Buffer> {
  const { algorithm } = issuer.signer
  const tbs = encodeTbs({
    ...request,
    algorithm,
    issuer: issuer.name,
    subject: encodeName({ organization: issuer.trustDomain, commonName: 'Muster OCSP responder' }),
    extensions: [
      authorityKeyIdentifier(issuer.keyId),
      subjectKeyIdentifier(keyIdentifier(request.spki)),
      basicConstraints(false),
      keyUsage(['digitalSignature']),
      extKeyUsage([OID.ocspSigning]),
      ocspNoCheck(),
    ],
  })
  lintResponder(tbs, { signing: issuer, order: request })
  return assemble({ tbs, algorithm, signature: await issuer.signer.sign(tbs) })
}

export interface ResponseRequest {
  /** What is answered; ms since 1970, cut to whole seconds. */
  readonly answers: readonly { readonly certId: CertId; readonly status: CertStatus }[]
  readonly nonce: Buffer | null
  readonly thisUpdate: number
  readonly nextUpdate: number
}

/** DER of a signed OCSPResponse. Dates have no fractions (RFC 6960 section 4.2.2.1). */
export async function signOcspResponse(responder: Responder, request: ResponseRequest): Promise<Buffer> {
  const { certificate, signer } = responder
  const thisUpdate = wholeSecond(request.thisUpdate)
  const nextUpdate = wholeSecond(Math.min(request.nextUpdate, responder.notAfter))
  const data = encodeResponseData({
    responderKeyHash: hashOfKey(signer.spki, 'sha1'),
    producedAt: thisUpdate,
    responses: request.answers.map(({ certId, status }) => ({
      certId: certId.raw,
      status,
      thisUpdate,
      nextUpdate,
    })),
    nonce: request.nonce,
  })
  const { algorithm } = signer
  return encodeOcspResponse({ data, algorithm, signature: await signer.sign(data), certificate })
}

function wholeSecond(at: number): number {
  return Math.floor(at / 1000) * 1000
}

const HASHES = { [OID.sha1]: 'sha1', [OID.sha256]: 'sha256' } as const

/** How requests name the issuer: hashes of its name and key, by hash algorithm. */
export function issuerMatcher({ name, signer }: Pick<Issuer, 'name' | 'signer'>): (id: CertId) => boolean {
  const hashes = new Map<string, { name: Buffer; key: Buffer }>(
    Object.entries(HASHES).map(([dotted, hash]) => [
      dotted,
      { name: createHash(hash).update(name).digest(), key: hashOfKey(signer.spki, hash) },
    ]),
  )
  return ({ hashAlgorithm, issuerNameHash, issuerKeyHash }) => {
    const own = hashes.get(hashAlgorithm)
    if (own === undefined) return false
    return own.name.equals(issuerNameHash) && own.key.equals(issuerKeyHash)
  }
}

/** Of the key's bits, without tag, length and number of unused bits (RFC 6960 section 4.1.1). */
function hashOfKey(spki: Uint8Array, hash: 'sha1' | 'sha256'): Buffer {
  const [, key] = fields(readDer(spki), 'public key', [2, 2])
  return createHash(hash).update(bitsOf(key)).digest()
}
