import type { X509Certificate } from 'node:crypto'

export interface RootLink {
  readonly role: 'new-with-old' | 'old-with-new'
  readonly certificate: X509Certificate
}

/** True when the name and the signature say so. */
export function isIssuedBy(below: X509Certificate, above: X509Certificate): boolean {
  return below.ca && below.checkIssued(above) && below.verify(above.publicKey)
}

/**
 * The certificates by which two roots of one name vouch for each other (RFC 4210 section 4.4); null when one of them is
 * missing, or the names differ.
 */
export function findLinks(
  certificates: readonly X509Certificate[],
  { root, newRoot }: { root: X509Certificate; newRoot: X509Certificate },
): RootLink[] | null {
  if (root.subject !== newRoot.subject) return null
  const between = (subject: X509Certificate, issuer: X509Certificate) =>
    certificates.find(
      (one) =>
        isIssuedBy(one, issuer) && one.subject === subject.subject && one.publicKey.equals(subject.publicKey),
    )
  const [newWithOld, oldWithNew] = [between(newRoot, root), between(root, newRoot)]
  if (newWithOld === undefined || oldWithNew === undefined) return null
  return [
    { role: 'new-with-old', certificate: newWithOld },
    { role: 'old-with-new', certificate: oldWithNew },
  ]
}
