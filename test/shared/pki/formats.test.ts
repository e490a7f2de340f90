import {
  createHash,
  createPrivateKey,
  createPublicKey,
  generateKeyPairSync,
  X509Certificate,
} from 'node:crypto'
import 'reflect-metadata'
import * as x509 from '@peculiar/x509'
import t from 'tap'
import { readCertificate } from '#shared/pki/certificate'
import { encodeCsrAttributes } from '#shared/pki/csr-attributes'
import { readDer } from '#shared/pki/der'
import { addressOctets } from '#shared/pki/extensions'
import { generateKey, privateKeyPem, readPrivateKey, sha256Hex, spkiDer } from '#shared/pki/keys'
import { decodeBase64, derToPem, pemToDer, splitPem } from '#shared/pki/pem'
import { certsOnly } from '#shared/pki/pkcs7'
import { keyKind, keyName } from '#shared/pki/spki'
import { createCsr } from '#shared/pki/x509'
import { testAuthority, testIdentity } from '../../support/pki.ts'
import fc from '../../support/properties.ts'

const authority = await testAuthority()
t.teardown(() => authority.remove())

t.test('an encrypted key opens with its passphrase alone', (t) => {
  const key = generateKey()
  const pem = privateKeyPem(key, 'päss')
  t.match(pem, /^-----BEGIN ENCRYPTED PRIVATE KEY-----\n/)
  t.same(spkiDer(readPrivateKey(pem, 'päss')), spkiDer(key))
  t.same(spkiDer(createPrivateKey({ key: pem, passphrase: 'päss' })), spkiDer(key))
  t.throws(() => readPrivateKey(pem, 'pass'), { code: 'passphrase_wrong' })
  t.throws(() => readPrivateKey(pem), { code: 'passphrase_wrong' })
  t.throws(() => readPrivateKey(pem.replace(/.{64}\n/, ''), 'päss'), { code: 'passphrase_wrong' })
  t.not(privateKeyPem(key, 'päss'), pem, 'salt and iv are new each time')
  t.end()
})

t.test('a plain key opens without a passphrase, and only so', (t) => {
  const key = generateKey()
  const pem = privateKeyPem(key)
  t.same(spkiDer(readPrivateKey(pem)), spkiDer(key))
  t.same(spkiDer(createPublicKey(key)), spkiDer(key))
  t.throws(() => readPrivateKey(pem, 'x'), { code: 'key_file_insecure' })
  t.throws(() => readPrivateKey('no key'))
  t.equal(sha256Hex('abc'), createHash('sha256').update('abc').digest('hex'))
  t.end()
})

t.test('keys are called by their kind', (t) => {
  const name = (key: Parameters<typeof spkiDer>[0]) => keyName(keyKind(readDer(spkiDer(key))))
  t.equal(name(generateKey()), 'P-256')
  t.equal(name(generateKeyPairSync('ec', { namedCurve: 'P-384' }).publicKey), 'P-384')
  t.equal(name(generateKeyPairSync('ed25519').publicKey), 'Ed25519')
  t.equal(name(generateKeyPairSync('rsa', { modulusLength: 2048 }).publicKey), 'RSA-2048')
  t.equal(name(generateKeyPairSync('x25519').publicKey), '1.3.101.110')
  t.end()
})

t.test('PEM is read back, and nothing is read around it', (t) => {
  fc.assert(
    fc.property(fc.uint8Array({ minLength: 1, maxLength: 200 }), (bytes) => {
      const pem = derToPem(bytes, 'CERTIFICATE')
      t.same(pemToDer(pem, 'CERTIFICATE'), Buffer.from(bytes))
      t.ok(pem.split('\n').every((line) => line.length <= 64))
      t.same(splitPem(`# one\n${pem}\n${pem}`), [pem, pem])
    }),
    { numRuns: 100 },
  )
  const { rootPem, device } = authority
  t.same(splitPem(rootPem + device.pem), [rootPem, device.pem])
  t.same(splitPem('-----BEGIN A-----\n-----BEGIN B-----\nAA==\n-----END B-----\n'), [
    '-----BEGIN B-----\nAA==\n-----END B-----\n',
  ])
  t.throws(() => pemToDer(rootPem + rootPem, 'CERTIFICATE'), SyntaxError)
  t.throws(() => pemToDer(`x${rootPem}`, 'CERTIFICATE'), SyntaxError)
  t.throws(() => pemToDer(rootPem, 'X509 CRL'), SyntaxError)
  t.end()
})

t.test('base64 is what encodes back to itself, white space aside', (t) => {
  fc.assert(
    fc.property(fc.string({ unit: fc.constantFrom(...'AQgw+/=-_ \n') }), (text) => {
      const dense = text.replace(/[ \n]/g, '')
      const isBase64 = dense !== '' && Buffer.from(dense, 'base64').toString('base64') === dense
      try {
        t.equal(decodeBase64(text).toString('base64'), dense)
        t.ok(isBase64)
      } catch (error) {
        if (!(error instanceof SyntaxError) || isBase64) throw error
      }
    }),
    { numRuns: 500 },
  )
  for (const text of ['AB==', 'AA=', 'A', 'AAAA=', '====', 'AA==AA==']) {
    t.throws(() => decodeBase64(text), SyntaxError, text)
  }
  t.end()
})

