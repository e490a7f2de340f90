/**
 * Certificates that a gate must turn away, each with exactly one fault: `craftCertificate` without a fault makes one
 * that every check accepts. Keys, chains and PEM come along, so that they can be presented over TLS.
 */
import { generateKeyPairSync, type KeyObject, randomBytes, sign, X509Certificate } from 'node:crypto'
import { readFileSync } from 'node:fs'
import { join } from 'node:path'
import type { RefusalErrorCode } from '#shared/errors'
import { spiffeUri } from '#shared/identity/peer'
import { readCertificate } from '#shared/pki/certificate'
import { element, explicit, integer, oid, sequence, setOf, TRUE, utf8String } from '#shared/pki/der-write'
import {
  authorityKeyIdentifier,
  basicConstraints,
  criticalExtension,
  extKeyUsage,
  type GeneralName,
  type KeyUsage,
  keyUsage,
  subjectAltName,
  subjectKeyIdentifier,
} from '#shared/pki/extensions'
import { generateKey, privateKeyPem, readPrivateKey, sha256Hex, spkiDer } from '#shared/pki/keys'
import { OID } from '#shared/pki/oid'
import { derToPem } from '#shared/pki/pem'
import { encodeTime } from '#shared/pki/time'
import { issueCaCertificate } from '../../enrollment/ca/ca-certificate.ts'
import { keySigner } from '../../enrollment/ca/signer.ts'
import { assemble, keyIdentifier } from '../../enrollment/ca/template.ts'
import { TEST_DOMAIN, TEST_PASSPHRASE, type TestAuthority } from './pki.ts'

const HOUR_MS = 3600 * 1000

/** What may be wrong; what is left out is right. */
export interface Fault {
  readonly version?: 1 | 3
  /** Content octets of the INTEGER. */
  readonly serial?: Uint8Array
  readonly commonNames?: readonly string[]
  readonly san?: readonly GeneralName[]
  readonly purposes?: readonly string[]
  readonly keyUsage?: readonly KeyUsage[]
  readonly isCa?: boolean
  readonly without?: string
  /** Type of an extension that is critical and that nobody knows. */
  readonly critical?: string
  readonly key?: () => KeyObject
  readonly isSha1?: boolean
  readonly signedBy?: 'self' | 'stranger'
  /** Ms from now. */
  readonly notBefore?: number
  readonly notAfter?: number
}

/** The name of a fault, the code that `checkPeer` answers, and the fault. `unknown_ca` is for the chain to find. */
export const HOSTILE = {
  'no extended key usage': ['profile', { without: OID.extKeyUsage }],
  'server extended key usage': ['profile', { purposes: [OID.serverAuth] }],
  'client and server extended key usage': ['profile', { purposes: [OID.clientAuth, OID.serverAuth] }],
  'any extended key usage': ['profile', { purposes: [OID.anyExtendedKeyUsage] }],
  'client and any extended key usage': ['profile', { purposes: [OID.clientAuth, OID.anyExtendedKeyUsage] }],
  'CA certificate as leaf': ['profile', { isCa: true }],
  'keyCertSign on a leaf': ['profile', { keyUsage: ['digitalSignature', 'keyCertSign'] }],
  'cRLSign on a leaf': ['profile', { keyUsage: ['digitalSignature', 'cRLSign'] }],
  'no key usage': ['profile', { without: OID.keyUsage }],
  'key usage without digitalSignature': ['profile', { keyUsage: ['keyAgreement'] }],
  'version 1': ['profile', { version: 1 }],
  'SHA-1 signature': ['profile', { isSha1: true }],
  'RSA-1024 key': ['profile', { key: () => generateKeyPairSync('rsa', { modulusLength: 1024 }).privateKey }],
  'serial 0': ['profile', { serial: Buffer.from([0]) }],
  'negative serial': ['profile', { serial: Buffer.from([0x80, 1]) }],
  'serial of 21 octets': ['profile', { serial: Buffer.alloc(21, 7) }],
  'no common name': ['profile', { commonNames: [] }],
  'two common names': ['profile', { commonNames: ['<id>', 'admin'] }],
  'the same common name twice': ['profile', { commonNames: ['<id>', '<id>'] }],
  'other common name': ['profile', { commonNames: ['admin'] }],
  'NUL in the common name': ['profile', { commonNames: ['<id>\0admin'] }],
  'newline in the common name': ['profile', { commonNames: ['<id>\nadmin'] }],
  'no SAN': ['profile', { without: OID.subjectAltName }],
  'SAN URI of another trust domain': ['profile', { san: [{ uri: 'spiffe://other.test/device/<id>' }] }],
  'SAN URI of another kind': ['profile', { san: [{ uri: `spiffe://${TEST_DOMAIN}/operator/<id>` }] }],
  'the claim of a batch': ['claim', { san: [{ uri: `spiffe://${TEST_DOMAIN}/claim/<id>` }] }],
  'SAN URI of another device': ['profile', { san: [{ uri: `spiffe://${TEST_DOMAIN}/device/other` }] }],
  'SAN URI with a longer path': ['profile', { san: [{ uri: `spiffe://${TEST_DOMAIN}/device/<id>/x` }] }],
  'two SAN URIs': [
    'profile',
    {
      san: [{ uri: `spiffe://${TEST_DOMAIN}/device/<id>` }, { uri: `spiffe://${TEST_DOMAIN}/device/other` }],
    },
  ],
  'self-signed': ['unknown_ca', { signedBy: 'self' }],
  'other chain': ['unknown_ca', { signedBy: 'stranger' }],
  expired: ['expired', { notBefore: -48 * HOUR_MS, notAfter: -HOUR_MS }],
  'not yet valid': ['notyet', { notBefore: HOUR_MS, notAfter: 48 * HOUR_MS }],
} as const satisfies Record<string, readonly [RefusalErrorCode, Fault]>

