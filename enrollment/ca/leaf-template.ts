/**
 * The signed part of a certificate from a template: the general encoder writes, and the linter reads, one certificate of
 * each shape; the others of that shape are copies of it in which only the serial, the dates, the names and the key are
 * exchanged. Every copy is read back before it is signed: what was exchanged must say what was asked for, and every
 * other octet must be that of the template.
 */
import { hash } from 'node:crypto'
import { isDeviceId } from '#shared/identity/device'
import { spiffeUri } from '#shared/identity/peer'
import { readTbs } from '#shared/pki/certificate'
import { type DerNode, readDer } from '#shared/pki/der'
import { OID } from '#shared/pki/oid'
import { encodeTime } from '#shared/pki/time'
import type { CertificateRequest, Issuer } from './issue.ts'
import { lintFailure } from './lint.ts'
import { keyIdentifier } from './template.ts'

/** Octets of a P-256 SubjectPublicKeyInfo (RFC 5480 section 2) up to the point, and the point: 0x04, x, y. */
const P256_HEADER = Buffer.from('3059301306072a8648ce3d020106082a8648ce3d030107034200', 'hex')
const P256_POINT = 65
const P256_SPKI = P256_HEADER.length + P256_POINT

/** A request with the CRL that its certificate will name. */
export interface NamedRequest extends CertificateRequest {
  readonly crlUrl: string
}

/** What is exchanged, in the order in which it stands in a certificate. */
const SLOTS = ['serial', 'validity', 'commonName', 'spki', 'keyId', 'uri', 'crlUrl'] as const
type Slot = (typeof SLOTS)[number]
/** The octets of each. */
type Contents = Readonly<Record<Slot, Buffer>>

/** Where one of them lies, octets. */
export interface Place {
  readonly slot: Slot
  readonly start: number
  readonly end: number
}

/** One certificate of a shape, linted, and where in it the octets lie that differ. */
export interface LeafTemplate {
  readonly der: Buffer
  readonly places: readonly Place[]
}

/** More shapes than a plane has: 64 CRLs have two lengths of URL, ids a dozen. */
const MAX_SHAPES = 1024
const templates = new WeakMap<Issuer, Map<string, LeafTemplate>>()

/**
 * The signed part of a certificate, checked; null when its shape is not worth a template, and the general encoder and
 * linter are to be used. `encode` is the general way, linter included; its result is the template of a new shape.
 * @throws MusterError lint_failed, and what `encode` throws
 */
export function fromTemplate(issuer: Issuer, request: NamedRequest, encode: () => Buffer): Buffer | null {
  const shape = shapeOf(issuer, request)
  if (shape === null) return null
  const contents = contentsOf(issuer, request)
  const shapes = templates.get(issuer) ?? new Map<string, LeafTemplate>()
  templates.set(issuer, shapes)
  const known = shapes.get(shape)
  if (known !== undefined) {
    const tbs = fill(known, contents)
    checkFilled(known, { issuer, request, tbs })
    return tbs
  }
  const tbs = encode()
  const template = templateOf(tbs, contents)
  if (template === null) return tbs
  if (shapes.size >= MAX_SHAPES) shapes.clear()
  shapes.set(shape, template)
  return tbs
}

/** The template of the shape of a request, when there is one already. */
export function templateFor(issuer: Issuer, request: NamedRequest): LeafTemplate | null {
  return templates.get(issuer)?.get(shapeOf(issuer, request) ?? '') ?? null
}

/**
 * Two requests of one shape have certificates of one length, with everything at the same place. Null for a shape with
 * hosts or names beyond the identity, with another key than P-256, with dates that need GeneralizedTime, or with a
 * serial whose length would not be that of the others.
 */
function shapeOf(issuer: Issuer, request: NamedRequest): string | null {
  const { profile, id, spki, serial, notBefore, notAfter, crlUrl } = request
  if ((request.hosts ?? []).length > 0 || (request.names ?? []).length > 0 || isNamed(request)) return null
  if (!isDeviceId(id) || !SERIAL.test(serial) || !isP256(spki)) return null
  if (!isUtcTime(notBefore) || !isUtcTime(notAfter) || notBefore >= notAfter || notAfter > issuer.notAfter)
    return null
  return `${profile} ${id.length} ${crlUrl.length}`
}

function isNamed({ subject }: CertificateRequest): boolean {
  return subject !== undefined && (subject.organization !== null || subject.organizationalUnit !== null)
}

/** 16 octets whose first is 0x01 to 0x7f: no zero to drop, none to add. */
const SERIAL = /^(?!00)[0-7][0-9a-f]{31}$/
const END_OF_UTC_TIME = Date.UTC(2050, 0, 1)

function isUtcTime(at: number): boolean {
  return Number.isSafeInteger(at) && at % 1000 === 0 && at >= 0 && at < END_OF_UTC_TIME
}

