/**
 * The last look at what a CA is about to sign: each rule reads the encoded bytes back and compares them with what was
 * asked for, so that a fault in the encoder, a profile or a caller never becomes a certificate.
 */
import { isIP } from 'node:net'
import { MusterError } from '#shared/errors'
import { isDeviceId } from '#shared/identity/device'
import { type PeerKind, spiffeUri } from '#shared/identity/peer'
import { readTbs, serialHex, type Tbs } from '#shared/pki/certificate'
import { textOf } from '#shared/pki/der'
import { NULL, sequence } from '#shared/pki/der-write'
import { addressOctets, type GeneralName } from '#shared/pki/extensions'
import { nameAttributes } from '#shared/pki/name'
import { OID } from '#shared/pki/oid'
import * as read from '#shared/pki/read-extensions'
import { certifiableType, keyKind } from '#shared/pki/spki'
import { encodeTime } from '#shared/pki/time'
import { PROFILES } from './profile.ts'
import type { Signer } from './signer.ts'
import { keyIdentifier } from './template.ts'

/** What a signing CA puts into everything that it signs. */
export interface Signing {
  readonly name: Uint8Array
  readonly keyId: Uint8Array
  /** Ms since 1970, the last valid second. */
  readonly notAfter: number
  readonly signer: Pick<Signer, 'algorithm'>
}

export interface LeafOrder {
  readonly profile: PeerKind
  readonly id: string
  readonly spki: Uint8Array
  readonly serial: string
  readonly notBefore: number
  readonly notAfter: number
  readonly hosts: readonly string[]
  /** What the profile of a device's fleet adds to subject and SAN. */
  readonly subject?: { readonly organization: string | null; readonly organizationalUnit: string | null }
  readonly names?: readonly GeneralName[]
}

export interface LeafContext {
  readonly signing: Signing
  readonly order: LeafOrder
  readonly issuerKind: string
  readonly trustDomain: string
  readonly crlUrl: string
  readonly caUrl: string
  /** Null when no responder answers for the issuer. */
  readonly ocspUrl: string | null
}

type Rules<Context> = Readonly<Record<string, (tbs: Tbs, context: Context) => boolean>>

/** Rules of every certificate. */
const COMMON: Rules<{ signing: Signing }> = {
  version: (tbs) => tbs.version === 3,
  // RFC 5280 section 4.1.2.2; fewer than 8 octets of 16 random ones do not happen by chance
  serial: ({ serial }) => serial.length >= 8 && serial.length <= 20 && (serial[0] ?? 0x80) < 0x80,
  // RFC 5280 section 4.1.2.3: that of the signature, and so of the key
  signature_algorithm: (tbs, { signing }) => tbs.algorithmIdentifier.raw.equals(signing.signer.algorithm),
  issuer_name: (tbs, { signing }) => tbs.issuer.raw.equals(signing.name),
  validity_order: (tbs) => tbs.notBefore < tbs.notAfter,
  validity_encoding: (tbs) =>
    tbs.validity.raw.equals(sequence(encodeTime(tbs.notBefore), encodeTime(tbs.notAfter))),
  validity_within_issuer: (tbs, { signing }) => tbs.notAfter <= signing.notAfter,
  key: (tbs) => certifiableType(keyKind(tbs.spki)) !== null,
  authority_key_id: (tbs, { signing }) =>
    read.readAuthorityKeyId(optional(tbs, OID.authorityKeyIdentifier))?.equals(signing.keyId) === true,
  subject_key_id: (tbs) =>
    read.readSubjectKeyId(optional(tbs, OID.subjectKeyIdentifier)).equals(keyIdentifier(tbs.spki.raw)),
}

