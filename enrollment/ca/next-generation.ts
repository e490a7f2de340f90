import type { KeyObject } from 'node:crypto'
import { readCertificate } from '#shared/pki/certificate'
import { generateKey, privateKeyPem, sha256Hex, spkiDer } from '#shared/pki/keys'
import { derToPem } from '#shared/pki/pem'
import { issueCaCertificate, type Parent } from './ca-certificate.ts'
import { type CaDirectory, writeGeneration } from './ca-directory.ts'
import type { IssuerKind } from './profile.ts'
import { keySigner, type Signer } from './signer.ts'
import { keyIdentifier } from './template.ts'

/** A root that can sign. */
export interface SigningRoot {
  readonly der: Buffer
  readonly signer: Signer
}

export interface NextOptions {
  readonly directory: CaDirectory
  readonly trustDomain: string
  readonly httpBase: string
  readonly passphrase: string
  /** The root that signs now. */
  readonly root: SigningRoot
  readonly now: number
  /** Of the new issuing CAs, ms. */
  readonly lifetimeMs?: number
}

/** A CA certificate of a rollover; the keys of links are those of the roots. */
export interface NextCertificate {
  readonly id: string
  readonly role: 'root' | IssuerKind | 'new-with-old' | 'old-with-new'
  readonly pem: string
}

/** Both issuing CAs anew, under the root that there is. Their keys are on disk when the promise resolves. @throws MusterError lint_failed */
export async function nextIssuing(options: NextOptions): Promise<NextCertificate[]> {
  return [await issuing('device', options), await issuing('infrastructure', options)]
}

/**
 * A new root key under the old root's name, both issuing CAs below it, and the two certificates by which whoever
 * trusts one of the roots can check the other (RFC 4210 section 4.4): because subject and issuer are the same, they
 * do not count as a step of the path (RFC 5280 section 4.2.1.9).
 * @throws MusterError lint_failed
 */
export async function nextRoot(options: NextOptions): Promise<NextCertificate[]> {
  const { directory, passphrase, root: old, now, trustDomain, httpBase } = options
  const key = generateKey()
  const name = readCertificate(old.der).tbs.subject.raw
  const request = { kind: 'root', trustDomain, now, name } as const
  const der = await issueCaCertificate({ ...request, spki: spkiDer(key) }, keySigner(key))
  const root = { der, signer: keySigner(key) }
  const newWithOld = await issueCaCertificate({ ...request, spki: spkiDer(key) }, parentOf(old, httpBase))
  const { spki, notAfter } = readCertificate(old.der).tbs
  const oldWithNew = await issueCaCertificate(
    { ...request, spki: spki.raw, lifetimeMs: notAfter - startOf(der) },
    parentOf(root, httpBase),
  )
  return [
    store('root', { directory, passphrase, key, der }),
    await issuing('device', { ...options, root }),
    await issuing('infrastructure', { ...options, root }),
    certificate('new-with-old', newWithOld),
    certificate('old-with-new', oldWithNew),
  ]
}

async function issuing(kind: IssuerKind, options: NextOptions): Promise<NextCertificate> {
  const { directory, passphrase, trustDomain, httpBase, root, now, lifetimeMs } = options
  const key = generateKey()
  const life = lifetimeMs === undefined ? {} : { lifetimeMs }
  const der = await issueCaCertificate(
    { kind, trustDomain, now, spki: spkiDer(key), ...life },
    parentOf(root, httpBase),
  )
  return store(kind, { directory, passphrase, key, der })
}

function parentOf({ der, signer }: SigningRoot, httpBase: string): Parent {
  const { subject, spki, notAfter } = readCertificate(der).tbs
  const caUrl = `${httpBase}/ca/${sha256Hex(der)}.crt`
  return { name: subject.raw, keyId: keyIdentifier(spki.raw), notAfter, signer, caUrl }
}

function startOf(der: Buffer): number {
  return readCertificate(der).tbs.notBefore
}

function store(
  role: NextCertificate['role'],
  made: { directory: CaDirectory; passphrase: string; key: KeyObject; der: Buffer },
): NextCertificate {
  const stored = certificate(role, made.der)
  const keyPem = privateKeyPem(made.key, made.passphrase)
  writeGeneration(made.directory, { ...stored, keyPem })
  return stored
}

function certificate(role: NextCertificate['role'], der: Buffer): NextCertificate {
  return { id: sha256Hex(der), role, pem: derToPem(der, 'CERTIFICATE') }
}
