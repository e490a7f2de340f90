/** A throwaway authority in a temporary directory, and keys with certificates from it, for tests of every part. */
import { type KeyObject, randomBytes, X509Certificate } from 'node:crypto'
import { mkdtempSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import type { PeerKind } from '#shared/identity/peer'
import { generateKey, privateKeyPem, spkiDer } from '#shared/pki/keys'
import { derToPem } from '#shared/pki/pem'
import { type Authority, openAuthority } from '../../enrollment/ca/create-ca.ts'
import { type Issuer, issueCertificate } from '../../enrollment/ca/issue.ts'
import { PROFILES } from '../../enrollment/ca/profile.ts'

export const TEST_DOMAIN = 'muster.test'
export const TEST_HTTP_BASE = 'http://127.0.0.1:8080'
export const TEST_PASSPHRASE = 'only for tests'

const HOUR_MS = 3600 * 1000
const DAY_MS = 24 * HOUR_MS

export interface TestAuthority extends Authority {
  readonly directory: string
  /** Removes the directory. */
  remove(): void
}

/** An authority of its own. `now` defaults to the real time, which TLS needs. Costs some 300 ms. */
export async function testAuthority(
  options: { now?: number; trustDomain?: string; httpBase?: string } = {},
): Promise<TestAuthority> {
  const root = mkdtempSync(join(tmpdir(), 'muster-ca-'))
  const directory = join(root, 'ca')
  const authority = await openAuthority({
    directory,
    trustDomain: options.trustDomain ?? TEST_DOMAIN,
    httpBase: options.httpBase ?? TEST_HTTP_BASE,
    passphrase: TEST_PASSPHRASE,
    now: options.now ?? Date.now(),
  })
  return { ...authority, directory, remove: () => rmSync(root, { recursive: true, force: true }) }
}

/** A key and its certificate, in every form that TLS, mqtt and the registry take. */
export interface TestIdentity {
  readonly id: string
  readonly kind: PeerKind
  readonly key: KeyObject
  /** PKCS#8 PEM, not encrypted. */
  readonly keyPem: string
  readonly der: Buffer
  /** The certificate alone. */
  readonly pem: string
  /** The certificate and its issuing CA, as a TLS server or client presents it. */
  readonly chainPem: string
  readonly fingerprint: string
  readonly serial: string
  readonly issuer: string
  readonly spki: Buffer
  readonly notBefore: number
  readonly notAfter: number
  readonly x509: X509Certificate
}

export interface IdentityOptions {
  /** Default `device`. */
  readonly kind?: PeerKind
  readonly key?: KeyObject
  /** Ms since 1970; cut to whole seconds. Default: an hour ago, and 30 days from now. */
  readonly notBefore?: number
  readonly notAfter?: number
  readonly now?: number
  /** Default for servers and brokers: localhost and 127.0.0.1. */
  readonly hosts?: readonly string[]
  readonly serial?: string
}

/** Issues a certificate of any kind through the real path; nothing is recorded anywhere. */
export async function testIdentity(
  authority: Authority,
  id: string,
  options: IdentityOptions = {},
): Promise<TestIdentity> {
  const kind = options.kind ?? 'device'
  const issuer = issuerOf(authority, kind)
  const key = options.key ?? generateKey()
  const now = options.now ?? Date.now()
  const serial = options.serial ?? randomBytes(16).toString('hex')
  const notBefore = wholeSecond(options.notBefore ?? now - HOUR_MS)
  const notAfter = wholeSecond(options.notAfter ?? now + 30 * DAY_MS)
  const hosts = options.hosts ?? (PROFILES[kind].hasHosts ? ['localhost', '127.0.0.1'] : [])
  const spki = spkiDer(key)
  const { der, fingerprint } = await issueCertificate(issuer, {
    profile: kind,
    id,
    spki,
    serial,
    notBefore,
    notAfter,
    hosts,
  })
  const pem = derToPem(der, 'CERTIFICATE')
  return {
    id,
    kind,
    key,
    keyPem: privateKeyPem(key),
    der,
    pem,
    chainPem: pem + issuer.pem,
    fingerprint,
    serial,
    issuer: issuer.id,
    spki,
    notBefore,
    notAfter,
    x509: new X509Certificate(der),
  }
}

function issuerOf(authority: Authority, kind: PeerKind): Issuer {
  return authority[PROFILES[kind].issuer]
}

function wholeSecond(at: number): number {
  return Math.floor(at / 1000) * 1000
}