/** Rules of a certificate for a client or a server. */
const LEAF: Rules<LeafContext> = {
  issuer_kind: (_tbs, { order, issuerKind }) => PROFILES[order.profile].issuer === issuerKind,
  order_serial: (tbs, { order }) => serialHex(tbs.serial) === order.serial,
  order_dates: (tbs, { order }) => tbs.notBefore === order.notBefore && tbs.notAfter === order.notAfter,
  order_key: (tbs, { order }) => tbs.spki.raw.equals(order.spki),
  // only a device's key may be of a type that its profile has opted in to
  order_key_type: (tbs, { order }) => order.profile === 'device' || isPlainKey(tbs),
  subject: (tbs, { order }) => isDeviceId(order.id) && isSubject(tbs, order),
  extension_set: (tbs) => hasExactly(tbs, LEAF_EXTENSIONS),
  basic_constraints: (tbs) => !read.readBasicConstraints(critical(tbs, OID.basicConstraints)).isCa,
  key_usage: (tbs, { order }) =>
    isSame(read.readKeyUsage(critical(tbs, OID.keyUsage)), PROFILES[order.profile].keyUsage),
  ext_key_usage: (tbs, { order }) =>
    isSame(read.readExtKeyUsage(optional(tbs, OID.extKeyUsage)), PROFILES[order.profile].purposes),
  san_uri: (tbs, { order, trustDomain }) => {
    const uris = sanOf(tbs).flatMap((name) => (name.type === 'uri' ? [name.text] : []))
    const extra = namesIn(order).flatMap((name) => ('uri' in name ? [name.uri] : []))
    const isFit = extra.every((uri) => !uri.toLowerCase().startsWith('spiffe:'))
    return isFit && isSame(uris, [spiffeUri(trustDomain, order.profile, order.id), ...extra])
  },
  san_hosts: (tbs, { order }) => {
    const others = sanOf(tbs).filter((name) => name.type !== 'uri')
    const isFit = PROFILES[order.profile].hasHosts ? order.hosts.length > 0 : order.hosts.length === 0
    const extra = namesIn(order).flatMap((name) => ('host' in name ? [name.host] : []))
    return isFit && isSame(others.map(hostKey), [...order.hosts, ...extra].map(wantedHostKey))
  },
  // what a device is called beside its id is never an address
  names: (_tbs, { order }) => {
    const isDevice = order.profile === 'device'
    return namesIn(order).every((name) => isDevice && ('uri' in name || isIP(name.host) === 0))
  },
  crl_distribution_point: (tbs, { crlUrl }) =>
    read.readDistributionPoint(optional(tbs, OID.crlDistributionPoints)) === crlUrl,
  authority_info_access: (tbs, { caUrl, ocspUrl }) => {
    const said = read.readInfoAccesses(optional(tbs, OID.authorityInfoAccess))
    const wanted = [
      ...(ocspUrl === null ? [] : [{ method: OID.ocsp, uri: ocspUrl }]),
      { method: OID.caIssuers, uri: caUrl },
    ]
    const key = ({ method, uri }: read.InfoAccess) => `${method} ${uri}`
    return isSame(said.map(key), wanted.map(key))
  },
}

const LEAF_EXTENSIONS = [
  OID.authorityKeyIdentifier,
  OID.subjectKeyIdentifier,
  OID.basicConstraints,
  OID.keyUsage,
  OID.extKeyUsage,
  OID.subjectAltName,
  OID.crlDistributionPoints,
  OID.authorityInfoAccess,
]

export interface ResponderContext {
  readonly signing: Signing
  readonly order: Pick<LeafOrder, 'spki' | 'serial' | 'notBefore' | 'notAfter'>
}

/** Rules of a certificate that signs OCSP responses (RFC 6960 section 4.2.2.2): no identity, no other purpose. */
const RESPONDER: Rules<ResponderContext> = {
  ca_key: isPlainKey,
  order_serial: (tbs, { order }) => serialHex(tbs.serial) === order.serial,
  order_dates: (tbs, { order }) => tbs.notBefore === order.notBefore && tbs.notAfter === order.notAfter,
  order_key: (tbs, { order }) => tbs.spki.raw.equals(order.spki),
  extension_set: (tbs) => hasExactly(tbs, RESPONDER_EXTENSIONS),
  basic_constraints: (tbs) => !read.readBasicConstraints(critical(tbs, OID.basicConstraints)).isCa,
  key_usage: (tbs) => isSame(read.readKeyUsage(critical(tbs, OID.keyUsage)), ['digitalSignature']),
  ext_key_usage: (tbs) => isSame(read.readExtKeyUsage(optional(tbs, OID.extKeyUsage)), [OID.ocspSigning]),
  ocsp_no_check: (tbs) => optional(tbs, OID.ocspNoCheck).value.equals(NULL),
}

const RESPONDER_EXTENSIONS = [
  OID.authorityKeyIdentifier,
  OID.subjectKeyIdentifier,
  OID.basicConstraints,
  OID.keyUsage,
  OID.extKeyUsage,
  OID.ocspNoCheck,
]

export interface CaContext {
  readonly signing: Signing
  readonly pathLength: number
  readonly trustDomain: string
}

