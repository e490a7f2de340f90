/** What the certificates of each kind carry, as data; `template.ts` writes it, `lint.ts` checks it. */
import { type PeerKind, PURPOSES, SERVES_HOSTS } from '#shared/identity/peer'
import type { KeyUsage } from '#shared/pki/extensions'

/** Which of the two issuing CAs signs a kind: listeners trust one of them each. */
export type IssuerKind = 'device' | 'infrastructure'

export interface Profile {
  readonly issuer: IssuerKind
  readonly keyUsage: readonly KeyUsage[]
  /** Extended key usages, dotted. */
  readonly purposes: readonly string[]
  /** Whether the SAN names hosts beside the identity. */
  readonly hasHosts: boolean
}

function profile(kind: PeerKind, issuer: IssuerKind): Profile {
  return { issuer, keyUsage: ['digitalSignature'], purposes: PURPOSES[kind], hasHosts: SERVES_HOSTS[kind] }
}

export const PROFILES = {
  device: profile('device', 'device'),
  service: profile('service', 'device'),
  claim: profile('claim', 'device'),
  server: profile('server', 'infrastructure'),
  broker: profile('broker', 'infrastructure'),
  operator: profile('operator', 'infrastructure'),
} as const satisfies Record<PeerKind, Profile>
