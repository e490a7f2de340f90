/** What goes into the registry and comes out of it: the types of its port. */
import type { CertificateView, DeviceView, Naming, Reason } from '#shared/api'
import type { Evidence, RefusalErrorCode } from '#shared/errors'
import type { Change, Scope } from '#shared/feed'
import type { DeviceId, IdentityKind } from '#shared/identity/device'
import type { KeyType } from '#shared/pki/spki'
import type { Idevid, NewClaim } from './bootstrap-records.ts'

/** Who acts: `operator:<name>`, `token:<id>`, `device:<id>`, `broker:<id>` or `plane` (the service itself). */
export type Actor = string

/** Every write says when and by whom, for the audit log. */
export interface Act {
  readonly now: number
  readonly by: Actor
  /** Holds and their undoing: on a full disk they take the space that is reserved for them. */
  readonly cannotWait?: true
}

// ---- issuance ----

/** The CA that is about to sign: certificates end no later than it does. */
export interface IssuingCa {
  readonly id: string
  readonly notAfter: number
}

/** What a request asks for that only the profile of the fleet can grant. */
export interface DeviceWish {
  readonly key: { readonly type: KeyType; readonly name: string }
  /** SAN entries beside the SPIFFE id: `URI:…`, `DNS:…`. */
  readonly names: readonly string[]
  readonly organization: string | null
  readonly organizationalUnit: string | null
  /** Why the request is not linked to its TLS connection; null when it is. */
  readonly unlinked: string | null
  /** The plane has made the key. */
  readonly serverKey?: true
}

/** A SAN entry; a host is a DNS name. */
export type SanName = { readonly uri: string } | { readonly host: string }

/** What the profile of the fleet puts into a certificate beside the identity. */
export interface IssuedNames {
  readonly subject: { readonly organization: string | null; readonly organizationalUnit: string | null }
  readonly names: readonly SanName[]
}

export interface EnrollmentIntent {
  readonly now: number
  /** SHA-256 of the token, or of the claim certificate, lower-case hex. */
  readonly tokenHash: string
  /** SHA-256 of the SubjectPublicKeyInfo of the request, lower-case hex. */
  readonly spkiHash: string
  /** The same of the key that the plane has made: the request's own then only tells one application from another. */
  readonly serverKey?: string
  /** CN of the CSR, already checked to be a device id; null when there was none. */
  readonly commonName: DeviceId | null
  /** The EST label, which must name the token's batch; null without one. */
  readonly label: string | null
  /** Of the manufacturer's certificate that the device has presented; then the hash is that of the manufacturer. */
  readonly idevid?: Idevid
  /** Used when the batch's naming is `assigned`. */
  readonly assignedId: DeviceId
  readonly wish: DeviceWish
  /** 16 random octets, hex: the serial if a new one is needed. */
  readonly serial: string
  readonly issuer: IssuingCa
}

export interface RenewalIntent {
  readonly now: number
  /** Fingerprint of the certificate that was presented over TLS. */
  readonly presented: string
  readonly spkiHash: string
  readonly wish: DeviceWish
  readonly serial: string
  readonly issuer: IssuingCa
}

export interface ServiceIntent extends Act {
  readonly id: DeviceId
  readonly spkiHash: string
  readonly serial: string
  readonly issuer: IssuingCa
}

/** An enrollment that an operator has to approve: the use of the token is reserved, nothing else has happened. */
export interface Application {
  readonly waitsFor: 'approval'
  readonly device: DeviceId
  /** SHA-256 of the SubjectPublicKeyInfo, hex: the key that an approval is for. */
  readonly spki: string
  readonly since: number
}

/** What has been recorded to be signed. `certificate` is the DER when an identical request was answered before. */
export interface Issuance extends IssuedNames {
  readonly serial: string
  readonly device: DeviceId
  readonly kind: IdentityKind
  readonly fleet: string
  readonly issuer: string
  readonly notBefore: number
  readonly notAfter: number
  /** The window in which the device is to ask for the next certificate, chosen once. */
  readonly renewAfter: number
  readonly renewBefore: number
  readonly certificate: Buffer | null
}

export interface SignedCertificate {
  readonly der: Buffer
  /** SHA-256 of the DER, lower-case hex. */
  readonly fingerprint: string
}

/**
 * Signs what an intent is recording while it is not committed yet, so that both are one commit; null when the key cannot
 * sign at once. It may be called again for the same issuance, when a commit has to be repeated.
 */
export type SignNow = (issuance: Issuance) => SignedCertificate | null

