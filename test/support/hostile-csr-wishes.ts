/** Requests that wish for what no device gets. */
import {
  bitString,
  element,
  explicit,
  implicit,
  integer,
  NULL,
  octetString,
  oid,
  sequence,
  setOf,
  TRUE,
  utf8String,
} from '#shared/pki/der-write'
import { criticalExtension, extension, extKeyUsage, keyUsage, subjectAltName } from '#shared/pki/extensions'
import { OID } from '#shared/pki/oid'
import { commonName, type HostileCsr, named, type Victim } from './hostile-csr.ts'
import { craftCsr } from './pki-csr.ts'

function wishing(next: () => Victim, wishes: Record<string, readonly Buffer[]>): HostileCsr[] {
  return Object.entries(wishes).map(([name, extensions]) => {
    const { id, key } = next()
    return { name, der: craftCsr({ key, subject: named(id), extensions }) }
  })
}

const PURPOSES = [
  OID.serverAuth,
  OID.anyExtendedKeyUsage,
  OID.ocspSigning,
  '1.3.6.1.5.5.7.3.3', // code signing
  '1.3.6.1.5.5.7.3.4', // mail
  '1.3.6.1.5.5.7.3.8', // time stamping
  '1.3.6.1.4.1.311.20.2.2', // smart card logon
  '1.3.6.1.5.2.3.5', // Kerberos KDC
]

export function extensions(next: () => Victim): HostileCsr[] {
  const ca = sequence(TRUE)
  const wishes: Record<string, Buffer[]> = {
    'CA, critical': [criticalExtension(OID.basicConstraints, ca)],
    'CA, not critical': [extension(OID.basicConstraints, ca)],
    'CA with path length': [criticalExtension(OID.basicConstraints, sequence(TRUE, integer(3)))],
    'CA true as 1': [extension(OID.basicConstraints, sequence(Buffer.from([1, 1, 1])))],
    'CA false written out': [extension(OID.basicConstraints, sequence(Buffer.from([1, 1, 0])))],
    'CA as integer': [extension(OID.basicConstraints, sequence(integer(1)))],
    'path length alone': [extension(OID.basicConstraints, sequence(integer(0)))],
    'no constraints at all': [extension(OID.basicConstraints, Buffer.alloc(0))],
    'CA and signing': [extension(OID.basicConstraints, ca), keyUsage(['keyCertSign', 'cRLSign'])],
    'nine usage bits': [extension(OID.keyUsage, bitString(Buffer.from([0xff, 0x80]), 7))],
    'usage with wrong padding': [extension(OID.keyUsage, bitString(Buffer.from([0xff]), 4))],
    'no usage': [extension(OID.keyUsage, bitString(Buffer.alloc(0)))],
    'no purpose': [extension(OID.extKeyUsage, sequence())],
    'name constraints': [criticalExtension('2.5.29.30', sequence())],
    policies: [extension('2.5.29.32', sequence(sequence(oid('2.5.29.32.0'))))],
    'a CRL of its own': [extension(OID.crlDistributionPoints, sequence())],
    'a key identifier of its own': [extension(OID.subjectKeyIdentifier, octetString(Buffer.alloc(20, 1)))],
    'an issuer of its own': [extension(OID.authorityKeyIdentifier, sequence(implicit(0, Buffer.alloc(20))))],
    'OCSP no check': [extension('1.3.6.1.5.5.7.48.1.5', NULL)],
    'must staple': [extension('1.3.6.1.5.5.7.1.24', sequence(integer(5)))],
    'the precertificate poison': [criticalExtension('1.3.6.1.4.1.11129.2.4.3', NULL)],
    'a proxy certificate': [criticalExtension('1.3.6.1.5.5.7.1.14', sequence())],
    'a thousand extensions': Array.from({ length: 900 }, (_, at) => extension(`1.2.3.${at}`, NULL)),
    twice: [keyUsage(['digitalSignature']), keyUsage(['digitalSignature'])],
    'a value that is no octet string': [sequence(oid(OID.keyUsage), NULL)],
    'an extension of one field': [sequence(oid(OID.keyUsage))],
    'criticality as integer': [sequence(oid(OID.keyUsage), integer(1), octetString(NULL))],
  }
  for (const usage of ['keyCertSign', 'cRLSign'] as const) {
    wishes[usage] = [keyUsage([usage])]
    wishes[`${usage} among others`] = [keyUsage(['digitalSignature', usage])]
  }
  for (const purpose of PURPOSES) {
    wishes[`purpose ${purpose}`] = [extKeyUsage([purpose])]
    wishes[`purpose ${purpose} beside the right one`] = [extKeyUsage([OID.clientAuth, purpose])]
  }
  return wishing(next, wishes)
}

