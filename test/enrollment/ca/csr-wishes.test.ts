import t from 'tap'
import { element, implicit, NULL, oid, sequence, setOf, TRUE, utf8String } from '#shared/pki/der-write'
import {
  basicConstraints,
  criticalExtension,
  extension,
  extKeyUsage,
  keyUsage,
  subjectAltName,
} from '#shared/pki/extensions'
import { encodeName } from '#shared/pki/name'
import { OID } from '#shared/pki/oid'
import { checkCsr } from '../../../enrollment/ca/check-csr.ts'
import { craftCsr } from '../../support/pki-csr.ts'

const URI = 'spiffe://muster.test/device/dev-1'

t.test('a wish for more than a name is refused by name', async (t) => {
  const twoNames = sequence(
    ...['a', 'b'].map((name) => setOf(sequence(oid(OID.commonName), utf8String(name)))),
  )
  const bmpName = sequence(setOf(sequence(oid(OID.commonName), element(0x1e, Buffer.from('\0d')))))
  const named = (commonName: string) => craftCsr({ subject: encodeName({ commonName }) })
  const san = (...names: Parameters<typeof subjectAltName>[0]) =>
    craftCsr({ extensions: [subjectAltName(names)] })
  const caWithoutPath = extension(OID.basicConstraints, sequence(TRUE))
  const wrong: [string, Buffer, RegExp][] = [
    ['a CA', craftCsr({ extensions: [basicConstraints({ pathLength: 0 })] }), /^CA:TRUE$/],
    ['a CA without path length', craftCsr({ extensions: [caWithoutPath] }), /^CA:TRUE$/],
    [
      'keyCertSign',
      craftCsr({ extensions: [keyUsage(['digitalSignature', 'keyCertSign'])] }),
      /^keyCertSign$/,
    ],
    ['cRLSign', craftCsr({ extensions: [keyUsage(['cRLSign'])] }), /^cRLSign$/],
    ['serverAuth', craftCsr({ extensions: [extKeyUsage([OID.clientAuth, OID.serverAuth])] }), /^serverAuth$/],
    [
      'any purpose',
      craftCsr({ extensions: [extKeyUsage([OID.anyExtendedKeyUsage])] }),
      /^anyExtendedKeyUsage$/,
    ],
    ['a DNS name', san({ host: 'broker.test' }), /^SAN DNS:broker\.test$/],
    ['an IP address', san({ uri: URI }, { host: '127.0.0.1' }), /^SAN IP:127\.0\.0\.1$/],
    ['a web address', san({ uri: 'https://muster.test/' }), /^SAN URI:https/],
    ['an operator', san({ uri: 'spiffe://muster.test/operator/olga' }), /^SAN URI:spiffe/],
    ['a SPIFFE id with a longer path', san({ uri: `${URI}/x` }), /^SAN URI:spiffe/],
    [
      'a mail address',
      craftCsr({
        extensions: [extension(OID.subjectAltName, sequence(implicit(1, Buffer.from('a@b'))))],
      }),
      /^SAN of type 1$/,
    ],
    [
      'an unknown critical extension',
      craftCsr({ extensions: [criticalExtension('1.2.3.4', NULL)] }),
      /^critical extension 1\.2\.3\.4$/,
    ],
    [
      'an unreadable extension',
      craftCsr({ extensions: [extension(OID.keyUsage, Buffer.from([1]))] }),
      /^unreadable keyUsage$/,
    ],
    ['two common names', craftCsr({ subject: twoNames }), /^2 common names$/],
    ['an empty common name', named(''), /no device id/],
    ['a NUL', named('dev-1\0admin'), /no device id/],
    ['a newline', named('dev-1\n'), /no device id/],
    ['a slash', named('../dev-1'), /no device id/],
    ['a wildcard', named('#'), /no device id/],
    ['a name of every object', named('constructor'), /no device id/],
    ['65 characters', named('a'.repeat(65)), /no device id/],
    ['a byte order mark', named('\uFEFFdev-1'), /no device id/],
    ['a text type of old', craftCsr({ subject: bmpName }), /^unreadable common name$/],
  ]
  for (const [name, der, form] of wrong) {
    await t.rejects(checkCsr(der), { code: 'csr_subject', evidence: { wish: form } }, name)
  }
})