/** Rules of a CA's own certificate. */
const CA: Rules<CaContext> = {
  ca_key: (tbs) => isPlainKey(tbs) || keyKind(tbs.spki).type === 'RSA',
  key_usage: (tbs) => isSame(read.readKeyUsage(critical(tbs, OID.keyUsage)), ['keyCertSign', 'cRLSign']),
  basic_constraints: (tbs, { pathLength }) => {
    const constraints = read.readBasicConstraints(critical(tbs, OID.basicConstraints))
    return constraints.isCa && constraints.pathLength === pathLength
  },
  san_uri: (tbs, { trustDomain }) => {
    const [name, ...others] = sanOf(tbs)
    return name?.type === 'uri' && name.text === `spiffe://${trustDomain}` && others.length === 0
  },
}

/** @throws MusterError lint_failed (evidence: rule) */
export function lintLeaf(tbs: Uint8Array, context: LeafContext): void {
  const parsed = parse(tbs)
  check(COMMON, { tbs: parsed, context })
  check(LEAF, { tbs: parsed, context })
}

/** @throws MusterError lint_failed (evidence: rule) */
export function lintResponder(tbs: Uint8Array, context: ResponderContext): void {
  const parsed = parse(tbs)
  check(COMMON, { tbs: parsed, context })
  check(RESPONDER, { tbs: parsed, context })
}

/** @throws MusterError lint_failed (evidence: rule) */
export function lintCa(tbs: Uint8Array, context: CaContext): void {
  const parsed = parse(tbs)
  check(COMMON, { tbs: parsed, context })
  check(CA, { tbs: parsed, context })
}

export function lintFailure(rule: string, cause?: unknown): MusterError {
  return new MusterError('lint_failed', `Cannot sign: the linter found a fault in "${rule}"`, {
    cause,
    evidence: { rule },
  })
}

function parse(tbs: Uint8Array): Tbs {
  try {
    return readTbs(tbs)
  } catch (cause) {
    throw lintFailure('der', cause)
  }
}

function check<Context>(rules: Rules<Context>, { tbs, context }: { tbs: Tbs; context: Context }): void {
  for (const [rule, holds] of Object.entries(rules)) {
    if (!isHeld(() => holds(tbs, context), rule)) throw lintFailure(rule)
  }
}

/** What cannot be read breaks the rule that wanted to read it. */
function isHeld(holds: () => boolean, rule: string): boolean {
  try {
    return holds()
  } catch (cause) {
    throw lintFailure(rule, cause)
  }
}

function critical(tbs: Tbs, type: string): read.Extension {
  const extension = tbs.extensions.get(type)
  if (extension?.isCritical !== true) throw new SyntaxError(`${type} is missing or not critical`)
  return extension
}

function optional(tbs: Tbs, type: string): read.Extension {
  const extension = tbs.extensions.get(type)
  if (extension?.isCritical !== false) throw new SyntaxError(`${type} is missing or critical`)
  return extension
}

function sanOf(tbs: Tbs): read.ReadName[] {
  return read.readSubjectAltName(optional(tbs, OID.subjectAltName))
}

function namesIn(order: LeafOrder): readonly GeneralName[] {
  return order.names ?? []
}

function isPlainKey(tbs: Tbs): boolean {
  return ['P-256', 'P-384'].includes(keyKind(tbs.spki).type)
}

/** Organization and unit where the order has them, then the common name; nothing else. */
function isSubject(tbs: Tbs, { id, subject }: LeafOrder): boolean {
  const wanted = [
    [OID.organization, subject?.organization ?? null],
    [OID.organizationalUnit, subject?.organizationalUnit ?? null],
    [OID.commonName, id],
  ].filter(([, text]) => text !== null)
  const said = nameAttributes(tbs.subject).map(({ type, value }) => [type, textOf(value)])
  return JSON.stringify(said) === JSON.stringify(wanted)
}

function hasExactly(tbs: Tbs, types: readonly string[]): boolean {
  return isSame([...tbs.extensions.keys()], types)
}

/** The same members, each once, in any order. */
function isSame(some: readonly string[], others: readonly string[]): boolean {
  const set = new Set(some)
  return set.size === some.length && some.length === others.length && others.every((other) => set.has(other))
}

/** IP addresses compare by their octets, however they were written. */
function hostKey(name: read.ReadName): string {
  if (name.type === 'ip') return name.octets.toString('hex')
  return name.type === 'dns' && DNS_NAME.test(name.text) ? `dns:${name.text}` : 'unfit'
}

function wantedHostKey(host: string): string {
  return isIP(host) === 0 ? `dns:${host}` : addressOctets(host).toString('hex')
}

/** Letters, digits and inner hyphens in labels of at most 63 (RFC 1123 section 2.1); no wildcards. */
const DNS_NAME = /^(?=.{1,253}$)[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?(\.[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?)*$/i
