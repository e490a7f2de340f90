import { MusterError } from '#shared/errors'
import type { Issuer } from './issue.ts'
import type { Tokens } from './pkcs11/tokens.ts'

export interface AuthorityOptions {
  readonly directory: string
  /** Part of every identity; fixed at the first open. At most 64 lower-case letters, digits, `.`, `_`, `-`. */
  readonly trustDomain: string
  /** `http://host:port` under which CRLs and CA certificates are served; fixed at the first open. */
  readonly httpBase: string
  readonly passphrase: string
  /** For keys that lie in security modules. */
  readonly tokens?: Tokens | null
  /** As of `KeyAccess`. */
  checkClock?(): void
  /** PKCS#11 URIs of the keys that it is to be created with; files without. */
  readonly keys?: KeyUris
  /** CRLs that share the certificates of the device CA; used when it is created, and then fixed. */
  readonly crlShards?: number
  /** Ms since 1970. */
  readonly now: number
  /** `later`: the caller asks `checkClock` himself, once he knows which CAs are still in use. */
  readonly clock?: 'check' | 'later'
  /** Of the CAs when they are created, ms. */
  readonly lifetimes?: Lifetimes
  /** Called after each step of a creation (tests cut it there). */
  readonly reached?: (point: string) => void
}

/** Which keys lie in a security module, and where. */
export interface KeyUris {
  readonly root?: string
  readonly device?: string
  readonly infrastructure?: string
}

/** How long CA certificates live, ms. An issuing CA ends no later than its root. */
export interface Lifetimes {
  readonly rootMs: number
  readonly issuingMs: number
}

/** The two issuing CAs, opened for signing, and the root above them. */
export interface Authority {
  readonly trustDomain: string
  /** SHA-256 of the root certificate: its name under `/ca/`. */
  readonly rootId: string
  readonly rootPem: string
  /** True when this call created it. */
  readonly created: boolean
  readonly device: Issuer
  readonly infrastructure: Issuer
}

const TRUST_DOMAIN = /^[a-z0-9](?:[a-z0-9._-]{0,62}[a-z0-9])?$/

/** @throws MusterError config_invalid */
export function checkOptions({ trustDomain, httpBase, passphrase }: AuthorityOptions): void {
  if (!TRUST_DOMAIN.test(trustDomain)) {
    throw invalid(`trust domain "${trustDomain}": at most 64 lower-case letters, digits, ".", "_", "-"`)
  }
  const url = URL.canParse(httpBase) ? new URL(httpBase) : null
  if (url?.protocol !== 'http:' || url.origin !== httpBase) {
    throw invalid(`http base "${httpBase}": it must have the form http://host:port`)
  }
  if (passphrase === '') throw invalid('passphrase: it is empty')
}

export function invalid(what: string): MusterError {
  return new MusterError('config_invalid', `Cannot open the authority: ${what}`)
}
