import { MusterError } from '#shared/errors'

/** A backup that was made. */
export interface BackupResult {
  readonly madeAt: number
  readonly commit: number
  readonly files: readonly { readonly name: string; readonly octets: number; readonly sha256: string }[]
  readonly leftOut: readonly string[]
}

/** What a restore found and did. */
export interface RestoreResult {
  readonly madeAt: number
  readonly replayed: number
  readonly lost: readonly string[]
  readonly revokedAgain: readonly string[]
}

/**
 * Work on the data directory of a plane on this machine, which its admin API cannot do: it needs the CA's files, or a
 * plane that is stopped. Handed in by `bin/muster.mjs`, because the operator's tools know nothing of the services.
 */
export interface Maintenance {
  backup(request: { data: string; out: string; journal: string | null }): BackupResult
  restore(request: {
    data: string
    backup: string
    journal: string | null
    acceptLoss: boolean
  }): Promise<RestoreResult>
  /** Makes the CAs with keys in security modules; returns the SHA-256 of the root. */
  init(request: CaNames & { data: string; keys?: KeyUris }): Promise<string>
  initOffline(request: CaNames & { data: string; keys?: KeyUris }): Promise<string[]>
  signIssuer(
    request: CaNames & { rootDirectory: string; csr: string; rootKey?: string | null },
  ): Promise<string>
  /** Makes a root that follows the one in another directory; returns its SHA-256. */
  nextRoot(
    request: CaNames & { rootDirectory: string; newRootDirectory: string; rootKey?: string | null },
  ): Promise<string>
  install(request: { data: string; certificates: readonly string[] }): Promise<string>
  /** True while the plane in the directory has keys and waits for its first certificates. */
  isAwaiting(request: { data: string }): boolean
}

/** What is in every certificate. */
interface CaNames {
  readonly trustDomain: string
  readonly httpBase: string
}

/** PKCS#11 URIs of keys that lie in a security module. */
export interface KeyUris {
  readonly root?: string
  readonly device?: string
  readonly infrastructure?: string
}

export function noMaintenance(): never {
  throw new MusterError('unsupported', 'Cannot do it here: this program works on no data directory')
}
