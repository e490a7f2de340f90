import { X509Certificate } from 'node:crypto'
import { MusterError } from '#shared/errors'
import { type Certificate, readCertificate } from '#shared/pki/certificate'
import { sha256Hex } from '#shared/pki/keys'
import { OID } from '#shared/pki/oid'
import { derToPem, pemToDer } from '#shared/pki/pem'
import { readInfoAccess, readSubjectAltName, readSubjectKeyId } from '#shared/pki/read-extensions'
import { type Authority, type AuthorityOptions, invalid } from './authority.ts'
import {
  type AuthorityFile,
  type CaDirectory,
  type CaFile,
  checkKeyFiles,
  readAuthority,
  readCaFile,
  unusable,
} from './ca-directory.ts'
import type { Issuer } from './issue.ts'
import { openKey } from './key-access.ts'
import type { IssuerKind } from './profile.ts'
import type { Signer } from './signer.ts'

/**
 * Opens what was created before, and trusts none of its files alone: authority.json names the certificates by
 * their hashes, the certificates carry the trust domain, the http base and the root's signature, the keys must fit.
 * @throws MusterError config_invalid, directory_unusable, key_file_insecure, passphrase_wrong, clock_wrong
 */
export function loadAuthority(directory: CaDirectory, options: AuthorityOptions): Omit<Authority, 'created'> {
  const authority = readAuthority(directory)
  checkAgreement(authority, options)
  checkKeyFiles(directory)
  const root = loadCertificate(directory, { ca: 'root', fingerprint: authority.root })
  const issuer = (kind: IssuerKind) => loadIssuer(kind, { directory, authority, options, root })
  return {
    trustDomain: authority.trustDomain,
    rootId: authority.root,
    rootPem: root.pem,
    device: issuer('device'),
    infrastructure: issuer('infrastructure'),
  }
}

function checkAgreement(authority: AuthorityFile, options: AuthorityOptions): void {
  for (const name of ['trustDomain', 'httpBase'] as const) {
    if (authority[name] !== options[name]) {
      throw invalid(
        `${name} is "${options[name]}", but it was created with "${authority[name]}", which is in every certificate`,
      )
    }
  }
}

interface LoadedCertificate {
  readonly pem: string
  readonly der: Buffer
  readonly parsed: Certificate
}

function loadCertificate(
  directory: CaDirectory,
  { ca, fingerprint }: { ca: CaFile; fingerprint: string },
): LoadedCertificate {
  const path = directory.certificate(ca)
  const pem = readCaFile(directory, path)
  try {
    const der = pemToDer(pem, 'CERTIFICATE')
    if (sha256Hex(der) === fingerprint) return { pem, der, parsed: readCertificate(der) }
  } catch (cause) {
    throw unusable(directory, `"${path}" is not a certificate`, cause)
  }
  throw unusable(directory, `"${path}" is not the certificate that authority.json names`)
}

interface Loading {
  readonly directory: CaDirectory
  readonly authority: AuthorityFile
  readonly options: AuthorityOptions
  readonly root: LoadedCertificate
}

function loadIssuer(kind: IssuerKind, { directory, authority, options, root }: Loading): Issuer {
  const { trustDomain, httpBase } = authority
  const { der, parsed } = loadCertificate(directory, {
    ca: `${kind}-ca`,
    fingerprint: authority[kind],
  })
  const { tbs } = parsed
  if (!new X509Certificate(der).verify(new X509Certificate(root.der).publicKey)) {
    throw unusable(directory, `the root has not signed the ${kind} CA`)
  }
  if (trustDomainOf(parsed) !== trustDomain || rootUrlOf(parsed) !== `${httpBase}/ca/${authority.root}.crt`) {
    throw unusable(directory, `authority.json does not say what is in the certificate of the ${kind} CA`)
  }
  if (options.clock !== 'later') checkClock({ kind, der, now: options.now })
  const signer = openKey(directory.key(`${kind}-ca`), { spki: tbs.spki.raw, access: options })
  if (!signer.spki.equals(tbs.spki.raw))
    throw unusable(directory, `the key of the ${kind} CA is another one's`)
  return issuerOf(kind, { der, authority, signer })
}

/** A CA whose certificate and key have been found to be its own. */
export function issuerOf(
  kind: IssuerKind,
  { der, authority, signer }: { der: Buffer; authority: AuthorityFile; signer: Signer },
): Issuer {
  const { trustDomain, httpBase } = authority
  const parsed = readCertificate(der)
  const id = sha256Hex(der)
  return {
    id,
    kind,
    pem: derToPem(der, 'CERTIFICATE'),
    der,
    trustDomain,
    name: parsed.tbs.subject.raw,
    keyId: readSubjectKeyId(extensionOf(parsed, OID.subjectKeyIdentifier)),
    notBefore: parsed.tbs.notBefore,
    notAfter: parsed.tbs.notAfter,
    crlUrl: `${httpBase}/crl/${id}.crl`,
    // the certificates of the plane itself are few, and no responder knows them
    crlShards: kind === 'device' ? (authority.crlShards ?? 0) : 0,
    ocspUrl: kind === 'device' ? `${httpBase}/ocsp` : null,
    caUrl: `${httpBase}/ca/${id}.crt`,
    signer,
  }
}

function trustDomainOf(certificate: Certificate): string | null {
  const [name] = readSubjectAltName(extensionOf(certificate, OID.subjectAltName))
  return name?.type === 'uri' ? name.text.replace('spiffe://', '') : null
}

function rootUrlOf(certificate: Certificate): string {
  return readInfoAccess(extensionOf(certificate, OID.authorityInfoAccess)).uri
}

/** Only for our own certificates: `loadCertificate` has compared their hash, so what is missing is our fault. */
function extensionOf({ tbs }: Certificate, type: string) {
  const extension = tbs.extensions.get(type)
  if (extension === undefined) throw new TypeError(`CA certificate without ${type}`)
  return extension
}

/** @throws MusterError clock_wrong: nothing is signed with a CA outside its validity */
export function checkClock({ kind, der, now }: { kind: IssuerKind; der: Buffer; now: number }): void {
  const { notBefore, notAfter } = readCertificate(der).tbs
  if (now >= notBefore && now < notAfter) return
  if (now >= notAfter) throw endedCa({ kind, notAfter, now })
  const [from, shown] = [notBefore, now].map((at) => new Date(at).toISOString())
  throw new MusterError(
    'clock_wrong',
    `Cannot sign with the ${kind} CA: it is valid from ${from} on, and the clock says ${shown}; fix: set the clock`,
  )
}

/** What is left when nothing has followed in time; whoever reads it may as well have a clock that is ahead. */
export function endedCa(of: { kind: IssuerKind; notAfter: number; now: number }): MusterError {
  const [ended, shown] = [of.notAfter, of.now].map((at) => new Date(at).toISOString())
  return new MusterError(
    'clock_wrong',
    `Cannot sign with the ${of.kind} CA: it ended at ${ended}, no other has followed, and the clock says ${shown}; fix: set the clock if that is wrong, else see "When the CAs have ended" in docs/rollover.md: muster ca rollover start`,
  )
}
