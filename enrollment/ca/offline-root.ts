/** A root that is kept elsewhere: keys and requests here, signatures there, certificates back here. */
import { X509Certificate } from 'node:crypto'
import { existsSync, readFileSync } from 'node:fs'
import { join } from 'node:path'
import { MusterError } from '#shared/errors'
import { writeFileDurably, writeSecretFile } from '#shared/files'
import { readCertificate } from '#shared/pki/certificate'
import { sha256Hex, spkiDer } from '#shared/pki/keys'
import { derToPem, pemToDer, splitPem } from '#shared/pki/pem'
import { checkOptions, type KeyUris } from './authority.ts'
import { issueCaCertificate } from './ca-certificate.ts'
import { type CaDirectory, caDirectory, prepareDirectory, unusable, writeAuthority } from './ca-directory.ts'
import { requestFor } from './ca-request.ts'
import { checkCsr, decodeCsr } from './check-csr.ts'
import { type KeyAccess, makeKey, openKey, proveKey, reopenKey } from './key-access.ts'
import { succeedRoot } from './next-generation.ts'
import type { IssuerKind } from './profile.ts'
import { DEFAULT_CRL_SHARDS } from './shard.ts'
import { keyIdentifier } from './template.ts'

export const KINDS = ['device', 'infrastructure'] as const satisfies readonly IssuerKind[]
/** How a request says which CA it is for. */
export const COMMON_NAME = { device: 'muster-device-ca', infrastructure: 'muster-infrastructure-ca' } as const

export interface OfflineNames {
  readonly trustDomain: string
  readonly httpBase: string
}

/**
 * Makes the keys of the issuing CAs, encrypted or in security modules, and a request for each. Until the certificates are installed the
 * plane does not start.
 * @returns paths of the requests
 * @throws MusterError config_invalid, key_file_insecure, conflict (the directory holds an authority, or keys)
 */
export async function requestIssuers(
  path: string,
  { trustDomain, httpBase, keys, ...access }: OfflineNames & KeyAccess & { keys?: KeyUris },
): Promise<string[]> {
  const { passphrase } = access
  checkOptions({ directory: path, trustDomain, httpBase, passphrase, now: 0 })
  const directory = caDirectory(path)
  prepareDirectory(directory)
  const isTaken =
    existsSync(directory.authority) || KINDS.some((kind) => existsSync(directory.key(`${kind}-ca`)))
  if (isTaken) throw new MusterError('conflict', `Cannot make CAs in "${path}": there are some`)
  writeFileDurably(namesPath(path), `${JSON.stringify({ trustDomain, httpBase }, null, 2)}\n`)
  const paths: string[] = []
  for (const kind of KINDS) {
    const { signer, keyFile } = await makeKey(access, keys?.[kind])
    const csr = await requestFor(signer, { commonName: COMMON_NAME[kind] })
    writeSecretFile(directory.key(`${kind}-ca`), keyFile)
    const request = join(path, `${kind}-ca.csr`)
    writeFileDurably(request, derToPem(csr, 'CERTIFICATE REQUEST'))
    paths.push(request)
  }
  return paths
}

/** True after `requestIssuers`, until `installCertificates`. */
export function isAwaitingInstall(path: string): boolean {
  return existsSync(namesPath(path)) && !existsSync(caDirectory(path).authority)
}

/** Where the names wait for the certificates. */
function namesPath(path: string): string {
  return join(path, 'offline.json')
}

export interface SignedIssuer {
  readonly kind: IssuerKind
  /** PEM: the issuing CA, then the root, and what links it to the one before it. */
  readonly chain: string
}

/**
 * Signs the request of an issuing CA with the root in a directory of its own, which is made at the first request.
 * The names are said here, where the root is: from the request come the key, proven, and which CA it is for.
 * @throws MusterError csr_*, config_invalid, key_file_insecure, passphrase_wrong
 */
