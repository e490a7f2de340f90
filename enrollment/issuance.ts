import type { CertificateReply } from '#shared/api'
import { isMusterError, MusterError } from '#shared/errors'
import { spiffeUri } from '#shared/identity/peer'
import { derToPem } from '#shared/pki/pem'
import type { CheckedCsr } from './ca/check-csr.ts'
import type { Deps } from './deps.ts'
import type { Actor, Issuance, SignedCertificate } from './registry/registry.ts'

/** What a recipe ends with: the certificate is recorded, and may leave the service. */
export interface Issued {
  readonly issuance: Issuance
  /** DER. */
  readonly certificate: Buffer
}

/** 16 octets whose first is 0x40 to 0x7f: positive, of full length (RFC 5280 section 4.1.2.2), 126 of them random bits. */
export function newSerial(deps: Pick<Deps, 'random'>): string {
  const octets = deps.random(16)
  octets[0] = ((octets[0] ?? 0) & 0x3f) | 0x40
  return octets.toString('hex')
}

/**
 * A request may name the URI that the certificate will carry, or none.
 * @throws MusterError csr_subject
 */
export function checkUris(deps: Deps, csr: Pick<CheckedCsr, 'uris' | 'commonName'>): void {
  const own = csr.commonName && spiffeUri(deps.authority.trustDomain, 'device', csr.commonName)
  const foreign = csr.uris.find((uri) => uri !== own)
  if (foreign === undefined) return
  throw new MusterError('csr_subject', `Cannot issue for the URI "${foreign}": it is not the device's own`, {
    evidence: { wish: foreign },
  })
}

/**
 * Records a signed certificate and returns the recorded one, which is another when a parallel request for the same
 * issuance was recorded first: only a recorded certificate leaves the service.
 */
export async function record(
  deps: Deps,
  done: { issuance: Issuance; signed: SignedCertificate; by: Actor },
): Promise<Buffer> {
  const { serial, notBefore } = done.issuance
  try {
    await deps.registry.finishIssuance(serial, done.signed, { now: deps.now(), by: done.by })
  } catch (error) {
    if (!isMusterError(error, 'conflict')) throw error
    const recorded = await deps.registry.findCredential({ serial })
    if (!recorded) throw error
    return recorded.der
  }
  deps.signingClock.issued(notBefore)
  return done.signed.der
}

/** The JSON form of an issued certificate. */
export function certificateReply(deps: Deps, issued: Issued): CertificateReply {
  return {
    device: issued.issuance.device,
    serial: issued.issuance.serial,
    notAfter: issued.issuance.notAfter,
    renewAfter: issued.issuance.renewAfter,
    renewBefore: issued.issuance.renewBefore,
    certificate: derToPem(issued.certificate, 'CERTIFICATE'),
    chain: deps.authority.deviceChain(issued.issuance.issuer),
    trustVersion: deps.authority.bundle.version,
  }
}