export function alternativeNames(next: () => Victim, trustDomain: string): HostileCsr[] {
  const own = `spiffe://${trustDomain}`
  const uris = [
    `${own}/device/somebody-else`,
    `${own}/service/backend`,
    `${own}/broker/b1`,
    `${own}/operator/local`,
    `${own}/server/enrollment`,
    `${own}/`,
    `${own}/device/`,
    `${own}/device/../operator/local`,
    `${own}/device/a/b`,
    `${own}/device/%6c%6f`,
    `${own}/device/a?b`,
    `${own}/device/a#b`,
    `${own}/device/a\0b`,
    `${own}/device/a\nb`,
    `${own}:443/device/a`,
    `spiffe://user@${trustDomain}/device/a`,
    `SPIFFE://${trustDomain}/device/a`,
    `spiffe://${trustDomain.toUpperCase()}/device/a`,
    'spiffe://evil.example/device/a',
    `spiffe://${trustDomain}.evil.example/device/a`,
    'https://evil.example/',
    'urn:uuid:f81d4fae-7dec-11d0-a765-00a0c91e6bf6',
    'javascript:alert(1)',
    '',
    `${own}/device/${'a'.repeat(4000)}`,
  ]
  const uri = (text: string) => implicit(6, Buffer.from(text, 'latin1'))
  const other: Record<string, Buffer> = {
    mail: implicit(1, Buffer.from('root@localhost')),
    host: implicit(2, Buffer.from('localhost')),
    'a wildcard host': implicit(2, Buffer.from('*.example')),
    'a host with NUL': implicit(2, Buffer.from('localhost\0.evil')),
    'an empty host': implicit(2, Buffer.alloc(0)),
    'X.400': element(0xa3, sequence()),
    'a directory name': element(0xa4, named('root')),
    EDI: element(0xa5, sequence()),
    IPv4: implicit(7, Buffer.from([127, 0, 0, 1])),
    IPv6: implicit(7, Buffer.alloc(16, 1)),
    'an address of 5 octets': implicit(7, Buffer.alloc(5)),
    'a registered id': implicit(8, Buffer.from([42, 3])),
    'another name': element(0xa0, oid('1.3.6.1.4.1.311.20.2.3'), explicit(0, utf8String('root@corp'))),
    'an unknown form': implicit(9, Buffer.alloc(1)),
    'no context tag': utf8String('localhost'),
  }
  const all = [
    ...uris.map((text) => [`URI ${text.slice(0, 60)}`, uri(text)] as const),
    ...Object.entries(other),
  ]
  const single = Object.fromEntries(
    all.map(([name, encoded]) => [name, [extension(OID.subjectAltName, sequence(encoded))]]),
  )
  const many = Array.from({ length: 600 }, (_, at) => ({ uri: `${own}/device/d${at}` }))
  return wishing(next, {
    ...single,
    'many URIs': [subjectAltName(many)],
    'no name': [extension(OID.subjectAltName, sequence())],
    'no sequence': [extension(OID.subjectAltName, utf8String('localhost'))],
  })
}

const HOSTILE_NAMES = [
  '',
  ' ',
  '.',
  '..',
  '../root',
  'a/b',
  'a b',
  'a\0b',
  'a\nb',
  '+',
  '#',
  '$SYS',
  '-rf',
  '_x',
  'a:b',
  'a,CN=root',
  'CN=root',
  "a' OR 1=1 --",
  '<script>',
  '${device.id}',
  '%n%s',
  'ａｂｃ',
  'а-cyrillic',
  'a\u202Eb',
  '\uFEFFa',
  'constructor',
  '__proto__',
  'toString',
  'hasOwnProperty',
  'a'.repeat(65),
  'a'.repeat(5000),
]

export function subjects(next: () => Victim): HostileCsr[] {
  const request = (name: string, subject: Buffer) => ({
    name: JSON.stringify(name).slice(0, 60),
    der: craftCsr({ key: next().key, subject }),
  })
  const types = {
    utf8: 0x0c,
    printable: 0x13,
    teletex: 0x14,
    ia5: 0x16,
    universal: 0x1c,
    bmp: 0x1e,
    octets: 0x04,
  }
  const typed = Object.entries(types).flatMap(([type, tag]) =>
    ['root', 'a\0b', '\xff\xfe'].map((text) =>
      request(`${type} ${text}`, commonName(element(tag, Buffer.from(text, 'latin1')))),
    ),
  )
  const attribute = (type: string, value: Buffer) => sequence(oid(type), value)
  const common = (text: string) => attribute(OID.commonName, utf8String(text))
  return [
    ...HOSTILE_NAMES.map((name) => request(name, named(name))),
    ...typed,
    request('two names', sequence(setOf(common('a')), setOf(common('b')))),
    request('two names in one set', sequence(setOf(common('a'), common('b')))),
    request('a set that is not sorted', sequence(element(0x31, common('b'), common('a')))),
    request('an empty set', sequence(setOf())),
    request('a name without a value', sequence(setOf(sequence(oid(OID.commonName))))),
    request('three fields', sequence(setOf(sequence(oid(OID.commonName), utf8String('a'), NULL)))),
    request('a name that is a sequence', commonName(sequence(utf8String('a')))),
    request('broken UTF-8', commonName(element(0x0c, Buffer.from([0xc3, 0x28])))),
    request('a subject that is a set', setOf(common('a'))),
    request('500 attributes', sequence(...Array.from({ length: 500 }, () => setOf(common('a'))))),
  ]
}