function isP256(spki: Buffer): boolean {
  return (
    spki.length === P256_SPKI &&
    spki[P256_HEADER.length] === 0x04 &&
    P256_HEADER.equals(spki.subarray(0, P256_HEADER.length))
  )
}

function contentsOf(issuer: Issuer, request: NamedRequest): Contents {
  return {
    serial: Buffer.from(request.serial, 'hex'),
    validity: Buffer.concat([encodeTime(request.notBefore), encodeTime(request.notAfter)]),
    commonName: Buffer.from(request.id, 'latin1'),
    spki: request.spki,
    keyId: keyIdOf(request.spki),
    uri: Buffer.from(spiffeUri(issuer.trustDomain, request.profile, request.id), 'latin1'),
    crlUrl: Buffer.from(request.crlUrl, 'latin1'),
  }
}

/** As `keyIdentifier` of template.ts, of a P-256 key whose place is known. */
function keyIdOf(spki: Buffer): Buffer {
  return hash('sha256', spki.subarray(P256_HEADER.length), 'buffer').subarray(0, 20)
}

/** Null when the certificate does not hold the contents where they belong; then its shape has no template. */
function templateOf(der: Buffer, contents: Contents): LeafTemplate | null {
  const found = readSlots(der)
  const places = SLOTS.map((slot) => {
    const start = found[slot].byteOffset - der.byteOffset
    return { slot, start, end: start + found[slot].length }
  })
  const isWhole = SLOTS.every((slot) => found[slot].equals(contents[slot]))
  const isOrdered = places.every(({ start }, index) => start >= (places[index - 1]?.end ?? 0))
  return isWhole && isOrdered ? { der: Buffer.from(der), places } : null
}

/** The octets of each slot, as views of the certificate, found by the strict reader. @throws SyntaxError */
function readSlots(der: Buffer): Contents {
  const tbs = readTbs(der)
  const value = (type: string) => readDer(tbs.extensions.get(type)?.value ?? Buffer.alloc(0))
  return {
    serial: tbs.serial,
    validity: tbs.validity.content,
    commonName: lastOf(tbs.subject).content,
    spki: tbs.spki.raw,
    keyId: value(OID.subjectKeyIdentifier).content,
    uri: lastOf(value(OID.subjectAltName)).content,
    crlUrl: lastOf(value(OID.crlDistributionPoints)).content,
  }
}

/** The last element at the bottom: the only text of a name or an extension that holds one. */
function lastOf(node: DerNode): DerNode {
  const last = node.children.at(-1)
  return last === undefined ? node : lastOf(last)
}

function fill(template: LeafTemplate, contents: Contents): Buffer {
  const tbs = Buffer.from(template.der)
  for (const { slot, start } of template.places) contents[slot].copy(tbs, start)
  return tbs
}

/** A copy of a template with everything exchanged, and what was asked for. */
export interface Filled {
  readonly issuer: Issuer
  readonly request: NamedRequest
  readonly tbs: Buffer
}

/** The rules of the linter for what was exchanged, read from the octets that are to be signed. */
const RULES: Readonly<Record<Slot, (octets: Buffer, filled: Filled) => boolean>> = {
  serial: (octets, { request }) =>
    octets.length === 16 && (octets[0] ?? 0x80) < 0x80 && octets.toString('hex') === request.serial,
  validity: (octets, { request }) =>
    octets.toString('latin1') === `${utcTime(request.notBefore)}${utcTime(request.notAfter)}`,
  commonName: (octets, { request }) => octets.toString('latin1') === request.id,
  spki: (octets, { request }) => octets.equals(request.spki),
  keyId: (octets, { request }) => octets.equals(keyIdentifier(request.spki)),
  uri: (octets, { issuer, request }) =>
    octets.toString('latin1') === `spiffe://${issuer.trustDomain}/${request.profile}/${request.id}`,
  crlUrl: (octets, { request }) => octets.toString('latin1') === request.crlUrl,
}

/** Tag, length and digits, written in another way than the encoder does. */
function utcTime(at: number): string {
  const [, year, month, day, hour, minute, second] =
    /^\d\d(\d\d)-(\d\d)-(\d\d)T(\d\d):(\d\d):(\d\d)\.000Z$/.exec(new Date(at).toISOString()) ?? []
  return `\x17\x0d${year}${month}${day}${hour}${minute}${second}Z`
}

/**
 * What the linter does for a copy of a linted template: what was exchanged must say what was asked for, and all other
 * octets must be those of the template.
 * @throws MusterError lint_failed (evidence: rule)
 */
export function checkFilled({ der, places }: LeafTemplate, filled: Filled): void {
  const { tbs } = filled
  if (tbs.length !== der.length) throw lintFailure('template')
  let from = 0
  for (const { slot, start, end } of places) {
    if (tbs.compare(der, from, start, from, start) !== 0) throw lintFailure('template')
    if (!RULES[slot](tbs.subarray(start, end), filled)) throw lintFailure(slot)
    from = end
  }
  if (tbs.compare(der, from, der.length, from) !== 0) throw lintFailure('template')
}
