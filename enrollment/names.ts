import { caDirectory, creationState, readAuthority } from './ca/ca-directory.ts'

/** Names that stand in every certificate, and so are fixed at the first run. */
export interface Names {
  /** Host part of the SAN URIs. */
  readonly trustDomain: string
  /** Public base URL of CRLs and CA certificates. */
  readonly httpBase: string
}

const DEFAULT_TRUST_DOMAIN = 'muster.local'

/**
 * The names that the authority was created with, or at the first run those that are asked for. Ports and hosts may
 * change later; the URL in the certificates stays. Another trust domain is refused by `openAuthority`.
 * @throws MusterError directory_unusable
 */
export function namesFor(ca: string, wanted: { trustDomain: string | null; httpBase: string }): Names {
  const directory = caDirectory(ca)
  if (creationState(directory) !== 'complete') {
    return { trustDomain: wanted.trustDomain ?? DEFAULT_TRUST_DOMAIN, httpBase: wanted.httpBase }
  }
  const { trustDomain, httpBase } = readAuthority(directory)
  return { trustDomain: wanted.trustDomain ?? trustDomain, httpBase }
}
