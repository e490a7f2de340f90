import { createECDH, generateKeyPairSync, type KeyObject, sign } from 'node:crypto'
import t from 'tap'
import { type ErrorCode, isMusterError } from '#shared/errors'
import { contextTag } from '#shared/pki/der'
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
} from '#shared/pki/der-write'
import { basicConstraints, extension, extKeyUsage, keyUsage } from '#shared/pki/extensions'
import { generateKey, sha256Hex, spkiDer } from '#shared/pki/keys'
import { encodeName } from '#shared/pki/name'
import { OID } from '#shared/pki/oid'
import { derToPem } from '#shared/pki/pem'
import { createCsr } from '#shared/pki/x509'
import { checkCsr, decodeCsr } from '../../../enrollment/ca/check-csr.ts'
import { craftCsr } from '../../support/pki-csr.ts'
import fc from '../../support/properties.ts'

const URI = 'spiffe://muster.test/device/dev-1'
const key = generateKey()

async function codeOf(der: Uint8Array): Promise<ErrorCode | 'accepted'> {
  try {
    await checkCsr(der)
    return 'accepted'
  } catch (error) {
    if (isMusterError(error)) return error.code
    throw error
  }
}

t.test('a request for a device is read', async (t) => {
  const { der, pem } = await createCsr({ key, commonName: 'dev-1', uris: [URI], challengePassword: 'x' })
  const spki = spkiDer(key)
  t.same(await checkCsr(der), { spki, spkiHash: sha256Hex(spki), commonName: 'dev-1', uris: [URI] })
  t.same(decodeCsr(pem), der)
})

t.test('a request needs neither a name nor attributes', async (t) => {
  const { der } = await createCsr({ key })
  t.match(await checkCsr(der), { commonName: null, uris: [] })
  t.match(await checkCsr(craftCsr({ attributes: null })), { commonName: 'dev-1', uris: [] })
  t.match(await checkCsr(craftCsr({ attributes: element(contextTag(0, 'constructed')) })), { uris: [] })
})

t.test('a P-384 key is accepted, with each of the hashes of SHA-2', async (t) => {
  const p384 = generateKeyPairSync('ec', { namedCurve: 'P-384' }).privateKey
  const { der } = await createCsr({ key: p384, commonName: 'dev-1' })
  t.match(await checkCsr(der), { commonName: 'dev-1' })
  const algorithm = sequence(oid(OID.ecdsaWithSha512))
  t.equal(await codeOf(craftCsr({ algorithm, hash: 'sha512' })), 'accepted')
})

t.test('what a usual OpenSSL configuration adds does no harm', async (t) => {
  const extensions = [
    basicConstraints(false),
    keyUsage(['digitalSignature', 'keyEncipherment']),
    extKeyUsage([OID.clientAuth]),
    extension('2.16.840.1.113730.1.13', octetString(Buffer.from('comment'))),
  ]
  const subject = encodeName({ organization: 'Acme', commonName: 'dev-1' })
  t.match(await checkCsr(craftCsr({ extensions, subject })), { commonName: 'dev-1' })
})

t.test('the forms of base64 that clients send', async (t) => {
  const der = craftCsr()
  const text = der.toString('base64')
  const lines = text.replace(/.{64}/g, '$&\r\n')
  for (const form of [text, lines, ` ${text}\n\n`, text.replace(/.{7}/g, '$&\t ')]) {
    t.same(decodeCsr(form), der)
  }
  t.same(
    decodeCsr(derToPem(der, 'CERTIFICATE REQUEST').replaceAll(' REQ', ' REQ').replaceAll('\n', '\r\n')),
    der,
  )
  t.same(
    decodeCsr(
      derToPem(der, 'CERTIFICATE REQUEST')
        .replaceAll('N CERT', 'N NEW CERT')
        .replaceAll('D CERT', 'D NEW CERT'),
    ),
    der,
  )
})