export async function signIssuer(
  path: string,
  request: OfflineNames & RootRequest & { csr: string },
): Promise<SignedIssuer> {
  const { trustDomain, httpBase, now } = request
  checkOptions({ directory: path, ...request })
  const { spki, commonName } = await checkCsr(decodeCsr(request.csr))
  const kind = KINDS.find((one) => COMMON_NAME[one] === commonName)
  if (kind === undefined) {
    throw new MusterError(
      'csr_subject',
      'Cannot sign the request: it is not of `muster ca init --offline-root` or `muster ca rollover request`',
      { evidence: { wish: commonName ?? 'none' } },
    )
  }
  const root = await openRoot(caDirectory(path), request)
  const der = await issueCaCertificate(
    { kind, trustDomain, now, spki },
    {
      name: root.parsed.tbs.subject.raw,
      keyId: keyIdentifier(root.parsed.tbs.spki.raw),
      notAfter: root.parsed.tbs.notAfter,
      signer: root.signer,
      caUrl: `${httpBase}/ca/${sha256Hex(root.der)}.crt`,
    },
  )
  const chain = derToPem(der, 'CERTIFICATE') + derToPem(root.der, 'CERTIFICATE')
  return { kind, chain: chain + linksOf(path) }
}

/** What `nextRootOffline` leaves beside a root that follows another one. */
function linksPath(directory: string): string {
  return join(directory, 'links.pem')
}

function linksOf(directory: string): string {
  return existsSync(linksPath(directory)) ? readFileSync(linksPath(directory), 'utf8') : ''
}

/**
 * Makes a root that follows another one, in a directory of its own, and what links the two. What `signIssuer` signs in
 * that directory is then for a rollover of the root. Repeated, it changes nothing.
 * @returns SHA-256 of the new root, hex
 * @throws MusterError not_found (there is no root to follow), conflict (the directory holds another root),
 *   config_invalid, key_file_insecure, passphrase_wrong
 */
export async function followRoot(
  path: string,
  request: OfflineNames & RootRequest & { newDirectory: string; newAccess: KeyAccess },
): Promise<string> {
  const { trustDomain, httpBase, now, newDirectory, newAccess } = request
  checkOptions({ directory: path, ...request })
  const old = caDirectory(path)
  if (!existsSync(old.certificate('root'))) {
    throw new MusterError('not_found', `Cannot make the next root: there is none in "${path}"`)
  }
  const next = caDirectory(newDirectory)
  prepareDirectory(next)
  if (existsSync(next.certificate('root'))) {
    if (existsSync(linksPath(newDirectory))) return rootIdIn(next)
    throw new MusterError('conflict', `Cannot make the next root in "${newDirectory}": it holds another one`)
  }
  const root = await openRoot(old, request)
  const keyPath = next.key('root')
  const isThere = existsSync(keyPath)
  const key = isThere ? await reopenKey(newAccess, keyPath) : await makeKey(newAccess, request.rootKey)
  if (!isThere) writeSecretFile(keyPath, key.keyFile)
  const made = await succeedRoot({ old: root, key: key.signer, trustDomain, httpBase, now })
  const links = [made.newWithOld, made.oldWithNew].map((der) => derToPem(der, 'CERTIFICATE'))
  writeFileDurably(linksPath(newDirectory), links.join('')) // before the root, which is what says that it is done
  writeFileDurably(next.certificate('root'), derToPem(made.der, 'CERTIFICATE'))
  return rootIdIn(next)
}

function rootIdIn(directory: CaDirectory): string {
  return sha256Hex(pemToDer(readFileSync(directory.certificate('root'), 'utf8'), 'CERTIFICATE'))
}

interface RootRequest extends KeyAccess {
  readonly trustDomain: string
  readonly now: number
  /** PKCS#11 URI of the key that the root is made with; a file without. */
  readonly rootKey?: string
}

async function openRoot(directory: CaDirectory, request: RootRequest) {
  prepareDirectory(directory)
  if (!existsSync(directory.certificate('root'))) await makeRoot(directory, request)
  const der = pemToDer(readFileSync(directory.certificate('root'), 'utf8'), 'CERTIFICATE')
  const parsed = readCertificate(der)
  const spki = parsed.tbs.spki.raw
  const signer = openKey(directory.key('root'), { spki, access: request })
  if (!spki.equals(signer.spki)) throw unusable(directory, 'the key of the root is another one')
  await proveKey(signer)
  return { der, parsed, signer }
}

