import { X509Certificate } from 'node:crypto'
import { existsSync, readFileSync } from 'node:fs'
import { readSecretFile, writeFileDurably, writeSecretFile } from '#shared/files'
import { generateKey, privateKeyPem, readPrivateKey, sha256Hex, spkiDer } from '#shared/pki/keys'
import { derToPem } from '#shared/pki/pem'
import { issueCertificate } from './ca/issue.ts'
import { endedCa } from './ca/load-ca.ts'
import type { Deps } from './deps.ts'
import { newSerial } from './issuance.ts'
import type { Actor, InfrastructureKind } from './registry/registry.ts'
import { BACKDATE_MS } from './signing-clock.ts'

/** Life of server, broker and operator certificates, ms. */
export const OWN_LIFETIME_MS = 30 * 86_400_000
/** From this share of its life on a certificate of the plane is renewed. */
const RENEW_AT = 2 / 3

type IssueDeps = Pick<Deps, 'registry' | 'authority' | 'signingClock' | 'now' | 'random'>

export interface OwnRequest {
  readonly kind: Exclude<InfrastructureKind, 'responder'>
  readonly owner: string
  readonly spki: Buffer
  /** DNS names and addresses for the SAN; none for an operator. */
  readonly hosts: readonly string[]
  readonly by: Actor
}

/** Signs a certificate of the infrastructure CA and records it before anybody gets it. @throws MusterError clock_wrong */
export async function issueOwn(
  deps: IssueDeps,
  request: OwnRequest,
): Promise<{ der: Buffer; notAfter: number }> {
  const now = Math.floor(deps.now() / 1000) * 1000 // certificates know whole seconds
  deps.signingClock.check(now)
  const issuer = deps.authority.infrastructure
  if (now >= issuer.notAfter) throw endedCa({ kind: 'infrastructure', notAfter: issuer.notAfter, now })
  const serial = newSerial(deps)
  const notBefore = now - BACKDATE_MS
  const notAfter = Math.min(now + OWN_LIFETIME_MS, issuer.notAfter)
  const { der, fingerprint } = await issueCertificate(issuer, {
    profile: request.kind,
    id: request.owner,
    spki: request.spki,
    serial,
    notBefore,
    notAfter,
    hosts: request.hosts,
  })
  const { kind, owner } = request
  await deps.registry.recordInfrastructure(
    { fingerprint, serial, issuer: issuer.id, kind, owner, notBefore, notAfter },
    { now, by: request.by },
  )
  deps.signingClock.issued(notBefore)
  return { der, notAfter }
}

/** A certificate of this process, in two files. */
export interface OwnPair {
  /** Leaf and infrastructure CA, PEM. */
  readonly certificate: string
  readonly key: string
  readonly notAfter: number
}

export interface OwnFiles {
  readonly kind: 'server' | 'operator'
  readonly owner: string
  readonly hosts: readonly string[]
  readonly certificateFile: string
  readonly keyFile: string
}

/** The pair in the files while it is good: recorded, one pair, for these hosts, and not yet due for renewal. Else a new one. */
export async function keepOwn(deps: IssueDeps, files: OwnFiles): Promise<OwnPair> {
  const kept = readOwn(deps, files)
  if (kept && (await isRecorded(deps, kept))) return kept
  const key = generateKey()
  const { kind, owner, hosts } = files
  const { der, notAfter } = await issueOwn(deps, { kind, owner, hosts, spki: spkiDer(key), by: 'plane' })
  const pair = {
    certificate: derToPem(der, 'CERTIFICATE') + deps.authority.infrastructureChain.join(''),
    key: privateKeyPem(key),
    notAfter,
  }
  // A crash between the two leaves a pair that does not belong together, which the next start replaces.
  writeSecretFile(files.keyFile, pair.key)
  writeFileDurably(files.certificateFile, pair.certificate)
  return pair
}

function readOwn(deps: IssueDeps, files: OwnFiles): OwnPair | null {
  if (!existsSync(files.certificateFile) || !existsSync(files.keyFile)) return null
  const certificate = readFileSync(files.certificateFile, 'utf8')
  const key = readSecretFile(files.keyFile).toString('utf8')
  try {
    const leaf = new X509Certificate(certificate)
    const notBefore = leaf.validFromDate.getTime()
    const notAfter = leaf.validToDate.getTime()
    const isGood =
      leaf.checkPrivateKey(readPrivateKey(key)) &&
      leaf.checkIssued(new X509Certificate(deps.authority.infrastructure.pem)) &&
      files.hosts.every((host) => leaf.checkHost(host) ?? leaf.checkIP(host)) &&
      deps.now() >= notBefore && // a clock that was ahead may have made it
      deps.now() < notBefore + (notAfter - notBefore) * RENEW_AT
    return isGood ? { certificate, key, notAfter } : null
  } catch {
    return null // damaged files are replaced like old ones
  }
}

/** A registry that was restored may not know it. */
async function isRecorded(deps: IssueDeps, pair: OwnPair): Promise<boolean> {
  const fingerprint = sha256Hex(new X509Certificate(pair.certificate).raw)
  const recorded = await deps.registry.findInfrastructure(fingerprint)
  return recorded !== null && recorded.revokedAt === null
}
