/** Issuing CAs that are to follow when the root is kept elsewhere: their keys wait here for certificates. */
import { X509Certificate } from 'node:crypto'
import { existsSync } from 'node:fs'
import { isMusterError, MusterError } from '#shared/errors'
import { readSecretFile, writeSecretFile } from '#shared/files'
import { readCertificate } from '#shared/pki/certificate'
import { sha256Hex, spkiDer } from '#shared/pki/keys'
import { derToPem } from '#shared/pki/pem'
import { purposesOf } from './ca-certificate.ts'
import { type CaDirectory, prepareGenerations, writeGeneration, writeRootOf } from './ca-directory.ts'
import { requestFor } from './ca-request.ts'
import { type KeyAccess, type MadeKey, makeNextKey, reopenKey } from './key-access.ts'
import { lintCa } from './lint.ts'
import type { NextCertificate } from './next-generation.ts'
import { COMMON_NAME, KINDS, type OfflineNames } from './offline-root.ts'
import { schemeOf } from './pkcs11/scheme.ts'
import type { IssuerKind } from './profile.ts'
import { findLinks, isIssuedBy } from './root-links.ts'
import { keyIdentifier } from './template.ts'

interface Waiting {
  readonly directory: CaDirectory
  readonly access: KeyAccess
}

export interface IssuerRequest {
  readonly kind: IssuerKind
  /** PKCS#10, PEM. */
  readonly csr: string
}

/**
 * A request for each issuing CA. The keys are made at the first call and kept until a CA has them, so that a
 * certificate that is signed later still finds its key.
 * @throws MusterError key_file_insecure, passphrase_wrong, and as `Tokens.takeNext`
 */
export async function requestNext(
  of: Waiting & {
    /** Key file of the CA that signs now: the next key is made where that one lies. */
    pathOf(kind: IssuerKind): string
    /** True when a CA has this key, trusted or not. */
    isUsed(spki: Buffer): boolean
  },
): Promise<IssuerRequest[]> {
  const requests: IssuerRequest[] = []
  for (const kind of KINDS) {
    const { signer } = await waitingKey(kind, of)
    const csr = await requestFor(signer, { commonName: COMMON_NAME[kind] })
    requests.push({ kind, csr: derToPem(csr, 'CERTIFICATE REQUEST') })
  }
  return requests
}

async function waitingKey(kind: IssuerKind, of: Parameters<typeof requestNext>[0]): Promise<MadeKey> {
  const { directory, access } = of
  const path = directory.waitingKey(kind)
  if (existsSync(path)) {
    const kept = await reopenKey(access, path)
    if (!of.isUsed(kept.signer.spki)) return kept
  }
  const made = await makeNextKey(access, of.pathOf(kind))
  prepareGenerations(directory)
  writeSecretFile(path, made.keyFile)
  return made
}

/**
 * Takes the certificates that the root has signed, or a new root that the old one vouches for: what it says is checked
 * as if we had signed it. Keys and certificates are on disk when the promise resolves; they count for nothing until the
 * registry names them.
 * @throws MusterError invalid_request (a certificate is missing or does not fit), not_found (no request was made)
 */
export async function acceptNext(
  of: Waiting & { names: OfflineNames; rootPem: string; pems: readonly string[]; now: number },
): Promise<NextCertificate[]> {
  const { directory } = of
  const certificates = parse(of.pems)
  const root = new X509Certificate(of.rootPem)
  const newRoot = certificates.find((one) => isIssuedBy(one, one) && !one.raw.equals(root.raw))
  const links = newRoot ? findLinks(certificates, { root, newRoot }) : []
  if (links === null) {
    throw misfit(
      'the certificates that link the new root to the old one are missing; make it with `muster ca next-root`',
    )
  }
  const anchor = newRoot ?? root
  const issuers: NextCertificate[] = []
  for (const kind of KINDS) issuers.push(await issuerFor(kind, { ...of, certificates, anchor }))
  for (const { id, pem, role } of issuers) {
    const keyFile = readSecretFile(directory.waitingKey(role as IssuerKind)).toString('utf8') // of KINDS, above
    writeGeneration(directory, { id, pem, keyFile })
  }
  if (newRoot === undefined) return issuers
  const made = named('root', newRoot)
  writeRootOf(directory, made)
  return [made, ...issuers, ...links.map(({ role, certificate }) => named(role, certificate))]
}

interface Search extends Waiting {
  readonly names: OfflineNames
  readonly certificates: readonly X509Certificate[]
  readonly anchor: X509Certificate
  readonly now: number
}

async function issuerFor(kind: IssuerKind, of: Search): Promise<NextCertificate> {
  const { directory, access, certificates } = of
  const path = directory.waitingKey(kind)
  if (!existsSync(path)) {
    throw new MusterError(
      'not_found',
      'Cannot install certificates: make requests first, with muster ca rollover request',
    )
  }
  const { signer } = await reopenKey(access, path)
  const found = certificates.find((one) => spkiDer(one.publicKey).equals(signer.spki))
  if (found === undefined) throw misfit(`there is none for the key of the ${kind} CA`)
  checkIssuer(kind, found, of)
  return named(kind, found)
}

/** @throws MusterError invalid_request */
function checkIssuer(kind: IssuerKind, one: X509Certificate, { anchor, names, now }: Search): void {
  if (!isIssuedBy(one, anchor)) throw misfit(`the root has not signed the one of the ${kind} CA`)
  const { tbs } = readCertificate(anchor.raw)
  const { trustDomain, httpBase } = names
  const own = readCertificate(one.raw)
  try {
    const { raw: spki } = tbs.spki
    const signing = {
      ...{ name: tbs.subject.raw, keyId: keyIdentifier(spki), notAfter: tbs.notAfter },
      signer: schemeOf(spki),
    }
    lintCa(own.tbsDer, { signing, pathLength: 0, trustDomain })
  } catch (error) {
    if (isMusterError(error, 'lint_failed')) throw misfit(`${error.message} of the one of the ${kind} CA`)
    throw error
  }
  const isFit =
    one.infoAccess?.includes(`URI:${httpBase}/ca/${sha256Hex(anchor.raw)}.crt`) &&
    [...(one.keyUsage ?? [])].toSorted().join() === [...purposesOf(kind)].toSorted().join()
  if (!isFit) throw misfit(`the one of the ${kind} CA is not what ca sign-issuer makes for ${httpBase}`)
  if (now < own.tbs.notBefore || now >= own.tbs.notAfter) {
    throw misfit(`the one of the ${kind} CA is not valid now; look at the clock of the machine of the root`)
  }
}

function parse(pems: readonly string[]): X509Certificate[] {
  try {
    return pems.map((pem) => new X509Certificate(pem))
  } catch {
    throw misfit('one of them cannot be read')
  }
}

function named(role: NextCertificate['role'], certificate: X509Certificate): NextCertificate {
  return { role, id: sha256Hex(certificate.raw), pem: derToPem(certificate.raw, 'CERTIFICATE') }
}

function misfit(why: string): MusterError {
  return new MusterError('invalid_request', `Cannot install the certificates: ${why}`)
}
