/** What a certificate, a key and a CA must be before a listener uses them. */
import { X509Certificate } from 'node:crypto'
import { isIP } from 'node:net'
import { checkPeer } from '#shared/identity/peer'
import { readPrivateKey } from '#shared/pki/keys'
import { splitPem } from '#shared/pki/pem'

export interface Hosted {
  now(): number
  readonly trustDomain: string
  /** Names that the certificate must have; at least one of any when none is given. */
  readonly hosts?: readonly string[]
}

export interface Pair {
  /** Leaf first, PEM. */
  readonly certificate: string
  readonly key: string
  /** Trust anchors, PEM. */
  readonly root: string
}

/**
 * Why the pair cannot serve; null when it can: it parses, the key is the leaf's, the leaf is a broker's by its
 * profile (extended key usage, SAN, dates) and names the hosts, and each certificate is signed by the next, up to a root.
 */
export function chainFault(pair: Pair, hosted: Hosted): string | null {
  try {
    const [leaf, ...cas] = splitPem(pair.certificate).map((pem) => new X509Certificate(pem))
    if (leaf === undefined) return 'the certificate is missing'
    if (!leaf.checkPrivateKey(readPrivateKey(pair.key))) return 'the key does not belong to the certificate'
    checkPeer(leaf, { trustDomain: hosted.trustDomain, kinds: ['broker'], now: hosted.now() })
    const unnamed = unnamedHost(leaf, hosted.hosts ?? [])
    if (unnamed !== null) return `the certificate does not name ${unnamed}`
    return pathFault([leaf, ...cas], { roots: pair.root, now: hosted.now() })
  } catch (error) {
    return `the certificate or its key cannot be used: ${(error as Error).message}`
  }
}

function unnamedHost(leaf: X509Certificate, hosts: readonly string[]): string | null {
  const isNamed = (host: string) =>
    (isIP(host) === 0 ? leaf.checkHost(host) : leaf.checkIP(host)) !== undefined
  if (hosts.length === 0) return /(^|, )(DNS|IP Address):/.test(leaf.subjectAltName ?? '') ? null : 'a host'
  return hosts.find((host) => !isNamed(host)) ?? null
}

export interface Anchors {
  /** PEM, one or several. */
  readonly roots: string
  readonly now: number
}

/**
 * Those of the CAs that may vouch for clients, and a sentence for each other one. A CA may lead to a root over another
 * one of them: after a change of the root, over the new root as the old one has signed it.
 */
export function trustedIssuers(
  pems: readonly string[],
  anchors: Anchors,
): { readonly trust: string[]; readonly faults: string[] } {
  const trust: string[] = []
  let left = [...pems]
  for (;;) {
    const known = { ...anchors, roots: [anchors.roots, ...trust].join('\n') }
    const found = left.filter((pem) => issuerFault(pem, known) === null)
    if (found.length === 0) break
    trust.push(...found)
    left = left.filter((pem) => !found.includes(pem))
  }
  return { trust, faults: left.map((pem) => issuerFault(pem, anchors) ?? '') }
}

function issuerFault(pem: string, anchors: Anchors): string | null {
  try {
    const issuer = new X509Certificate(pem)
    if (!issuer.ca) return `the issuer ${named(issuer)} is no CA`
    const fault = dateFault(issuer, anchors.now)
    if (fault !== null) return fault
    return pathFault([issuer], anchors)
  } catch (error) {
    return `an issuer cannot be read: ${(error as Error).message}`
  }
}

/** Each certificate above the first must be a CA in its time that has signed the one below it, up to a root. */
function pathFault(path: readonly X509Certificate[], { roots, now }: Anchors): string | null {
  const anchors = splitPem(roots).map((pem) => new X509Certificate(pem))
  let below: X509Certificate | null = null
  for (const certificate of path) {
    if (below !== null) {
      if (!isSignedBy(below, certificate)) return `${named(below)} is not signed by the next in its chain`
      const fault = dateFault(certificate, now)
      if (fault !== null) return fault
    }
    if (anchors.some((anchor) => isSignedBy(certificate, anchor) && dateFault(anchor, now) === null))
      return null
    below = certificate
  }
  return `the chain of ${path[0] === undefined ? 'nothing' : named(path[0])} does not end at a root that is trusted and in its time`
}

function isSignedBy(certificate: X509Certificate, issuer: X509Certificate): boolean {
  return issuer.ca && certificate.checkIssued(issuer) && certificate.verify(issuer.publicKey)
}

/** The last second is valid to its end (RFC 5280 section 4.1.2.5). */
function dateFault(certificate: X509Certificate, now: number): string | null {
  if (now < certificate.validFromDate.getTime())
    return `${named(certificate)} is valid only from ${certificate.validFrom}`
  if (now >= certificate.validToDate.getTime() + 1000)
    return `${named(certificate)} has expired: ${certificate.validTo}`
  return null
}

function named({ subject }: X509Certificate): string {
  return `"${(subject ?? '').replaceAll('\n', ', ').slice(0, 200)}"`
}
