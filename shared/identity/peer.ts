/**
 * Identity <-> certificate: the checks of a client certificate that Node's TLS does not make. It accepts certificates
 * without or with any extended key usage, CA certificates and version 1 as leafs, serial 0, and SHA-1 chains.
 */
import type { X509Certificate } from 'node:crypto'
import { MusterError } from '../errors.ts'
import { type Certificate, readCertificate, serialHex, type Tbs } from '../pki/certificate.ts'
import { sha256Hex } from '../pki/keys.ts'
import { commonNames } from '../pki/name.ts'
import { OID, oidName } from '../pki/oid.ts'
import {
  type Extension,
  type ReadName,
  readBasicConstraints,
  readExtKeyUsage,
  readKeyUsage,
  readSubjectAltName,
} from '../pki/read-extensions.ts'
import { certifiableType, keyKind, keyName } from '../pki/spki.ts'
import { isDeviceId } from './device.ts'

export type PeerKind = 'device' | 'service' | 'claim' | 'broker' | 'operator' | 'server'

/** Exactly these extended key usages a certificate of the kind has. */
export const PURPOSES = {
  device: [OID.clientAuth],
  service: [OID.clientAuth],
  claim: [OID.clientAuth],
  operator: [OID.clientAuth],
  broker: [OID.serverAuth, OID.clientAuth],
  server: [OID.serverAuth],
} as const satisfies Record<PeerKind, readonly string[]>

/** Kinds whose certificates also name the hosts that they serve. */
export const SERVES_HOSTS = {
  device: false,
  service: false,
  claim: false,
  operator: false,
  broker: true,
  server: true,
} as const

/** What a certificate says about who presents it; every part of it has been checked. */
export interface Peer {
  readonly kind: PeerKind
  readonly id: string
  /** SHA-256 of the DER, lower-case hex. */
  readonly fingerprint: string
  /** Lower-case hex, 32 digits or more. */
  readonly serial: string
  /** Ms since 1970; `notAfter` is the last valid second (RFC 5280 section 4.1.2.5). */
  readonly notBefore: number
  readonly notAfter: number
}

/** The SAN URI of an identity. */
export function spiffeUri(trustDomain: string, kind: PeerKind, id: string): string {
  return `spiffe://${trustDomain}/${kind}/${id}`
}

interface Expected {
  readonly trustDomain: string
  readonly kinds: readonly PeerKind[]
  /** Ms since 1970. */
  readonly now: number
}

/**
 * Profile checks that Node does not make, and the dates (a resumed session skips those as well).
 * Chain validity (`socket.authorized`) is the caller's.
 * @throws MusterError profile (evidence: violation), claim (of a batch, where none is expected), expired, notyet
 */
export function checkPeer(certificate: X509Certificate, expect: Expected): Peer {
  const peer = readPeer(certificate.raw, expect)
  checkDates(peer, expect.now)
  return peer
}

/**
 * The same but for the dates: what it finds depends on nothing but the octets, the trust domain and the kinds.
 * @throws MusterError profile (evidence: violation), claim (of a batch, where none is expected)
 */
export function readPeer(der: Buffer, expect: Pick<Expected, 'trustDomain' | 'kinds'>): Peer {
  const parsed = readOrRefuse(der)
  const { tbs } = parsed
  try {
    checkForm(parsed)
    const { kind, id } = identityOf(tbs, expect)
    checkUsage(tbs, kind)
    const { notBefore, notAfter } = tbs
    return { kind, id, fingerprint: sha256Hex(der), serial: serialHex(tbs.serial), notBefore, notAfter }
  } catch (cause) {
    if (cause instanceof SyntaxError) throw refusal(`not readable: ${cause.message}`)
    throw cause
  }
}

function refusal(violation: string): MusterError {
  return new MusterError('profile', `Cannot accept the certificate: ${violation}`, {
    evidence: { violation },
  })
}

function misplacedClaim(uri: string): MusterError {
  const claim = uri.slice(uri.lastIndexOf('/') + 1, 200)
  return new MusterError(
    'claim',
    `Cannot accept the claim certificate "${claim}" here: enroll with it, and come with the certificate that it brings`,
    { evidence: { claim } },
  )
}

function readOrRefuse(der: Buffer): Certificate {
  try {
    return readCertificate(der)
  } catch (cause) {
    if (!(cause instanceof SyntaxError)) throw cause
    throw refusal(`not readable: ${cause.message}`)
  }
}

/** What a certificate may be signed with. */
export const SIGNATURES: ReadonlySet<string> = new Set([
  OID.ecdsaWithSha256,
  OID.ecdsaWithSha384,
  OID.ecdsaWithSha512,
  OID.sha256WithRsa,
  OID.sha384WithRsa,
  OID.sha512WithRsa,
  OID.ed25519,
])

