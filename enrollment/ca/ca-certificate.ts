import { randomBytes } from 'node:crypto'
import {
  authorityKeyIdentifier,
  basicConstraints,
  caIssuers,
  extKeyUsage,
  keyUsage,
  subjectAltName,
  subjectKeyIdentifier,
} from '#shared/pki/extensions'
import { encodeName } from '#shared/pki/name'
import { OID } from '#shared/pki/oid'
import { lintCa } from './lint.ts'
import type { IssuerKind } from './profile.ts'
import type { Signer } from './signer.ts'
import { assemble, encodeTbs, keyIdentifier } from './template.ts'

const YEAR_MS = 365 * 24 * 3600 * 1000
const ROOT_LIFETIME_MS = 20 * YEAR_MS
const ISSUING_LIFETIME_MS = 10 * YEAR_MS
/** Device clocks are not exact. */
const BACKDATED_MS = 3600 * 1000

/** What a CA certificate is called, how deep a chain below it may go, and what it may sign for. */
const KINDS = {
  root: { title: 'Muster root CA', pathLength: 1, lifetimeMs: ROOT_LIFETIME_MS, purposes: null },
  device: {
    title: 'Muster device CA',
    pathLength: 0,
    lifetimeMs: ISSUING_LIFETIME_MS,
    // a stolen key of this CA must not make servers that devices believe
    purposes: [OID.clientAuth, OID.ocspSigning],
  },
  infrastructure: {
    title: 'Muster infrastructure CA',
    pathLength: 0,
    lifetimeMs: ISSUING_LIFETIME_MS,
    purposes: [OID.serverAuth, OID.clientAuth, OID.ocspSigning],
  },
} as const satisfies Record<'root' | IssuerKind, unknown>

/** The CA above: its name and key identifier as its certificate has them. */
export interface Parent {
  readonly name: Buffer
  readonly keyId: Buffer
  readonly notAfter: number
  readonly signer: Signer
  /** Where its certificate can be fetched. */
  readonly caUrl: string
}

export interface CaRequest {
  readonly kind: 'root' | IssuerKind
  readonly trustDomain: string
  /** Ms since 1970. */
  readonly now: number
  /** DER of the SubjectPublicKeyInfo. */
  readonly spki: Buffer
  /** In place of the lifetime that is usual for the kind, ms. */
  readonly lifetimeMs?: number
  /** DER of the subject in place of a new name: a root that gets another key keeps its name (RFC 4210 section 4.4). */
  readonly name?: Buffer
}

/** EKU of an issuing CA: what it may sign for. */
export function purposesOf(kind: IssuerKind): readonly string[] {
  return KINDS[kind].purposes
}

function newName({ kind, trustDomain }: CaRequest, keyId: Buffer): Buffer {
  const commonName = `${KINDS[kind].title} ${keyId.toString('hex', 0, 4)}`
  return encodeName({ organization: trustDomain, commonName })
}

/**
 * Makes the certificate of a CA. The name ends in the key's first digits, so that two CAs never share one.
 * Its SAN is the trust domain alone, which makes it a signing certificate in the sense of SPIFFE.
 * @throws MusterError lint_failed
 */
export async function issueCaCertificate(request: CaRequest, parent: Parent | Signer): Promise<Buffer> {
  const { pathLength, purposes } = KINDS[request.kind]
  const lifetimeMs = request.lifetimeMs ?? KINDS[request.kind].lifetimeMs
  const keyId = keyIdentifier(request.spki)
  const name = request.name ?? newName(request, keyId)
  const start = Math.floor((request.now - BACKDATED_MS) / 1000) * 1000
  const own = { name, keyId, notAfter: start + lifetimeMs }
  const signing = 'sign' in parent ? { ...own, signer: parent } : parent
  const tbs = encodeTbs({
    serial: randomBytes(16).toString('hex'),
    algorithm: signing.signer.algorithm,
    issuer: signing.name,
    subject: name,
    notBefore: start,
    notAfter: Math.min(own.notAfter, signing.notAfter),
    spki: request.spki,
    extensions: [
      authorityKeyIdentifier(signing.keyId),
      subjectKeyIdentifier(keyId),
      basicConstraints({ pathLength }),
      keyUsage(['keyCertSign', 'cRLSign']),
      subjectAltName([{ uri: `spiffe://${request.trustDomain}` }]),
      ...(purposes === null ? [] : [extKeyUsage(purposes)]),
      ...('sign' in parent ? [] : [caIssuers(parent.caUrl)]),
    ],
  })
  lintCa(tbs, { signing, pathLength, trustDomain: request.trustDomain })
  const { algorithm } = signing.signer
  return assemble({ tbs, algorithm, signature: await signing.signer.sign(tbs) })
}
