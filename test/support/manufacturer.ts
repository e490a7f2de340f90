/**
 * A manufacturer: a CA of its own, and the certificates that it puts into its devices (IEEE 802.1AR), with whatever may
 * be wrong about them. What is left out is right.
 */
import { type KeyObject, randomBytes, sign } from 'node:crypto'
import { readCertificate, serialHex } from '#shared/pki/certificate'
import { TAG } from '#shared/pki/der'
import { element, explicit, integer, oid, sequence, setOf, TRUE, utf8String } from '#shared/pki/der-write'
import {
  basicConstraints,
  criticalExtension,
  extKeyUsage,
  type KeyUsage,
  keyUsage,
  subjectKeyIdentifier,
} from '#shared/pki/extensions'
import { generateKey, privateKeyPem, sha256Hex, spkiDer } from '#shared/pki/keys'
import { OID } from '#shared/pki/oid'
import { derToPem } from '#shared/pki/pem'
import { assemble, keyIdentifier } from '../../enrollment/ca/template.ts'
import type { Pair } from './enrollment.ts'

const ECDSA_WITH_SHA1 = '1.2.840.10045.4.1'

export interface IdevidFault {
  readonly version?: 1 | 3
  /** Content octets of the INTEGER. */
  readonly serial?: Uint8Array
  /** Values of the attribute serialNumber, as DER: PrintableStrings usually. */
  readonly serialNumbers?: readonly Uint8Array[]
  readonly notBefore?: string
  /** UTCTime or GeneralizedTime by its length. */
  readonly notAfter?: string
  readonly usages?: readonly KeyUsage[]
  readonly purposes?: readonly string[]
  readonly isCa?: boolean
  /** Dotted type of an extension that nobody knows. */
  readonly critical?: string
  readonly isSha1?: boolean
  /** Signs in place of the CA, whose name stays. */
  readonly signedBy?: KeyObject
  readonly key?: KeyObject
}

export interface TestIdevid extends Pair {
  readonly serialNumber: string
  readonly certificateSerial: string
  readonly fingerprint: string
  readonly der: Buffer
}

export interface TestManufacturer {
  readonly key: KeyObject
  /** Of the CA, PEM. */
  readonly ca: string
  /** The CA with its key, as a client would present it. */
  readonly pair: Pair
  issue(serialNumber: string, fault?: IdevidFault): TestIdevid
}

export const printable = (text: string) => element(TAG.printableString, Buffer.from(text, 'latin1'))
export const utf8 = utf8String

interface CaFault extends IdevidFault {
  readonly name?: string
  readonly pathLength?: number
}

/** Another one with the same name has another key. */
export function testManufacturer(fault: CaFault = {}): TestManufacturer {
  const key = fault.key ?? generateKey()
  const name = named('commonName', utf8String(fault.name ?? 'Acme device CA'))
  const constraints =
    fault.isCa === false ? basicConstraints(false) : basicConstraints({ pathLength: fault.pathLength ?? 0 })
  const usages = fault.usages ?? ['keyCertSign', 'cRLSign']
  const der = certificate({ fault, key, subject: name, issuer: { name, key }, constraints, usages })
  const ca = derToPem(der, 'CERTIFICATE')
  const issuer = { name, key }
  return {
    key,
    ca,
    pair: { certificate: ca, key: privateKeyPem(key) },
    issue: (serialNumber, leaf = {}) => issueIdevid({ issuer, serialNumber, fault: leaf }),
  }
}

interface Issuing {
  readonly issuer: { readonly name: Buffer; readonly key: KeyObject }
  readonly serialNumber: string
  readonly fault: IdevidFault
}

function issueIdevid({ issuer, serialNumber, fault }: Issuing): TestIdevid {
  const key = fault.key ?? generateKey()
  const values = fault.serialNumbers ?? [printable(serialNumber)]
  const subject = sequence(
    attribute('organization', utf8String('Acme')),
    ...values.map((value) => attribute('serialNumber', value)),
  )
  const constraints =
    fault.isCa === true ? criticalExtension(OID.basicConstraints, sequence(TRUE)) : basicConstraints(false)
  const usages = fault.usages ?? ['digitalSignature']
  const der = certificate({ fault, key, subject, issuer, constraints, usages })
  return {
    serialNumber,
    der,
    certificate: derToPem(der, 'CERTIFICATE'),
    key: privateKeyPem(key),
    certificateSerial: serialHex(readSerial(der, fault)),
    fingerprint: sha256Hex(der),
  }
}

/** A version 1 certificate is none that the strict reader takes for one of ours, but its serial can be read. */
function readSerial(der: Buffer, { serial }: IdevidFault): Buffer {
  return serial === undefined ? readCertificate(der).tbs.serial : Buffer.from(serial)
}

function certificate(of: {
  fault: IdevidFault
  key: KeyObject
  subject: Buffer
  issuer: { name: Buffer; key: KeyObject }
  constraints: Buffer
  usages: readonly KeyUsage[]
}): Buffer {
  const { fault, key, subject, issuer } = of
  const algorithm = sequence(oid(fault.isSha1 === true ? ECDSA_WITH_SHA1 : OID.ecdsaWithSha256))
  const isV1 = fault.version === 1
  const spki = spkiDer(key)
  const extensions = sequence(
    subjectKeyIdentifier(keyIdentifier(spki)),
    of.constraints,
    keyUsage(of.usages),
    ...(fault.purposes ? [extKeyUsage(fault.purposes)] : []),
    ...(fault.critical ? [criticalExtension(fault.critical, sequence())] : []),
  )
  const tbs = sequence(
    ...(isV1 ? [] : [explicit(0, integer(2))]),
    element(TAG.integer, fault.serial ?? Buffer.concat([Buffer.from([0x11]), randomBytes(15)])),
    algorithm,
    issuer.name,
    sequence(time(fault.notBefore ?? '240101000000Z'), time(fault.notAfter ?? '99991231235959Z')),
    subject,
    spki,
    ...(isV1 ? [] : [explicit(3, extensions)]),
  )
  const signature = sign(fault.isSha1 === true ? 'sha1' : 'sha256', tbs, fault.signedBy ?? issuer.key)
  return assemble({ tbs, algorithm, signature })
}

function time(digits: string): Buffer {
  const tag = digits.length === 13 ? TAG.utcTime : TAG.generalizedTime
  return element(tag, Buffer.from(digits, 'latin1'))
}

function named(type: 'commonName', value: Buffer): Buffer {
  return sequence(attribute(type, value))
}

function attribute(type: 'commonName' | 'organization' | 'serialNumber', value: Uint8Array): Buffer {
  return setOf(sequence(oid(OID[type]), value))
}