/** RFC 5280 section 4.1: version 3, a serial of 1 to 20 octets above zero; and no weak algorithm. */
function checkForm({ tbs, algorithm }: Certificate): void {
  if (tbs.version !== 3) throw refusal(`version ${tbs.version}`)
  const [first = 0] = tbs.serial
  if (tbs.serial.length > 20) throw refusal(`serial of ${tbs.serial.length} octets`)
  if (first >= 0x80 || tbs.serial.every((octet) => octet === 0)) throw refusal('serial not positive')
  if (algorithm !== tbs.algorithm) throw refusal('two signature algorithms')
  if (!SIGNATURES.has(algorithm)) throw refusal(`signature algorithm ${oidName(algorithm)}`)
  const kind = keyKind(tbs.spki)
  if (certifiableType(kind) === null) throw refusal(`key ${keyName(kind)}`)
}

/** Exactly one URI, of our trust domain and an expected kind, and exactly one CN that equals its id. */
function identityOf(
  tbs: Tbs,
  { trustDomain, kinds }: Pick<Expected, 'trustDomain' | 'kinds'>,
): { kind: PeerKind; id: string } {
  const names = readSubjectAltName(required(tbs, OID.subjectAltName))
  const uris = names.filter((name) => name.type === 'uri' && /^spiffe:/i.test(name.text))
  const [uri] = uris
  if (uri?.type !== 'uri' || uris.length > 1) throw refusal(`${uris.length} SAN URIs of identities`)
  const kind = kinds.find((candidate) => uri.text.startsWith(spiffeUri(trustDomain, candidate, '')))
  if (kind === undefined && uri.text.startsWith(spiffeUri(trustDomain, 'claim', '')))
    throw misplacedClaim(uri.text)
  if (kind === undefined) throw refusal(`SAN URI ${uri.text.slice(0, 200)}`)
  const id = uri.text.slice(spiffeUri(trustDomain, kind, '').length)
  if (!isDeviceId(id)) throw refusal('SAN URI with an impossible id')
  if (!isFit(kind, names)) throw refusal('SAN with other names than the URI')
  const common = commonNames(tbs.subject)
  if (common.length !== 1) throw refusal(`${common.length} common names`)
  if (common[0] !== id) throw refusal('common name other than the id of the SAN URI')
  return { kind, id }
}

/** The profile of a fleet may give its devices web addresses and DNS names; nobody else but servers has any. */
function isFit(kind: PeerKind, names: readonly ReadName[]): boolean {
  if (SERVES_HOSTS[kind] || names.length === 1) return true
  return kind === 'device' && names.every(({ type }) => type === 'uri' || type === 'dns')
}

function checkUsage(tbs: Tbs, kind: PeerKind): void {
  const constraints = tbs.extensions.get(OID.basicConstraints)
  if (constraints !== undefined && readBasicConstraints(constraints).isCa) throw refusal('CA certificate')
  const usages = readKeyUsage(required(tbs, OID.keyUsage))
  if (usages.includes('keyCertSign') || usages.includes('cRLSign')) throw refusal('key usage of a CA')
  if (!usages.includes('digitalSignature')) throw refusal('key usage without digitalSignature')
  const purposes = readExtKeyUsage(required(tbs, OID.extKeyUsage))
  const wanted: readonly string[] = PURPOSES[kind]
  const isExact = purposes.length === wanted.length && wanted.every((purpose) => purposes.includes(purpose))
  if (!isExact) throw refusal(`extended key usage ${purposes.map(oidName).join(', ').slice(0, 200)}`)
}

function required(tbs: Tbs, type: string): Extension {
  const extension = tbs.extensions.get(type)
  if (extension === undefined) throw refusal(`no ${oidName(type)}`)
  return extension
}

/** @throws MusterError expired, notyet */
export function checkDates({ notBefore, notAfter }: Pick<Peer, 'notBefore' | 'notAfter'>, now: number): void {
  const shown = (at: number) => new Date(at).toISOString()
  if (now < notBefore) {
    const evidence = { notBefore: shown(notBefore), now: shown(now) }
    throw new MusterError('notyet', `Cannot accept the certificate: valid from ${evidence.notBefore}`, {
      evidence,
    })
  }
  // the last second is valid to its end
  if (now >= notAfter + 1000) {
    const evidence = { notAfter: shown(notAfter), now: shown(now) }
    throw new MusterError('expired', `Cannot accept the certificate: expired ${evidence.notAfter}`, {
      evidence,
    })
  }
}
