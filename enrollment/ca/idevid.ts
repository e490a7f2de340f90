/**
 * Certificates that a manufacturer put into its devices (IDevID, IEEE 802.1AR), and the CAs that issued them. The chain
 * is checked here, not by TLS: the registered CA is the direct issuer or the certificate is of no use, so there is no
 * path to build and nothing of it is trusted anywhere else.
 */
import { X509Certificate } from 'node:crypto'
import { MusterError } from '#shared/errors'
import { SIGNATURES } from '#shared/identity/peer'
import { type Certificate, readCertificate, serialHex, type Tbs } from '#shared/pki/certificate'
import { TAG } from '#shared/pki/der'
import { sha256Hex } from '#shared/pki/keys'
import { nameAttributes } from '#shared/pki/name'
import { OID, oidName } from '#shared/pki/oid'
import { readBasicConstraints, readExtKeyUsage, readKeyUsage } from '#shared/pki/read-extensions'
import { certifiableType, keyKind, keyName } from '#shared/pki/spki'
import type { Idevid } from '../registry/registry.ts'

/** A registered CA, read. */
export interface IdevidCa {
  readonly id: string
  /** SHA-256 of its name and key, hex: a CA that gets a new certificate for them is the same. */
  readonly ca: string
  readonly certificate: X509Certificate
  readonly tbs: Tbs
}

