import { readCertificate } from '#shared/pki/certificate'
import { sha256Hex } from '#shared/pki/keys'
import { derToPem } from '#shared/pki/pem'
import { issueCaCertificate, type Parent } from './ca-certificate.ts'
import { type CaDirectory, writeGeneration } from './ca-directory.ts'
import type { MadeKey } from './key-access.ts'
import type { IssuerKind } from './profile.ts'
import type { Signer } from './signer.ts'
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
  /** Makes a key where that of the CA which it is to follow lies. */
  nextKey(role: 'root' | IssuerKind): Promise<MadeKey>
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

/** Both issuing CAs anew, under the root that there is. Their keys are safe when the promise resolves. @throws MusterError lint_failed */
export async function nextIssuing(options: NextOptions): Promise<NextCertificate[]> {
  return [await issuing('device', options), await issuing('infrastructure', options)]
}

/**
 * A new root, both issuing CAs below it, and what links it to the old one.
 * @throws MusterError lint_failed
 */
export async function nextRoot(options: NextOptions): Promise<NextCertificate[]> {
  const { directory, root: old } = options
  const key = await options.nextKey('root')
  const { der, newWithOld, oldWithNew } = await succeedRoot({ ...options, old, key: key.signer })
  const root = { der, signer: key.signer }
  return [
    store('root', { directory, key, der }),
    await issuing('device', { ...options, root }),
    await issuing('infrastructure', { ...options, root }),
    certificate('new-with-old', newWithOld),
    certificate('old-with-new', oldWithNew),
  ]
}

/**
 * A new root key under the old root's name, and the two certificates by which whoever trusts one of the roots can
 * check the other (RFC 4210 section 4.4): because subject and issuer are the same, they do not count as a step of the
 * path (RFC 5280 section 4.2.1.9). DER.
 * @throws MusterError lint_failed
 */
export async function succeedRoot(of: {
  readonly old: SigningRoot
  readonly key: Signer
  readonly trustDomain: string
  readonly httpBase: string
  readonly now: number
}): Promise<{ der: Buffer; newWithOld: Buffer; oldWithNew: Buffer }> {
  const { old, key, trustDomain, httpBase, now } = of
  const { spki, notAfter, subject } = readCertificate(old.der).tbs
  const request = { kind: 'root', trustDomain, now, name: subject.raw } as const
  const der = await issueCaCertificate({ ...request, spki: key.spki }, key)
  const newWithOld = await issueCaCertificate({ ...request, spki: key.spki }, parentOf(old, httpBase))
  const oldWithNew = await issueCaCertificate(
    { ...request, spki: spki.raw, lifetimeMs: notAfter - startOf(der) },
    parentOf({ der, signer: key }, httpBase),
  )
  return { der, newWithOld, oldWithNew }
}

async function issuing(kind: IssuerKind, options: NextOptions): Promise<NextCertificate> {
  const { directory, trustDomain, httpBase, root, now, lifetimeMs } = options
  const key = await options.nextKey(kind)
  const life = lifetimeMs === undefined ? {} : { lifetimeMs }
  const der = await issueCaCertificate(
    { kind, trustDomain, now, spki: key.signer.spki, ...life },
    parentOf(root, httpBase),
  )
  return store(kind, { directory, key, der })
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
  made: { directory: CaDirectory; key: MadeKey; der: Buffer },
): NextCertificate {
  const stored = certificate(role, made.der)
  writeGeneration(made.directory, { ...stored, keyFile: made.key.keyFile })
  return stored
}

function certificate(role: NextCertificate['role'], der: Buffer): NextCertificate {
  return { id: sha256Hex(der), role, pem: derToPem(der, 'CERTIFICATE') }
}
