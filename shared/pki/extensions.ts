/** Encoders of the extensions that Muster sets (RFC 5280 section 4.2); `read-extensions.ts` reads them back. */
import { isIP } from 'node:net'
import { contextTag } from './der.ts'
import {
  bitString,
  element,
  explicit,
  ia5,
  implicit,
  integer,
  NULL,
  octetString,
  oid,
  sequence,
  TRUE,
} from './der-write.ts'
import { OID } from './oid.ts'

/** One Extension that may be ignored. The value is DER. */
export function extension(type: string, value: Uint8Array): Buffer {
  return sequence(oid(type), octetString(value))
}

/** One Extension that must be understood. The value is DER. */
export function criticalExtension(type: string, value: Uint8Array): Buffer {
  return sequence(oid(type), TRUE, octetString(value))
}

export function authorityKeyIdentifier(keyId: Uint8Array): Buffer {
  return extension(OID.authorityKeyIdentifier, sequence(implicit(0, keyId)))
}

export function subjectKeyIdentifier(keyId: Uint8Array): Buffer {
  return extension(OID.subjectKeyIdentifier, octetString(keyId))
}

/** Bit numbers of KeyUsage (RFC 5280 section 4.2.1.3). */
export const KEY_USAGE_BIT = {
  digitalSignature: 0,
  nonRepudiation: 1,
  keyEncipherment: 2,
  dataEncipherment: 3,
  keyAgreement: 4,
  keyCertSign: 5,
  cRLSign: 6,
  encipherOnly: 7,
  decipherOnly: 8,
} as const
export type KeyUsage = keyof typeof KEY_USAGE_BIT

/** Always critical. Only the first eight bits can be set. */
export function keyUsage(usages: readonly KeyUsage[]): Buffer {
  const bits = usages.map((usage) => KEY_USAGE_BIT[usage])
  const octet = bits.reduce<number>((sum, bit) => sum | (0x80 >> bit), 0)
  // a named bit list carries no trailing zero bits (X.690 section 11.2.2)
  return criticalExtension(OID.keyUsage, bitString(Buffer.from([octet]), 7 - Math.max(...bits)))
}

export function extKeyUsage(purposes: readonly string[]): Buffer {
  return extension(OID.extKeyUsage, sequence(...purposes.map(oid)))
}

/** CA:TRUE with a path length, or CA:FALSE; always critical. */
export function basicConstraints(ca: { readonly pathLength: number } | false): Buffer {
  const value = ca === false ? sequence() : sequence(TRUE, integer(ca.pathLength))
  return criticalExtension(OID.basicConstraints, value)
}

export type GeneralName = { readonly uri: string } | { readonly host: string }

/** A host is an IP address when it reads as one, else a DNS name. */
function generalName(name: GeneralName): Buffer {
  if ('uri' in name) return implicit(6, ia5(name.uri))
  return isIP(name.host) === 0 ? implicit(2, ia5(name.host)) : implicit(7, addressOctets(name.host))
}

export function subjectAltName(names: readonly GeneralName[]): Buffer {
  return extension(OID.subjectAltName, sequence(...names.map(generalName)))
}

/** 4 or 16 octets in network order. */
export function addressOctets(address: string): Buffer {
  if (isIP(address) === 4) return Buffer.from(address.split('.').map(Number))
  // the URL parser writes every form of IPv6, embedded IPv4 included, as hexadecimal groups
  const [head = '', tail] = new URL(`http://[${address}]`).hostname.slice(1, -1).split('::')
  const left = head.split(':').filter(Boolean)
  const right = (tail ?? '').split(':').filter(Boolean)
  const middle = Array.from({ length: 8 - left.length - right.length }, () => '0')
  return Buffer.from([...left, ...middle, ...right].map((group) => group.padStart(4, '0')).join(''), 'hex')
}

/** DistributionPointName: fullName with one URI. */
function distributionPointName(url: string): Buffer {
  return explicit(0, element(contextTag(0, 'constructed'), implicit(6, ia5(url))))
}

export function crlDistributionPoint(url: string): Buffer {
  return extension(OID.crlDistributionPoints, sequence(sequence(distributionPointName(url))))
}

/** Of a CRL: the one distribution point that it answers for. */
export function issuingDistributionPoint(url: string): Buffer {
  return criticalExtension(OID.issuingDistributionPoint, sequence(distributionPointName(url)))
}

export function crlNumber(number: number): Buffer {
  return extension(OID.crlNumber, integer(number))
}

/** Where the issuer's certificate can be fetched. */
export function caIssuers(url: string): Buffer {
  return extension(OID.authorityInfoAccess, sequence(accessDescription(OID.caIssuers, url)))
}

/** Where to ask whether the certificate is revoked, and where its issuer's can be fetched. */
export function ocspAndCaIssuers({ ocspUrl, caUrl }: { ocspUrl: string; caUrl: string }): Buffer {
  const descriptions = [accessDescription(OID.ocsp, ocspUrl), accessDescription(OID.caIssuers, caUrl)]
  return extension(OID.authorityInfoAccess, sequence(...descriptions))
}

function accessDescription(method: string, url: string): Buffer {
  return sequence(oid(method), implicit(6, ia5(url)))
}

/** Of a certificate that signs OCSP responses: nobody need ask whether it is revoked (RFC 6960 section 4.2.2.2.1). */
export function ocspNoCheck(): Buffer {
  return extension(OID.ocspNoCheck, NULL)
}