export type HostileName = keyof typeof HOSTILE

export interface CraftedIdentity {
  readonly id: string
  readonly key: KeyObject
  /** PKCS#8 PEM, not encrypted. */
  readonly keyPem: string
  readonly der: Buffer
  readonly pem: string
  /** The certificate and the CA that it names as issuer. */
  readonly chainPem: string
  readonly fingerprint: string
  readonly x509: X509Certificate
}

/** One certificate with the named fault, for the device `id`. */
export function hostileIdentity(
  authority: TestAuthority,
  name: HostileName,
  id = 'dev-1',
): Promise<CraftedIdentity> {
  return craftCertificate(authority, HOSTILE[name][1], id)
}

/** A device certificate made by hand; `<id>` in names stands for the id. The authority is of {@link TEST_DOMAIN}. */
export async function craftCertificate(
  authority: TestAuthority,
  fault: Fault = {},
  id = 'dev-1',
): Promise<CraftedIdentity> {
  const key = fault.key?.() ?? generateKey()
  const issuer = await signingCa(authority, fault, key)
  const algorithm = sequence(oid(fault.isSha1 === true ? ECDSA_WITH_SHA1 : OID.ecdsaWithSha256))
  const tbs = craftTbs({ fault, id, spki: spkiDer(key), issuer, algorithm })
  const signature = sign(fault.isSha1 === true ? 'sha1' : 'sha256', tbs, issuer.key)
  const der = assemble({ tbs, algorithm, signature })
  const pem = derToPem(der, 'CERTIFICATE')
  return {
    id,
    key,
    keyPem: privateKeyPem(key),
    der,
    pem,
    chainPem: pem + issuer.pem,
    fingerprint: sha256Hex(der),
    x509: new X509Certificate(der),
  }
}

const ECDSA_WITH_SHA1 = '1.2.840.10045.4.1'

interface SigningCa {
  readonly key: KeyObject
  /** DER of the issuer's name; null when the leaf signs itself. */
  readonly name: Buffer | null
  readonly keyId: Buffer
  readonly pem: string
}

async function signingCa(authority: TestAuthority, fault: Fault, own: KeyObject): Promise<SigningCa> {
  if (fault.signedBy === 'self') return { key: own, name: null, keyId: keyIdentifier(spkiDer(own)), pem: '' }
  if (fault.signedBy === 'stranger') return strangerCa()
  const { name, keyId, pem } = authority.device
  const keyFile = readFileSync(join(authority.directory, 'device-ca.key'), 'utf8')
  return { key: readPrivateKey(keyFile, TEST_PASSPHRASE), name, keyId, pem }
}

async function strangerCa(): Promise<SigningCa> {
  const key = generateKey()
  const spki = spkiDer(key)
  const request = { kind: 'root', trustDomain: TEST_DOMAIN, now: Date.now(), spki } as const
  const der = await issueCaCertificate(request, keySigner(key))
  const name = Buffer.from(readCertificate(der).tbs.subject.raw)
  return { key, name, keyId: keyIdentifier(spki), pem: derToPem(der, 'CERTIFICATE') }
}

interface Crafting {
  readonly fault: Fault
  readonly id: string
  readonly spki: Buffer
  readonly issuer: SigningCa
  readonly algorithm: Buffer
}

function craftTbs(crafting: Crafting): Buffer {
  const { fault, id, spki, issuer, algorithm } = crafting
  const subject = sequence(
    ...(fault.commonNames ?? ['<id>']).map((name) =>
      setOf(sequence(oid(OID.commonName), utf8String(name.replace('<id>', id)))),
    ),
  )
  const isV1 = fault.version === 1
  return sequence(
    ...(isV1 ? [] : [explicit(0, integer(2))]),
    element(0x02, fault.serial ?? Buffer.concat([Buffer.from([0x11]), randomBytes(15)])),
    algorithm,
    issuer.name ?? subject,
    sequence(dateAt(fault.notBefore ?? -HOUR_MS), dateAt(fault.notAfter ?? 24 * HOUR_MS)),
    subject,
    spki,
    ...(isV1 ? [] : [explicit(3, sequence(...craftExtensions(crafting)))]),
  )
}

function dateAt(fromNow: number): Buffer {
  return encodeTime(Math.floor((Date.now() + fromNow) / 1000) * 1000)
}

function craftExtensions({ fault, id, spki, issuer }: Crafting): Buffer[] {
  const san = fault.san ?? [{ uri: spiffeUri(TEST_DOMAIN, 'device', id) }]
  const named = san.map((name) => ('uri' in name ? { uri: name.uri.replace('<id>', id) } : name))
  const all: [string, Buffer][] = [
    [OID.authorityKeyIdentifier, authorityKeyIdentifier(issuer.keyId)],
    [OID.subjectKeyIdentifier, subjectKeyIdentifier(keyIdentifier(spki))],
    [
      OID.basicConstraints,
      fault.isCa === true ? criticalExtension(OID.basicConstraints, sequence(TRUE)) : basicConstraints(false),
    ],
    [OID.keyUsage, keyUsage(fault.keyUsage ?? ['digitalSignature'])],
    [OID.extKeyUsage, extKeyUsage(fault.purposes ?? [OID.clientAuth])],
    [OID.subjectAltName, subjectAltName(named)],
  ]
  const known = all.filter(([type]) => type !== fault.without).map(([, encoded]) => encoded)
  return fault.critical === undefined ? known : [...known, criticalExtension(fault.critical, sequence())]
}