/** A key that is there is never replaced: it may have signed something. */
async function makeRoot(directory: CaDirectory, request: RootRequest): Promise<void> {
  const { trustDomain, now } = request
  const path = directory.key('root')
  const isThere = existsSync(path)
  const { signer, keyFile } = isThere
    ? await reopenKey(request, path)
    : await makeKey(request, request.rootKey)
  if (!isThere) writeSecretFile(path, keyFile)
  const der = await issueCaCertificate({ kind: 'root', trustDomain, now, spki: signer.spki }, signer)
  writeFileDurably(directory.certificate('root'), derToPem(der, 'CERTIFICATE'))
}

/**
 * Puts the certificates into their places: from then on there is an authority, and the plane starts without root.key.
 * @returns SHA-256 of the root, hex
 * @throws MusterError not_found (no request was made here), check_failed (a certificate is missing or does not fit)
 */
export async function installCertificates(
  path: string,
  { pems, ...access }: KeyAccess & { pems: readonly string[] },
): Promise<string> {
  const directory = caDirectory(path)
  if (existsSync(directory.authority)) {
    throw new MusterError('conflict', `Cannot install certificates in "${path}": it holds an authority`)
  }
  if (!existsSync(namesPath(path))) {
    throw new MusterError(
      'not_found',
      `Cannot install certificates in "${path}": make keys first, with muster ca init --offline-root`,
    )
  }
  const names = JSON.parse(readFileSync(namesPath(path), 'utf8')) as OfflineNames // written by requestIssuers
  const certificates = pems.flatMap(splitPem).map((pem) => new X509Certificate(pem))
  const root = certificates.find((one) => one.ca && one.checkIssued(one) && one.verify(one.publicKey))
  if (root === undefined) throw misfit('the root is not among them')
  const issuers: { kind: IssuerKind; found: X509Certificate }[] = []
  for (const kind of KINDS) {
    issuers.push({ kind, found: await findIssuer(kind, { directory, certificates, root, names, access }) })
  }
  for (const { kind, found } of issuers)
    writeFileDurably(directory.certificate(`${kind}-ca`), found.toString())
  writeFileDurably(directory.certificate('root'), root.toString())
  const [device, infrastructure] = issuers.map(({ found }) => sha256Hex(found.raw))
  writeAuthority(directory, {
    schemaVersion: 1,
    ...names,
    root: sha256Hex(root.raw),
    device: device ?? '',
    infrastructure: infrastructure ?? '',
    crlShards: DEFAULT_CRL_SHARDS,
  })
  return sha256Hex(root.raw)
}

/** The certificate for the key that was made here. @throws MusterError check_failed, key_file_insecure, passphrase_wrong */
async function findIssuer(
  kind: IssuerKind,
  of: {
    directory: CaDirectory
    certificates: readonly X509Certificate[]
    root: X509Certificate
    names: OfflineNames
    access: KeyAccess
  },
): Promise<X509Certificate> {
  const { directory, certificates, root, names, access } = of
  const { signer } = await reopenKey(access, directory.key(`${kind}-ca`))
  const found = certificates.find((one) => one !== root && spkiDer(one.publicKey).equals(signer.spki))
  if (found === undefined) throw misfit(`there is none for the key of the ${kind} CA`)
  if (!found.ca || !found.checkIssued(root) || !found.verify(root.publicKey)) {
    throw misfit(`the root has not signed the one of the ${kind} CA`)
  }
  const isNamed =
    found.subjectAltName === `URI:spiffe://${names.trustDomain}` &&
    found.infoAccess?.includes(`URI:${names.httpBase}/ca/${sha256Hex(root.raw)}.crt`)
  if (!isNamed)
    throw misfit(`the one of the ${kind} CA is not for ${names.trustDomain} and ${names.httpBase}`)
  return found
}

function misfit(why: string): MusterError {
  return new MusterError('check_failed', `Cannot install the certificates: ${why}`)
}