t.test('text that is not one request is refused before it is parsed', async (t) => {
  const pem = derToPem(craftCsr(), 'CERTIFICATE REQUEST')
  const wrong: Record<string, string> = {
    empty: '',
    blank: ' \r\n',
    'too long': 'A'.repeat(24 * 1024 + 4),
    base64url: craftCsr().toString('base64url'),
    'base64 with a stray character': `${craftCsr().toString('base64').slice(0, -1)}*`,
    'base64 cut short': craftCsr().toString('base64').slice(0, -3),
    'two requests': pem + pem,
    'text before': `hello\n${pem}`,
    'text after': `${pem}hello`,
    'another label': pem.replaceAll('CERTIFICATE REQUEST', 'CERTIFICATE'),
    'begin without end': '-----BEGIN CERTIFICATE REQUEST-----',
    'end that overlaps begin': '-----BEGIN CERTIFICATE REQUEST-----END CERTIFICATE REQUEST-----',
    'full-width letters': 'ＡＡＡＡ',
  }
  for (const [name, text] of Object.entries(wrong)) {
    t.throws(() => decodeCsr(text), { code: 'csr_malformed' }, name)
  }
})

const violation = (form: RegExp) => ({ violation: form })

t.test('a request of the wrong form is refused with the violation', async (t) => {
  const good = craftCsr()
  const extensionsTwice = [basicConstraints(false), basicConstraints(false)]
  const requested = sequence(oid(OID.extensionRequest), setOf(sequence()))
  const wrong: [string, Buffer, RegExp][] = [
    ['nothing', Buffer.alloc(0), /truncated/],
    ['more than 16 KiB', Buffer.concat([good, Buffer.alloc(16 * 1024)]), /16 KiB/],
    ['a trailing byte', Buffer.concat([good, Buffer.alloc(1)]), /trailing/],
    ['version 1', craftCsr({ version: integer(1) }), /version/],
    ['a huge version', craftCsr({ version: integer(2 ** 40) }), /integer/],
    ['an extension twice', craftCsr({ extensions: extensionsTwice }), /duplicate extension basicConstraints/],
    [
      'two extension requests',
      craftCsr({ attributes: explicit(0, Buffer.concat([requested, requested])) }),
      /more than one/,
    ],
    [
      'two values in one extension request',
      craftCsr({
        attributes: explicit(0, sequence(oid(OID.extensionRequest), setOf(sequence(), sequence(integer(1))))),
      }),
      /more than one/,
    ],
    ['an unknown field', craftCsr({ attributes: implicit(1, Buffer.alloc(2)) }), /attributes/],
    [
      'SHA-1',
      craftCsr({ algorithm: sequence(oid('1.2.840.10045.4.1')), hash: 'sha1' }),
      /1\.2\.840\.10045\.4\.1/,
    ],
    [
      'parameters of the algorithm',
      craftCsr({ algorithm: sequence(oid(OID.ecdsaWithSha256), NULL) }),
      /algorithm/,
    ],
    ['an algorithm for RSA', craftCsr({ algorithm: sequence(oid(OID.sha256WithRsa)) }), /sha256WithRsa/],
  ]
  for (const [name, der, form] of wrong) {
    await t.rejects(checkCsr(der), { code: 'csr_malformed', evidence: violation(form) }, name)
  }
})

/** An EC key whose SPKI says something else about it. */
function spkiWith(parameters: Buffer, point: Buffer): Buffer {
  return sequence(sequence(oid(OID.ecPublicKey), parameters), bitString(point))
}

t.test('a key that no device may have is refused by its name', async (t) => {
  const make = async (other: KeyObject) => (await createCsr({ key: other, commonName: 'dev-1' })).der
  const point = spkiDer(key).subarray(-65)
  const compressed = createECDH('prime256v1')
  compressed.generateKeys()
  const offCurve = Buffer.from(point)
  offCurve.writeUInt8((offCurve.readUInt8(64) + 1) % 256, 64)
  const { privateKey: k1 } = generateKeyPairSync('ec', { namedCurve: 'secp256k1' })
  const { privateKey: p521 } = generateKeyPairSync('ec', { namedCurve: 'P-521' })
  const { privateKey: explicitCurve } = generateKeyPairSync('ec', {
    namedCurve: 'P-256',
    paramEncoding: 'explicit',
  })
  const wrong: [string, Buffer, RegExp][] = [
    ['RSA-1024', await make(generateKeyPairSync('rsa', { modulusLength: 1024 }).privateKey), /^RSA-1024$/],
    ['RSA-2048', await make(generateKeyPairSync('rsa', { modulusLength: 2048 }).privateKey), /^RSA-2048$/],
    ['Ed25519', await make(generateKeyPairSync('ed25519').privateKey), /^Ed25519$/],
    ['secp256k1', craftCsr({ key: k1 }), /^curve 1\.3\.132\.0\.10$/],
    ['P-521', craftCsr({ key: p521 }), /^curve 1\.3\.132\.0\.35$/],
    ['explicit parameters', craftCsr({ key: explicitCurve }), /explicit curve parameters/],
    [
      'a compressed point',
      craftCsr({ spki: spkiWith(oid(OID.prime256v1), compressed.getPublicKey(null, 'compressed')) }),
      /compressed/,
    ],
    [
      'the point at infinity',
      craftCsr({ spki: spkiWith(oid(OID.prime256v1), Buffer.alloc(1)) }),
      /compressed/,
    ],
    [
      'a point off the curve',
      craftCsr({ spki: spkiWith(oid(OID.prime256v1), offCurve) }),
      /not on the curve/,
    ],
    ['a P-256 point called P-384', craftCsr({ spki: spkiWith(oid(OID.secp384r1), point) }), /compressed/],
    [
      'no algorithm that we know',
      craftCsr({ spki: sequence(sequence(oid('1.2.3.4')), bitString(point)) }),
      /^1\.2\.3\.4$/,
    ],
  ]
  for (const [name, der, form] of wrong) {
    await t.rejects(checkCsr(der), { code: 'csr_key', evidence: { key: form } }, name)
  }
})

