import { X509Certificate } from 'node:crypto'
import { existsSync, readFileSync } from 'node:fs'
import { join } from 'node:path'
import { readSecretFile, writeFileDurably, writeSecretFile } from '#shared/files'
import { generateKey, privateKeyPem, readPrivateKey, sha256Hex, spkiDer } from '#shared/pki/keys'
import { derToPem } from '#shared/pki/pem'
import type { Issuer } from './ca/issue.ts'
import { issueResponderCertificate, type Responder } from './ca/ocsp.ts'
import { keySigner } from './ca/signer.ts'
import type { Deps } from './deps.ts'
import { newSerial } from './issuance.ts'
import type { IssuerResponder } from './ocsp.ts'
import { BACKDATE_MS } from './signing-clock.ts'

/** Nobody can revoke a certificate that says it need not be checked, so it does not live long, ms. */
const LIFETIME_MS = 7 * 86_400_000
/** From this share of its life on it is renewed. */
const RENEW_AT = 2 / 3

type ResponderDeps = Pick<Deps, 'registry' | 'authority' | 'signingClock' | 'now' | 'random'>

/**
 * Who signs OCSP responses for each device CA that has not ended; the pairs lie in the directory.
 * @throws MusterError clock_wrong, key_file_insecure
 */
export async function keepResponders(deps: ResponderDeps, directory: string): Promise<IssuerResponder[]> {
  const kept: IssuerResponder[] = []
  for (const issuer of deps.authority.deviceIssuers) {
    if (deps.now() > issuer.notAfter) continue
    const name = join(directory, `ocsp-${issuer.id.slice(0, 16)}`)
    const files = { issuer, certificateFile: `${name}.crt`, keyFile: `${name}.key` }
    kept.push({ issuer, responder: await keepResponder(deps, files) })
  }
  return kept
}

interface ResponderFiles {
  readonly issuer: Issuer
  readonly certificateFile: string
  readonly keyFile: string
}

/** The pair in the files while it is good and recorded, else a new one. */
async function keepResponder(deps: ResponderDeps, files: ResponderFiles): Promise<Responder> {
  const kept = readKept(deps, files)
  if (kept && (await isRecorded(deps, kept))) return kept
  const key = generateKey()
  const { certificate, notAfter } = await issue(deps, { issuer: files.issuer, spki: spkiDer(key) })
  // A crash between the two leaves a pair that does not belong together, which the next start replaces.
  writeSecretFile(files.keyFile, privateKeyPem(key))
  writeFileDurably(files.certificateFile, derToPem(certificate, 'CERTIFICATE'))
  return { certificate, notAfter, signer: keySigner(key) }
}

async function issue(
  deps: ResponderDeps,
  { issuer, spki }: { issuer: Issuer; spki: Buffer },
): Promise<{ certificate: Buffer; notAfter: number }> {
  const now = Math.floor(deps.now() / 1000) * 1000 // certificates know whole seconds
  deps.signingClock.check(now)
  const serial = newSerial(deps)
  const notBefore = now - BACKDATE_MS
  const notAfter = Math.min(now + LIFETIME_MS, issuer.notAfter)
  const certificate = await issueResponderCertificate(issuer, { spki, serial, notBefore, notAfter })
  const fingerprint = sha256Hex(certificate)
  await deps.registry.recordInfrastructure(
    { fingerprint, serial, issuer: issuer.id, kind: 'responder', owner: 'ocsp', notBefore, notAfter },
    { now, by: 'plane' },
  )
  deps.signingClock.issued(notBefore)
  return { certificate, notAfter }
}

function readKept(
  deps: ResponderDeps,
  { issuer, certificateFile, keyFile }: ResponderFiles,
): Responder | null {
  if (!existsSync(certificateFile) || !existsSync(keyFile)) return null
  const pem = readSecretFile(keyFile).toString('utf8')
  try {
    const key = readPrivateKey(pem)
    const certificate = new X509Certificate(readFileSync(certificateFile))
    const notBefore = certificate.validFromDate.getTime()
    const notAfter = certificate.validToDate.getTime()
    const isGood =
      certificate.checkPrivateKey(key) &&
      certificate.checkIssued(new X509Certificate(issuer.pem)) &&
      deps.now() < notBefore + (notAfter - notBefore) * RENEW_AT
    return isGood ? { certificate: certificate.raw, notAfter, signer: keySigner(key) } : null
  } catch {
    return null // damaged files are replaced like old ones
  }
}

/** A registry that was restored may not know it. */
async function isRecorded({ registry }: ResponderDeps, { certificate }: Responder): Promise<boolean> {
  return (await registry.findInfrastructure(sha256Hex(certificate))) !== null
}
