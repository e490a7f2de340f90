import { generateKeyPairSync, type KeyObject, sign } from 'node:crypto'
import t from 'tap'
import { TAG } from '#shared/pki/der'
import { bitString, element, integer, NULL, oid, sequence, unsigned } from '#shared/pki/der-write'
import { sha256Hex, spkiDer } from '#shared/pki/keys'
import { encodeName } from '#shared/pki/name'
import { OID } from '#shared/pki/oid'
import { KEY_TYPES } from '#shared/pki/spki'
import { checkCsr, checkDeviceCsr } from '../../../enrollment/ca/check-csr.ts'
import { craftCsr, KEY_MAKERS } from '../../support/pki-csr.ts'

for (const type of KEY_TYPES) {
  t.test(`a device can prove that it has a key of type ${type}`, async (t) => {
    const key = KEY_MAKERS[type]()
    const spki = spkiDer(key)
    t.match(await checkDeviceCsr(craftCsr({ key })), {
      spki,
      spkiHash: sha256Hex(spki),
      key: { type, name: type === 'RSA' ? 'RSA-2048' : type },
      commonName: 'dev-1',
    })
    const other = KEY_MAKERS[type]()
    await t.rejects(checkDeviceCsr(craftCsr({ key: other, spki })), { code: 'csr_pop' })
    const plain = checkCsr(craftCsr({ key }))
    if (type === 'P-256' || type === 'P-384') t.ok(await plain)
    else await t.rejects(plain, { code: 'csr_key' }, 'only a profile opts in')
  })
}

const rsa = (modulusLength: number, publicExponent = 65_537) =>
  generateKeyPairSync('rsa', { modulusLength, publicExponent }).privateKey

t.test('RSA is certified from 2048 to 4096 bits with the exponent 65537', async (t) => {
  const good = rsa(2048)
  const { n } = good.export({ format: 'jwk' })
  const modulus = Buffer.from(String(n), 'base64url')
  const spki = (parameters: Buffer[], key: Buffer) =>
    craftCsr({ key: good, spki: sequence(sequence(oid(OID.rsaEncryption), ...parameters), bitString(key)) })
  const wrong: [string, Buffer, RegExp][] = [
    ['1024 bits', craftCsr({ key: rsa(1024) }), /^RSA-1024$/],
    ['2047 bits', craftCsr({ key: rsa(2047) }), /^RSA-2047$/],
    ['the exponent 3', craftCsr({ key: rsa(2048, 3) }), /^RSA-2048 with exponent 3$/],
    ['the exponent 1', spki([NULL], sequence(unsigned(modulus), integer(1))), /exponent 1$/],
    ['no parameters', spki([], sequence(unsigned(modulus), integer(65_537))), /^malformed RSA$/],
    [
      'a negative modulus',
      spki([NULL], sequence(element(TAG.integer, Buffer.from([0xfb])), integer(65_537))),
      /^RSA-0/,
    ],
    [
      '4097 bits',
      spki([NULL], sequence(unsigned(Buffer.concat([Buffer.from([1]), modulus, modulus])), integer(65_537))),
      /^RSA-4097$/,
    ],
  ]
  for (const [name, der, form] of wrong) {
    await t.rejects(checkDeviceCsr(der), { code: 'csr_key', evidence: { key: form } }, name)
  }
})

t.test('a signature of another scheme, with a weak hash or odd parameters is refused', async (t) => {
  const named = (name: string, parameters: Buffer[] = []) => sequence(oid(name), ...parameters)
  const wrong: [string, KeyObject, Buffer, string | null][] = [
    ['SHA-1 with RSA', rsa(2048), named('1.2.840.113549.1.1.5', [NULL]), 'sha1'],
    ['MD5 with RSA', rsa(2048), named('1.2.840.113549.1.1.4', [NULL]), 'md5'],
    ['RSA without NULL', rsa(2048), named(OID.sha256WithRsa), 'sha256'],
    ['RSA that says ECDSA', rsa(2048), named(OID.ecdsaWithSha256, [NULL]), 'sha256'],
    ['Ed25519 with NULL', KEY_MAKERS.Ed25519(), named(OID.ed25519, [NULL]), null],
    ['Ed25519 that says ECDSA', KEY_MAKERS.Ed25519(), named(OID.ecdsaWithSha256), null],
    ['ML-DSA-44 that says ML-DSA-65', KEY_MAKERS['ML-DSA-44'](), named(OID.mlDsa65), null],
    ['ML-DSA with NULL', KEY_MAKERS['ML-DSA-65'](), named(OID.mlDsa65, [NULL]), null],
  ]
  for (const [name, key, algorithm, hash] of wrong) {
    const der = craftCsr({ key, algorithm, signature: sign(hash, Buffer.from('x'), key) })
    await t.rejects(checkDeviceCsr(der), { code: 'csr_malformed' }, name)
  }
})

t.test('a key whose octets do not fit its type is refused by name', async (t) => {
  const of = (type: string, key: Buffer, parameters: Buffer[] = []) =>
    craftCsr({ spki: sequence(sequence(oid(type), ...parameters), bitString(key)) })
  const wrong: [string, Buffer, RegExp][] = [
    ['a short Ed25519', of(OID.ed25519, Buffer.alloc(31)), /^malformed Ed25519$/],
    ['Ed25519 with parameters', of(OID.ed25519, Buffer.alloc(32), [NULL]), /^malformed Ed25519$/],
    ['ML-DSA-44 called 65', of(OID.mlDsa65, Buffer.alloc(1312)), /^malformed ML-DSA-65$/],
    ['ML-DSA-44 with parameters', of(OID.mlDsa44, Buffer.alloc(1312), [NULL]), /^malformed ML-DSA-44$/],
    ['ML-DSA-87', of('2.16.840.1.101.3.4.3.19', Buffer.alloc(2592)), /^2\.16\.840/],
  ]
  for (const [name, der, form] of wrong) {
    await t.rejects(checkDeviceCsr(der), { code: 'csr_key', evidence: { key: form } }, name)
  }
})

t.test('names that a profile could grant are read, not granted', async (t) => {
  const subject = encodeName({ organization: 'Acme', commonName: 'dev-1' })
  t.match(await checkDeviceCsr(craftCsr({ subject })), {
    organization: 'Acme',
    organizationalUnit: null,
    names: [],
  })
})