/** `serialNumber` is not longer than this (X.520, ub-serial-number). */
const SERIAL_NUMBER_MAX = 64
/** PrintableString (X.680 section 41.4): no control character, nothing that looks like another. */
const PRINTABLE = /^[A-Za-z0-9 '()+,\-./:=?]+$/
/** Extensions that may be critical, because they are looked at here (RFC 5280 section 4.2). */
const UNDERSTOOD: ReadonlySet<string> = new Set([
  OID.basicConstraints,
  OID.keyUsage,
  OID.extKeyUsage,
  OID.subjectAltName,
  OID.subjectKeyIdentifier,
  OID.authorityKeyIdentifier,
])

/** True for what the attribute of a certificate, or a row of a list, may hold. */
export function isSerialNumber(text: string): boolean {
  return text.length <= SERIAL_NUMBER_MAX && PRINTABLE.test(text) && text === text.trim()
}

/** The serial of a certificate as people write it, in hex with or without colons and zeros before, as `readIdevid` has it; else null. */
export function readCertificateSerial(written: string): string | null {
  const hex = written.replaceAll(':', '')
  if (!/^[0-9a-f]{1,40}$/i.test(hex)) return null
  return serialHex(Buffer.from(hex.padStart(40, '0'), 'hex'))
}

/**
 * A certificate that is fit to be registered: that of a CA which may issue certificates for clients.
 * @throws MusterError invalid_request
 */
export function readIdevidCa(der: Uint8Array, id: string): IdevidCa {
  const violation = (what: string) =>
    new MusterError('invalid_request', `Cannot register the CA of "${id}": ${what}`)
  try {
    const parsed = readCertificate(der)
    const fault = formFault(parsed) ?? caFault(parsed.tbs)
    if (fault !== null) throw violation(fault)
    const certificate = new X509Certificate(Buffer.from(der))
    if (isSelfIssued(parsed.tbs) && !certificate.verify(certificate.publicKey)) {
      throw violation('it is not signed with its own key')
    }
    const ca = sha256Hex(Buffer.concat([parsed.tbs.subject.raw, parsed.tbs.spki.raw]))
    return { id, ca, certificate, tbs: parsed.tbs }
  } catch (cause) {
    if (cause instanceof MusterError) throw cause
    throw violation('it cannot be read')
  }
}

function isSelfIssued({ issuer, subject }: Tbs): boolean {
  return issuer.raw.equals(subject.raw)
}

/** Whether the registered CA has signed the certificate: name octet for octet, and signature. */
export function isIssuedBy({ certificate: ca, tbs }: IdevidCa, certificate: X509Certificate): boolean {
  try {
    const { issuer } = readCertificate(certificate.raw).tbs
    return (
      issuer.raw.equals(tbs.subject.raw) && certificate.checkIssued(ca) && certificate.verify(ca.publicKey)
    )
  } catch {
    return false // what cannot be read was issued by nobody
  }
}

/**
 * What an IDevID says, once `isIssuedBy` has found its CA. `notAfter` may be 99991231235959Z (IEEE 802.1AR).
 * @throws MusterError idevid (evidence: violation), expired, notyet
 */
export function readIdevid(certificate: X509Certificate, { ca, now }: { ca: IdevidCa; now: number }): Idevid {
  const { tbs, serialNumber } = readChecked(certificate.raw, ca)
  checkDates('certificate of the CA', { tbs: ca.tbs, now })
  checkDates('certificate', { tbs, now })
  return {
    ca: ca.ca,
    fingerprint: sha256Hex(certificate.raw),
    serialNumber,
    certificateSerial: serialHex(tbs.serial),
  }
}

function readChecked(der: Buffer, { id, tbs: ca }: IdevidCa): { tbs: Tbs; serialNumber: string | null } {
  let fault: string | null
  try {
    const parsed = readCertificate(der)
    fault = formFault(parsed) ?? leafFault(parsed.tbs) ?? purposeFault(ca)
    if (fault === null) return { tbs: parsed.tbs, serialNumber: serialNumberOf(parsed.tbs) }
  } catch (cause) {
    if (!(cause instanceof SyntaxError)) throw cause
    fault = cause.message
  }
  throw new MusterError('idevid', `Cannot accept the certificate of the manufacturer "${id}": ${fault}`, {
    evidence: { manufacturer: id, violation: fault },
  })
}

/** RFC 5280 section 4.1: version 3, a serial of 1 to 20 octets above zero, no weak algorithm; critical extensions that are understood. */
function formFault({ tbs, algorithm }: Certificate): string | null {
  const [first = 0x80] = tbs.serial
  if (tbs.version !== 3) return `version ${tbs.version}`
  if (tbs.serial.length > 20 || first >= 0x80 || tbs.serial.every((octet) => octet === 0)) return 'its serial'
  if (algorithm !== tbs.algorithm) return 'two signature algorithms'
  if (!SIGNATURES.has(algorithm)) return `signature algorithm ${oidName(algorithm)}`
  const kind = keyKind(tbs.spki)
  if (certifiableType(kind) === null) return `key ${keyName(kind)}`
  for (const [type, { isCritical }] of tbs.extensions) {
    if (isCritical && !UNDERSTOOD.has(type)) return `critical extension ${oidName(type)}`
  }
  return null
}

/** A certificate below it ends the path, so that any path length will do (RFC 5280 section 4.2.1.9). */
function caFault(tbs: Tbs): string | null {
  const constraints = tbs.extensions.get(OID.basicConstraints)
  if (constraints === undefined || !readBasicConstraints(constraints).isCa) return 'it is no CA certificate'
  const usage = tbs.extensions.get(OID.keyUsage)
  if (usage !== undefined && !readKeyUsage(usage).includes('keyCertSign'))
    return 'key usage without keyCertSign'
  return purposeFault(tbs)
}

function leafFault(tbs: Tbs): string | null {
  const constraints = tbs.extensions.get(OID.basicConstraints)
  if (constraints !== undefined && readBasicConstraints(constraints).isCa) return 'CA certificate'
  const usage = tbs.extensions.get(OID.keyUsage)
  const usages = usage === undefined ? null : readKeyUsage(usage)
  if (usages?.includes('keyCertSign') || usages?.includes('cRLSign')) return 'key usage of a CA'
  if (usages !== null && !usages.includes('digitalSignature')) return 'key usage without digitalSignature'
  return purposeFault(tbs)
}

/** Without the extension a certificate is for every purpose; 802.1AR wants it so. */
function purposeFault(tbs: Tbs): string | null {
  const extension = tbs.extensions.get(OID.extKeyUsage)
  if (extension === undefined) return null
  const purposes = readExtKeyUsage(extension)
  const isForClients = purposes.includes(OID.clientAuth) || purposes.includes(OID.anyExtendedKeyUsage)
  return isForClients ? null : `extended key usage ${purposes.map(oidName).join(', ').slice(0, 200)}`
}

/** @throws SyntaxError when there are two, or one that is not plain text */
function serialNumberOf(tbs: Tbs): string | null {
  const [only, ...others] = nameAttributes(tbs.subject).filter(({ type }) => type === OID.serialNumber)
  if (only === undefined) return null
  if (others.length > 0) throw new SyntaxError(`${others.length + 1} serial numbers in the subject`)
  const { tag, content } = only.value
  const text = content.toString('latin1')
  const isText = tag === TAG.printableString || tag === TAG.utf8String
  if (!isText || !isSerialNumber(text)) throw new SyntaxError('serial number that is not printable')
  return text
}

/** @throws MusterError expired, notyet */
function checkDates(what: string, { tbs, now }: { tbs: Tbs; now: number }): void {
  const [notBefore, notAfter, shown] = [tbs.notBefore, tbs.notAfter, now].map((at) =>
    new Date(at).toISOString(),
  )
  if (now < tbs.notBefore) {
    throw new MusterError('notyet', `Cannot accept the manufacturer's ${what}: valid from ${notBefore}`, {
      evidence: { notBefore: `${notBefore}`, now: `${shown}` },
    })
  }
  // the last second is valid to its end
  if (now >= tbs.notAfter + 1000) {
    throw new MusterError('expired', `Cannot accept the manufacturer's ${what}: expired ${notAfter}`, {
      evidence: { notAfter: `${notAfter}`, now: `${shown}` },
    })
  }
}