/** A certificate, the device it belongs to and the hold it is under, as admission sees them. */
export interface Credential {
  readonly certificate: CertificateView
  readonly device: DeviceView
  readonly hold: { readonly id: string; readonly scope: Scope } | null
  /** DER, for a renewal that must carry the same subject. */
  readonly der: Buffer
}

// ---- tokens ----

export interface NewToken extends Act {
  /** Public name of the token, unique. */
  readonly id: string
  readonly hash: string
  readonly batch: string
  readonly uses: number
  readonly expiresAt: number | null
  /** Ids that may enroll with it; null for no list. They become `expected` devices. */
  readonly devices: readonly DeviceId[] | null
  readonly naming: Naming | null
  /** Whether an operator has to approve each device that enrolls with it. */
  readonly approval: boolean
  /** The certificate that is to be its secret, when it is a claim. */
  readonly claim?: NewClaim
}

export interface NewReissue extends Act {
  readonly id: string
  readonly hash: string
  readonly device: DeviceId
  readonly expiresAt: number | null
}

/** A device that may enroll without approval; with the one key, when it is named. */
export interface NewDevice extends Act {
  readonly id: DeviceId
  readonly batch: string
  /** SHA-256 of the SubjectPublicKeyInfo, hex; null for any key. */
  readonly spki: string | null
}

// ---- plans ----

export interface NewPlan extends Act {
  readonly id: string
  readonly action: 'hold' | 'revoke'
  /** Either one scope, or the members of a scope of kind `plan`. */
  readonly target:
    | { readonly scope: Exclude<Scope['kind'], 'plan'>; readonly id: string }
    | { readonly devices: readonly DeviceId[] }
  readonly reason: Reason
  readonly undoMs: number
  /** Brokers forget what the devices have retained, too. */
  readonly purgeRetained: boolean
  /** A plan that has not been applied by then is expired. */
  readonly expiresAt: number
}

export interface Finalised {
  /** True when the last member has been revoked and the plan is final. */
  readonly done: boolean
  readonly revoked: number
}

// ---- rotations ----

export interface NewRotation extends Act {
  readonly id: string
  readonly target:
    | { readonly scope: 'device' | 'batch' | 'fleet'; readonly id: string }
    | { readonly devices: readonly DeviceId[] }
  /** The devices are spread over so long, ms. */
  readonly overMs: number
}

/** A certificate whose window a rotation has moved. */
export interface RotationMember {
  readonly row: number
  readonly device: DeviceId
  readonly state: 'rotated' | 'waiting' | 'late' | 'gone'
}

// ---- the plane's own certificates ----

export type InfrastructureKind = 'server' | 'broker' | 'operator' | 'responder'

export interface InfrastructureCertificate {
  readonly fingerprint: string
  readonly serial: string
  readonly kind: InfrastructureKind
  /** The CA that has issued it; null when that was not recorded. */
  readonly issuer: string | null
  /** Broker id, operator name, or name of the server. */
  readonly owner: string
  readonly notBefore: number
  readonly notAfter: number
  readonly revokedAt: number | null
}

// ---- revocation data ----

export interface RevokedEntry {
  readonly serial: string
  /** The commit of the hold that it began with. */
  readonly revokedAt: number
  readonly reason: Reason
}

/** A revocation with what a list needs to know about it. `mark` rises with every revocation of the registry. */
export interface ListedRevocation extends RevokedEntry {
  readonly mark: number
  readonly notAfter: number
}

/** What a revocation service says about a certificate that was issued; expired and superseded ones are good. */
export type RevocationStatus =
  | { readonly state: 'good' }
  | { readonly state: 'revoked'; readonly since: number; readonly reason: Reason }
  | { readonly state: 'held'; readonly since: number }

export interface RefusalSighting {
  readonly now: number
  readonly code: RefusalErrorCode
  readonly evidence: Evidence
  readonly device: string | null
  readonly fingerprint: string | null
  readonly address: string
}

export interface AuditEntry {
  readonly sequence: number
  readonly at: number
  readonly by: Actor
  readonly action: string
  readonly subject: string
  /** First and last position of the changes that the intent made; null when it made none. */
  readonly positions: readonly [number, number] | null
  /** SHA-256 over the previous hash and this entry, hex. */
  readonly hash: string
}

/** An audit entry by its number and hash. */
export type AuditMark = Pick<AuditEntry, 'sequence' | 'hash'>

export interface StatusCounts {
  readonly expected: number
  readonly pending: number
  readonly active: number
  readonly retired: number
  readonly online: number
  readonly synthetic: number
  readonly holds: number
  readonly refusedLastHour: number
}

export interface PositionedChange {
  readonly position: number
  readonly at: number
  readonly change: Change
}