t.test('a PKCS#7 holds exactly the certificates that were put in', async (t) => {
  const one = await testIdentity(authority, 'dev-1')
  const ders = [one.der, Buffer.from(authority.device.der), pemToDer(authority.rootPem, 'CERTIFICATE')]
  for (const put of [[], [one.der], ders]) {
    const p7 = certsOnly(put)
    t.ok(readDer(p7))
    const found =
      put.length === 0 ? [] : [...new x509.X509Certificates(p7)].map((got) => Buffer.from(got.rawData))
    t.same(found.toSorted(Buffer.compare), put.toSorted(Buffer.compare))
  }
  t.throws(() => certsOnly([Buffer.from('junk')]), SyntaxError)
})

t.test('our reader and Node agree about a certificate', async (t) => {
  for (const kind of ['device', 'broker'] as const) {
    const { x509: node, der } = await testIdentity(authority, 'one', { kind })
    const { tbs, signature, tbsDer } = readCertificate(der)
    t.equal(tbs.version, 3)
    t.equal(
      tbs.serial.toString('hex').replace(/^(00)+/, ''),
      node.serialNumber.toLowerCase().replace(/^(00)+/, ''),
    )
    t.equal(tbs.notBefore, new Date(node.validFrom).getTime())
    t.equal(tbs.notAfter, new Date(node.validTo).getTime())
    t.same(tbs.spki.raw, spkiDer(node.publicKey))
    t.ok(signature.length > 60 && tbsDer.length < der.length)
  }
})

t.test('certificates of another form are refused or read, but never crash the reader', async (t) => {
  const { der } = await testIdentity(authority, 'dev-1')
  fc.assert(
    fc.property(fc.nat(der.length - 1), fc.uint8Array({ maxLength: 4 }), fc.nat(4), (at, insert, remove) => {
      try {
        readCertificate(Buffer.concat([der.subarray(0, at), insert, der.subarray(at + remove)]))
      } catch (error) {
        if (!(error instanceof SyntaxError)) throw error
      }
    }),
    { numRuns: 3000 },
  )
  t.throws(() => readCertificate(Buffer.alloc(0)), SyntaxError)
})

t.test('requests are made with every kind of key, and verify elsewhere', async (t) => {
  const keys = [
    generateKey(),
    generateKeyPairSync('ec', { namedCurve: 'P-384' }).privateKey,
    generateKeyPairSync('rsa', { modulusLength: 2048 }).privateKey,
    generateKeyPairSync('ed25519').privateKey,
  ]
  for (const key of keys) {
    const { der, pem } = await createCsr({
      key,
      commonName: 'dev-1',
      uris: ['spiffe://muster.test/device/dev-1'],
    })
    const csr = new x509.Pkcs10CertificateRequest(der)
    t.ok(await csr.verify())
    t.equal(csr.subject, 'CN=dev-1')
    t.same(Buffer.from(csr.publicKey.rawData), spkiDer(key))
    t.same(pemToDer(pem, 'CERTIFICATE REQUEST'), der)
  }
})

t.test('IP addresses in every way of writing become their octets', (t) => {
  for (const [text, octets] of [
    ['127.0.0.1', '7f000001'],
    ['::', '00'.repeat(16)],
    ['::1', `${'00'.repeat(15)}01`],
    ['2001:DB8::', `20010db8${'00'.repeat(12)}`],
    ['1:2:3:4:5:6:7:8', '00010002000300040005000600070008'],
    ['::ffff:192.0.2.7', '00000000000000000000ffffc0000207'],
    ['fe80::1:0:0:2', 'fe800000000000000001000000000002'.padStart(32, '0')],
  ] as const) {
    t.equal(addressOctets(text).toString('hex'), octets, text)
  }
  t.ok(new X509Certificate(authority.rootPem).ca)
  t.end()
})

t.test('what csrattrs asks for is written as in the examples of RFC 9908', (t) => {
  const partsOf = (der: Uint8Array) => readDer(der).children.map(({ raw }) => raw.toString('hex'))
  /** Section 5.2: challengePassword, a key on P-384, a MAC address, ECDSA with SHA-384. */
  const ec = Buffer.from('MDIGCSqGSIb3DQEJBzASBgcqhkjOPQIBMQcGBSuBBAAiBgcrBgEBAQEWBggqhkjOPQQDAw==', 'base64')
  const [challengePassword, ecKey, , ecSignature] = partsOf(ec)
  t.strictSame(partsOf(encodeCsrAttributes({ key: 'P-384', challengePassword: true })), [
    challengePassword,
    ecKey,
    ecSignature,
  ])
  /** Section 5.4: challengePassword, an RSA key of 4096 bits, RSA with SHA-256. */
  const rsa = Buffer.from('MCkGCSqGSIb3DQEJBzARBgkqhkiG9w0BAQExBAICEAAGCSqGSIb3DQEBCw==', 'base64')
  const [, rsaKey, rsaSignature] = partsOf(rsa)
  t.strictSame(partsOf(encodeCsrAttributes({ key: 'RSA', challengePassword: false })), [
    rsaKey?.replace('02021000', '02020c00'), // we ask for 3072
    rsaSignature,
  ])
  t.end()
})
