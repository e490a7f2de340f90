import type { RefusalErrorCode } from '#shared/errors'
import { isAllowed } from '#shared/identity/device'
import type { Peer } from '#shared/identity/peer'
import type { Refusal } from '../refusals.ts'
import type { AdmissionRecord } from '../replica/replica.ts'

/** Who a certificate says that it is, once its profile has been checked. */
export type Identity = Pick<Peer, 'kind' | 'id' | 'fingerprint' | 'serial'>

export interface AdmissionRequest {
  readonly record: AdmissionRecord | null
  /** Null at the gate, where CONNECT has not been read: everything else is judged already. */
  readonly clientId: string | null
  readonly peer: Identity
  readonly now: number
  /** How long the registry has not been heard, ms. */
  readonly silentMs: number
  readonly maxStalenessMs: number
}

export type Admission = { readonly admitted: true } | ({ readonly admitted: false } & Refusal)

/** What may follow `:` in the client id of a service. */
const SUFFIX = /^[A-Za-z0-9._-]{1,64}$/

/** Decides whether a certificate may connect now, under this client id. What is not known is not admitted. */
export function admit(request: AdmissionRequest): Admission {
  const { record, peer, now } = request
  if (record === null) return refuse('unrecorded', { fingerprint: peer.fingerprint, serial: peer.serial })
  const violation = disagreement(record, peer)
  if (violation !== null) return refuse('profile', { violation })
  const code = stillLive(record, now)
  if (code !== null) return { admitted: false, ...refusalOf(record, code, now) }
  const { silentMs, maxStalenessMs, clientId } = request
  if (silentMs > maxStalenessMs) return refuse('stale', { silentMs, maxStalenessMs })
  if (clientId !== null && !isClientIdOf(peer, clientId)) {
    return refuse('idmismatch', { clientId, expected: peer.id })
  }
  return { admitted: true }
}

/**
 * Why this certificate may not have a session any more; null while it may. A certificate expires with the end of
 * its last valid second, the one that `notAfter` names (RFC 5280 section 4.1.2.5).
 */
export function stillLive(record: AdmissionRecord | null, now: number): RefusalErrorCode | null {
  if (record === null) return 'unrecorded'
  const { certificate, device, hold } = record
  if (certificate.state === 'revoked') return 'revoked'
  if (device.state === 'retired') return 'retired'
  if (hold !== null) return 'held'
  if (!isAllowed('connect', device.state)) return 'pending'
  if (certificate.state === 'superseded') return 'superseded'
  if (certificate.supersededFrom !== null && now >= certificate.supersededFrom) return 'superseded'
  if (now >= certificate.notAfter + 1000) return 'expired'
  if (now < certificate.notBefore) return 'notyet'
  return certificate.state === 'issued' || certificate.state === 'active' ? null : 'unrecorded'
}

/** When the record ends a session by itself, ms since 1970, unless a change does so before. */
export function liveUntil(record: AdmissionRecord): number {
  const { notAfter, supersededFrom } = record.certificate
  return Math.min(notAfter + 1000, supersededFrom ?? Number.POSITIVE_INFINITY)
}

/** A refusal with the evidence that `shared/refusals.ts` promises for its code. */
export function refusalOf(record: AdmissionRecord | null, code: RefusalErrorCode, now: number): Refusal {
  if (record === null) return { code, evidence: {} }
  const { certificate, device, hold } = record
  const { serial } = certificate
  switch (code) {
    case 'revoked':
      return {
        code,
        evidence: { serial, revokedAt: shownTime(certificate.revokedAt), reason: certificate.reason ?? '' },
      }
    case 'held':
      return {
        code,
        evidence: { hold: hold?.id ?? '', scope: hold === null ? '' : `${hold.scope.kind} ${hold.scope.id}` },
      }
    case 'superseded':
      return { code, evidence: { serial, supersededAt: shownTime(certificate.supersededFrom) } }
    case 'expired':
      return { code, evidence: { notAfter: shownTime(certificate.notAfter), now: shownTime(now) } }
    case 'notyet':
      return { code, evidence: { notBefore: shownTime(certificate.notBefore), now: shownTime(now) } }
    default:
      return { code, evidence: { state: device.state } }
  }
}

/** A device is its own client id; a service may open several clients, told apart by what follows `:`. */
function isClientIdOf(peer: Identity, clientId: string): boolean {
  if (clientId === peer.id) return true
  const own = `${peer.id}:`
  return peer.kind === 'service' && clientId.startsWith(own) && SUFFIX.test(clientId.slice(own.length))
}

/** The registry's row decides who this is; a certificate that says something else is refused. */
function disagreement({ certificate, device }: AdmissionRecord, peer: Identity): string | null {
  if (certificate.fingerprint !== peer.fingerprint) return 'the record is of another certificate'
  if (certificate.device !== device.id || device.id !== peer.id) return 'the record names another identity'
  if (device.kind !== peer.kind) return 'the record names another kind'
  return null
}

function refuse(code: RefusalErrorCode, evidence: Refusal['evidence']): Admission {
  return { admitted: false, code, evidence }
}

function shownTime(at: number | null): string {
  return at === null ? '' : new Date(at).toISOString()
}
