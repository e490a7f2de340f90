import type { CertificateReply } from '#shared/api'
import { isMusterError, MusterError } from '#shared/errors'
import { spiffeUri } from '#shared/identity/peer'
import { derToPem } from '#shared/pki/pem'
import type { CheckedCsr } from './ca/check-csr.ts'
import { issueCertificate, issueNow } from './ca/issue.ts'
import { endedCa } from './ca/load-ca.ts'
import type { Deps } from './deps.ts'
import type { Actor, Issuance, SignNow } from './registry/registry.ts'

/** What a recipe ends with: the certificate is recorded, and may leave the service. */
export interface Issued {
  readonly issuance: Issuance
  /** DER. */
  readonly certificate: Buffer
  /** DER of the PrivateKeyInfo, when the plane has made the key; null otherwise. It is stored nowhere. */
  readonly privateKey: Buffer | null
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

/** What a recipe has signed. */
export interface Signing {
  readonly recipe: 'enroll' | 'renew' | 'service'
  /** DER of the SubjectPublicKeyInfo. */
  readonly spki: Buffer
}

/**
 * Step 3 within the commit of step 2, for a CA whose key signs at once: what was signed and not committed never left
 * the process, so that nobody has it.
 */
export function signNow(deps: Deps, signing: Signing): SignNow {
  return (issuance) => {
    const { issuer, request } = orderOf(deps, { issuance, signing })
    if (issuer.signer.signNow === undefined) return null
    deps.reached(`${signing.recipe}.2`)
    const signed = issueNow(issuer, request)
    deps.reached(`${signing.recipe}.3`)
    return signed
  }
}

/**
 * Steps 3 and 4, as far as they have not been taken with step 2. Returns the recorded certificate, which is another than
 * the signed one when a parallel request for the same issuance was recorded first: only a recorded one leaves the service.
 * @throws MusterError lint_failed, clock_wrong
 */
export async function completed(
  deps: Deps,
  { issuance, signing, by }: { issuance: Issuance; signing: Signing; by: Actor },
): Promise<Buffer> {
  const { serial, notBefore, certificate } = issuance
  deps.signingClock.issued(notBefore)
  if (certificate !== null) return certificate
  deps.reached(`${signing.recipe}.2`)
  const { issuer, request } = orderOf(deps, { issuance, signing })
  const signed = await issueCertificate(issuer, request)
  deps.reached(`${signing.recipe}.3`)
  try {
    await deps.registry.finishIssuance(serial, signed, { now: deps.now(), by })
    return signed.der
  } catch (error) {
    if (!isMusterError(error, 'conflict')) throw error
    const recorded = await deps.registry.findCredential({ serial })
    if (!recorded) throw error
    return recorded.der
  }
}

/** @throws MusterError clock_wrong: the CA has ended, and what it would sign with it */
function orderOf(deps: Deps, { issuance, signing }: { issuance: Issuance; signing: Signing }) {
  const { kind: profile, device: id } = issuance
  const issuer = deps.authority.deviceIssuer(issuance.issuer)
  const now = deps.now()
  if (now >= issuer.notAfter) throw endedCa({ kind: 'device', notAfter: issuer.notAfter, now })
  return {
    issuer,
    request: { ...issuance, profile, id, spki: signing.spki },
  }
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
