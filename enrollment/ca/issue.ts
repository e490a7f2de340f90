import { type PeerKind, spiffeUri } from '#shared/identity/peer'
import {
  authorityKeyIdentifier,
  basicConstraints,
  caIssuers,
  crlDistributionPoint,
  extKeyUsage,
  type GeneralName,
  keyUsage,
  ocspAndCaIssuers,
  subjectAltName,
  subjectKeyIdentifier,
} from '#shared/pki/extensions'
import { sha256Hex } from '#shared/pki/keys'
import { encodeName } from '#shared/pki/name'
import { fromTemplate, type NamedRequest } from './leaf-template.ts'
import { lintLeaf } from './lint.ts'
import { type IssuerKind, PROFILES } from './profile.ts'
import { distributionPoint } from './shard.ts'
import type { Signer } from './signer.ts'
import { assemble, encodeTbs, keyIdentifier } from './template.ts'

/** A CA that signs certificates for clients and servers. */
export interface Issuer {
  /** SHA-256 of its certificate, lower-case hex. */
  readonly id: string
  readonly kind: IssuerKind
  readonly pem: string
  readonly der: Buffer
  readonly trustDomain: string
  /** Its subject as DER: what its certificates carry as issuer, octet for octet. */
  readonly name: Buffer
  readonly keyId: Buffer
  /** Ms since 1970; notAfter is the last valid second. */
  readonly notBefore: number
  readonly notAfter: number
  /** Of the full CRL. */
  readonly crlUrl: string
  /** So many CRLs share its certificates; 0: the full one alone is named. Fixed, because it is in the certificates. */
  readonly crlShards: number
  readonly caUrl: string
  /** Null when no responder answers for it. */
  readonly ocspUrl: string | null
  readonly signer: Signer
}

export interface CertificateRequest {
  readonly profile: PeerKind
  /** Checked to be a device id. */
  readonly id: string
  /** DER of the SubjectPublicKeyInfo, checked. */
  readonly spki: Buffer
  /** 16 random octets, hex. */
  readonly serial: string
  /** Ms since 1970, whole seconds; `notAfter` is the last valid second. */
  readonly notBefore: number
  readonly notAfter: number
  /** DNS names and IP addresses; servers and brokers need at least one, nobody else may have any. */
  readonly hosts?: readonly string[]
  /** What the profile of a device's fleet adds to the subject. */
  readonly subject?: { readonly organization: string | null; readonly organizationalUnit: string | null }
  /** What it adds to the SAN; devices only. */
  readonly names?: readonly GeneralName[]
}

export interface SignedCertificate {
  readonly der: Buffer
  /** SHA-256 of the DER, lower-case hex. */
  readonly fingerprint: string
}

/**
 * Template, lint, signature, fingerprint. Nothing is signed that the linter refuses.
 * @throws MusterError lint_failed (evidence: rule)
 */
export async function issueCertificate(
  issuer: Issuer,
  request: CertificateRequest,
): Promise<SignedCertificate> {
  const tbs = checkedTbs(issuer, request)
  return signedWith(issuer, { tbs, signature: await issuer.signer.sign(tbs) })
}

/** The same at once; null when the key of the CA cannot. @throws MusterError lint_failed (evidence: rule) */
export function issueNow(issuer: Issuer, request: CertificateRequest): SignedCertificate | null {
  const { signer } = issuer
  if (signer.signNow === undefined) return null
  const tbs = checkedTbs(issuer, request)
  return signedWith(issuer, { tbs, signature: signer.signNow(tbs) })
}

/** @throws MusterError lint_failed (evidence: rule) */
function checkedTbs(issuer: Issuer, request: CertificateRequest): Buffer {
  const named = { ...request, crlUrl: distributionPoint(issuer, request.serial) }
  const general = () => lintedLeaf(issuer, named)
  return fromTemplate(issuer, named, general) ?? general()
}

function signedWith({ signer }: Issuer, signed: { tbs: Buffer; signature: Buffer }): SignedCertificate {
  const der = assemble({ ...signed, algorithm: signer.algorithm })
  return { der, fingerprint: sha256Hex(der) }
}

/** @throws MusterError lint_failed (evidence: rule) */
function lintedLeaf(issuer: Issuer, request: NamedRequest): Buffer {
  const tbs = encodeLeaf(issuer, request)
  lintLeaf(tbs, {
    signing: issuer,
    order: { ...request, hosts: request.hosts ?? [] },
    issuerKind: issuer.kind,
    trustDomain: issuer.trustDomain,
    crlUrl: request.crlUrl,
    caUrl: issuer.caUrl,
    ocspUrl: issuer.ocspUrl,
  })
  return tbs
}

function encodeLeaf(issuer: Issuer, request: NamedRequest): Buffer {
  const { keyUsage: usages, purposes } = PROFILES[request.profile]
  const hosts = request.hosts ?? []
  const { caUrl, ocspUrl } = issuer
  return encodeTbs({
    serial: request.serial,
    algorithm: issuer.signer.algorithm,
    issuer: issuer.name,
    subject: encodeName({ ...request.subject, commonName: request.id }),
    notBefore: request.notBefore,
    notAfter: request.notAfter,
    spki: request.spki,
    extensions: [
      authorityKeyIdentifier(issuer.keyId),
      subjectKeyIdentifier(keyIdentifier(request.spki)),
      basicConstraints(false),
      keyUsage(usages),
      extKeyUsage(purposes),
      subjectAltName([
        { uri: spiffeUri(issuer.trustDomain, request.profile, request.id) },
        ...hosts.map((host) => ({ host })),
        ...(request.names ?? []),
      ]),
      crlDistributionPoint(request.crlUrl),
      ocspUrl === null ? caIssuers(caUrl) : ocspAndCaIssuers({ ocspUrl, caUrl }),
    ],
  })
}
