import { X509Certificate } from 'node:crypto'
import type { TrustRecord } from '#shared/trust-bundle'

/**
 * The roots of a bundle that are new and for which a root that is believed already vouches: with its key it has signed
 * NewWithOld, a certificate for the new root's name and key (RFC 4210 section 4.4). PEM; a bundle that cannot be read
 * has none.
 */
export function vouchedFor({ roots, links }: TrustRecord, believed: readonly string[]): string[] {
  try {
    const known = parse(believed)
    const own = parse(links).filter((link) => known.some((root) => isSignedBy(link, root)))
    return parse(roots)
      .filter((root) => !known.some(({ fingerprint256 }) => fingerprint256 === root.fingerprint256))
      .filter((root) => root.ca && isSignedBy(root, root) && own.some((link) => isSameCa(link, root)))
      .map((root) => root.toString())
  } catch {
    return []
  }
}

function parse(pems: readonly string[]): X509Certificate[] {
  return pems.map((pem) => new X509Certificate(pem))
}

function isSignedBy(below: X509Certificate, above: X509Certificate): boolean {
  return below.checkIssued(above) && below.verify(above.publicKey)
}

function isSameCa(link: X509Certificate, root: X509Certificate): boolean {
  return link.ca && link.subject === root.subject && link.publicKey.equals(root.publicKey)
}