t.test("the plane's own keys are refused", async (t) => {
  const { spkiHash } = await checkCsr(craftCsr())
  await t.rejects(checkCsr(craftCsr(), new Set([spkiHash])), { code: 'csr_key' })
})

t.test('a request that another key has signed proves nothing', async (t) => {
  const other = generateKey()
  t.equal(await codeOf(craftCsr({ spki: spkiDer(other) })), 'csr_pop')
  t.equal(await codeOf(craftCsr({ signature: Buffer.alloc(0) })), 'csr_pop')
  t.equal(await codeOf(craftCsr({ key, signature: sign('sha256', Buffer.from('x'), key) })), 'csr_pop')
  t.equal(await codeOf(craftCsr({ hash: 'sha384' })), 'csr_pop')
})

t.test('the checks come in the order size, structure, key, possession, wishes', async (t) => {
  const wish = [basicConstraints({ pathLength: 0 })]
  const rsa = generateKeyPairSync('rsa', { modulusLength: 1024 }).privateKey
  const badSignature = Buffer.alloc(8)
  const all = { key: rsa, extensions: [...wish, ...wish], signature: badSignature }
  t.equal(await codeOf(craftCsr(all)), 'csr_malformed')
  t.equal(await codeOf(craftCsr({ ...all, extensions: wish })), 'csr_key')
  t.equal(await codeOf(craftCsr({ extensions: wish, signature: badSignature })), 'csr_pop')
  t.equal(await codeOf(craftCsr({ extensions: wish })), 'csr_subject')
})

const signed = await createCsr({ key, commonName: 'dev-1', uris: [URI] })

t.test('a request that was changed on its way is never accepted with other contents', async (t) => {
  const spki = spkiDer(key)
  const change = fc.record({
    at: fc.nat(signed.der.length - 1),
    remove: fc.nat(3),
    insert: fc.uint8Array({ maxLength: 3 }),
  })
  await fc.assert(
    fc.asyncProperty(fc.array(change, { minLength: 1, maxLength: 3 }), async (changes) => {
      const mutated = changes.reduce<Buffer>(
        (der, { at, remove, insert }) =>
          Buffer.concat([der.subarray(0, at), insert, der.subarray(at + remove)]),
        signed.der,
      )
      try {
        const checked = await checkCsr(mutated)
        t.same({ ...checked, spkiHash: '' }, { spki, spkiHash: '', commonName: 'dev-1', uris: [URI] })
      } catch (error) {
        if (!isMusterError(error, 'csr_malformed', 'csr_key', 'csr_pop', 'csr_subject')) throw error
      }
    }),
    { numRuns: 2000 },
  )
})

t.test('any bytes and any text are answered with a code', async (t) => {
  await fc.assert(
    fc.asyncProperty(fc.uint8Array({ maxLength: 300 }), async (bytes) => {
      t.equal(await codeOf(bytes), 'csr_malformed')
    }),
    { numRuns: 500 },
  )
  fc.assert(
    fc.property(fc.oneof(fc.string({ unit: 'binary' }), fc.base64String()), (text) => {
      try {
        t.ok(Buffer.isBuffer(decodeCsr(text)))
      } catch (error) {
        if (!isMusterError(error, 'csr_malformed')) throw error
      }
    }),
    { numRuns: 500 },
  )
})
