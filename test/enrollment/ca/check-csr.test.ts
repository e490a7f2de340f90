import { createECDH, generateKeyPairSync, type KeyObject, sign } from 'node:crypto'
import fc from 'fast-check'
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
  TRUE,
  utf8String,
} from '#shared/pki/der-write'
import { basicConstraints, extension, extKeyUsage, keyUsage, subjectAltName } from '#shared/pki/extensions'
import { generateKey, sha256Hex, spkiDer } from '#shared/pki/keys'
import { encodeName } from '#shared/pki/name'
import { OID } from '#shared/pki/oid'
import { derToPem } from '#shared/pki/pem'
import { createCsr } from '#shared/pki/x509'
import { checkCsr, decodeCsr } from '../../../enrollment/ca/check-csr.ts'

const URI = 'spiffe://muster.test/device/dev-1'
const key = generateKey()

/** A request made by hand, whose every part can be replaced; signed over what it says. */
interface Crafted {
  readonly key?: KeyObject
  readonly version?: Buffer
  readonly subject?: Buffer
  readonly spki?: Buffer
  readonly extensions?: readonly Buffer[]
  readonly attributes?: Buffer | null
  readonly algorithm?: Buffer
  readonly hash?: string
  readonly signature?: Buffer
}

function craft(parts: Crafted = {}): Buffer {
  const signer = parts.key ?? key
  const requested = sequence(oid(OID.extensionRequest), setOf(sequence(...(parts.extensions ?? []))))
  const attributes = parts.attributes === undefined ? explicit(0, requested) : parts.attributes
  const info = sequence(
    parts.version ?? integer(0),
    parts.subject ?? encodeName({ commonName: 'dev-1' }),
    parts.spki ?? spkiDer(signer),
    ...(attributes === null ? [] : [attributes]),
  )
  const algorithm = parts.algorithm ?? sequence(oid(OID.ecdsaWithSha256))
  const signature = parts.signature ?? sign(parts.hash ?? 'sha256', info, signer)
  return sequence(info, algorithm, bitString(signature))
}

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
  t.match(await checkCsr(craft({ attributes: null })), { commonName: 'dev-1', uris: [] })
  t.match(await checkCsr(craft({ attributes: element(contextTag(0, 'constructed')) })), { uris: [] })
})

t.test('a P-384 key is accepted, with each of the hashes of SHA-2', async (t) => {
  const p384 = generateKeyPairSync('ec', { namedCurve: 'P-384' }).privateKey
  const { der } = await createCsr({ key: p384, commonName: 'dev-1' })
  t.match(await checkCsr(der), { commonName: 'dev-1' })
  const algorithm = sequence(oid(OID.ecdsaWithSha512))
  t.equal(await codeOf(craft({ algorithm, hash: 'sha512' })), 'accepted')
})

t.test('what a usual OpenSSL configuration adds does no harm', async (t) => {
  const extensions = [
    basicConstraints(false),
    keyUsage(['digitalSignature', 'keyEncipherment']),
    extKeyUsage([OID.clientAuth]),
    extension('2.16.840.1.113730.1.13', octetString(Buffer.from('comment')), 'optional'),
  ]
  const subject = encodeName({ organization: 'Acme', commonName: 'dev-1' })
  t.match(await checkCsr(craft({ extensions, subject })), { commonName: 'dev-1' })
})

t.test('the forms of base64 that clients send', async (t) => {
  const der = craft()
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
  const pem = derToPem(craft(), 'CERTIFICATE REQUEST')
  const wrong: Record<string, string> = {
    empty: '',
    blank: ' \r\n',
    'too long': 'A'.repeat(24 * 1024 + 4),
    base64url: craft().toString('base64url'),
    'base64 with a stray character': `${craft().toString('base64').slice(0, -1)}*`,
    'base64 cut short': craft().toString('base64').slice(0, -3),
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
  const good = craft()
  const extensionsTwice = [basicConstraints(false), basicConstraints(false)]
  const requested = sequence(oid(OID.extensionRequest), setOf(sequence()))
  const wrong: [string, Buffer, RegExp][] = [
    ['nothing', Buffer.alloc(0), /truncated/],
    ['more than 16 KiB', Buffer.concat([good, Buffer.alloc(16 * 1024)]), /16 KiB/],
    ['a trailing byte', Buffer.concat([good, Buffer.alloc(1)]), /trailing/],
    ['version 1', craft({ version: integer(1) }), /version/],
    ['a huge version', craft({ version: integer(2 ** 40) }), /integer/],
    ['an extension twice', craft({ extensions: extensionsTwice }), /duplicate extension basicConstraints/],
    [
      'two extension requests',
      craft({ attributes: explicit(0, Buffer.concat([requested, requested])) }),
      /more than one/,
    ],
    [
      'two values in one extension request',
      craft({
        attributes: explicit(0, sequence(oid(OID.extensionRequest), setOf(sequence(), sequence(integer(1))))),
      }),
      /more than one/,
    ],
    ['an unknown field', craft({ attributes: implicit(1, Buffer.alloc(2)) }), /attributes/],
    [
      'SHA-1',
      craft({ algorithm: sequence(oid('1.2.840.10045.4.1')), hash: 'sha1' }),
      /1\.2\.840\.10045\.4\.1/,
    ],
    [
      'parameters of the algorithm',
      craft({ algorithm: sequence(oid(OID.ecdsaWithSha256), NULL) }),
      /algorithm/,
    ],
    ['an algorithm for RSA', craft({ algorithm: sequence(oid(OID.sha256WithRsa)) }), /sha256WithRsa/],
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
    ['secp256k1', craft({ key: k1 }), /^curve 1\.3\.132\.0\.10$/],
    ['P-521', craft({ key: p521 }), /^curve 1\.3\.132\.0\.35$/],
    ['explicit parameters', craft({ key: explicitCurve }), /explicit curve parameters/],
    [
      'a compressed point',
      craft({ spki: spkiWith(oid(OID.prime256v1), compressed.getPublicKey(null, 'compressed')) }),
      /compressed/,
    ],
    ['the point at infinity', craft({ spki: spkiWith(oid(OID.prime256v1), Buffer.alloc(1)) }), /compressed/],
    ['a point off the curve', craft({ spki: spkiWith(oid(OID.prime256v1), offCurve) }), /not on the curve/],
    ['a P-256 point called P-384', craft({ spki: spkiWith(oid(OID.secp384r1), point) }), /compressed/],
    [
      'no algorithm that we know',
      craft({ spki: sequence(sequence(oid('1.2.3.4')), bitString(point)) }),
      /^1\.2\.3\.4$/,
    ],
  ]
  for (const [name, der, form] of wrong) {
    await t.rejects(checkCsr(der), { code: 'csr_key', evidence: { key: form } }, name)
  }
})

t.test("the plane's own keys are refused", async (t) => {
  const { spkiHash } = await checkCsr(craft())
  await t.rejects(checkCsr(craft(), new Set([spkiHash])), { code: 'csr_key' })
})

t.test('a request that another key has signed proves nothing', async (t) => {
  const other = generateKey()
  t.equal(await codeOf(craft({ spki: spkiDer(other) })), 'csr_pop')
  t.equal(await codeOf(craft({ signature: Buffer.alloc(0) })), 'csr_pop')
  t.equal(await codeOf(craft({ signature: sign('sha256', Buffer.from('x'), key) })), 'csr_pop')
  t.equal(await codeOf(craft({ hash: 'sha384' })), 'csr_pop')
})

t.test('a wish for more than a name is refused by name', async (t) => {
  const twoNames = sequence(
    ...['a', 'b'].map((name) => setOf(sequence(oid(OID.commonName), utf8String(name)))),
  )
  const bmpName = sequence(setOf(sequence(oid(OID.commonName), element(0x1e, Buffer.from('\0d')))))
  const named = (commonName: string) => craft({ subject: encodeName({ commonName }) })
  const san = (...names: Parameters<typeof subjectAltName>[0]) =>
    craft({ extensions: [subjectAltName(names)] })
  const caWithoutPath = extension(OID.basicConstraints, sequence(TRUE), 'optional')
  const wrong: [string, Buffer, RegExp][] = [
    ['a CA', craft({ extensions: [basicConstraints({ pathLength: 0 })] }), /^CA:TRUE$/],
    ['a CA without path length', craft({ extensions: [caWithoutPath] }), /^CA:TRUE$/],
    ['keyCertSign', craft({ extensions: [keyUsage(['digitalSignature', 'keyCertSign'])] }), /^keyCertSign$/],
    ['cRLSign', craft({ extensions: [keyUsage(['cRLSign'])] }), /^cRLSign$/],
    ['serverAuth', craft({ extensions: [extKeyUsage([OID.clientAuth, OID.serverAuth])] }), /^serverAuth$/],
    ['any purpose', craft({ extensions: [extKeyUsage([OID.anyExtendedKeyUsage])] }), /^anyExtendedKeyUsage$/],
    ['a DNS name', san({ host: 'broker.test' }), /^SAN DNS:broker\.test$/],
    ['an IP address', san({ uri: URI }, { host: '127.0.0.1' }), /^SAN IP:127\.0\.0\.1$/],
    ['a web address', san({ uri: 'https://muster.test/' }), /^SAN URI:https/],
    ['an operator', san({ uri: 'spiffe://muster.test/operator/olga' }), /^SAN URI:spiffe/],
    ['a SPIFFE id with a longer path', san({ uri: `${URI}/x` }), /^SAN URI:spiffe/],
    [
      'a mail address',
      craft({
        extensions: [extension(OID.subjectAltName, sequence(implicit(1, Buffer.from('a@b'))), 'optional')],
      }),
      /^SAN of type 1$/,
    ],
    [
      'an unknown critical extension',
      craft({ extensions: [extension('1.2.3.4', NULL, 'critical')] }),
      /^critical extension 1\.2\.3\.4$/,
    ],
    [
      'an unreadable extension',
      craft({ extensions: [extension(OID.keyUsage, Buffer.from([1]), 'optional')] }),
      /^unreadable keyUsage$/,
    ],
    ['two common names', craft({ subject: twoNames }), /^2 common names$/],
    ['an empty common name', named(''), /no device id/],
    ['a NUL', named('dev-1\0admin'), /no device id/],
    ['a newline', named('dev-1\n'), /no device id/],
    ['a slash', named('../dev-1'), /no device id/],
    ['a wildcard', named('#'), /no device id/],
    ['a name of every object', named('constructor'), /no device id/],
    ['65 characters', named('a'.repeat(65)), /no device id/],
    ['a byte order mark', named('\uFEFFdev-1'), /no device id/],
    ['a text type of old', craft({ subject: bmpName }), /^unreadable common name$/],
  ]
  for (const [name, der, form] of wrong) {
    await t.rejects(checkCsr(der), { code: 'csr_subject', evidence: { wish: form } }, name)
  }
})

t.test('the checks come in the order size, structure, key, possession, wishes', async (t) => {
  const wish = [basicConstraints({ pathLength: 0 })]
  const rsa = generateKeyPairSync('rsa', { modulusLength: 1024 }).privateKey
  const badSignature = Buffer.alloc(8)
  const all = { key: rsa, extensions: [...wish, ...wish], signature: badSignature }
  t.equal(await codeOf(craft(all)), 'csr_malformed')
  t.equal(await codeOf(craft({ ...all, extensions: wish })), 'csr_key')
  t.equal(await codeOf(craft({ extensions: wish, signature: badSignature })), 'csr_pop')
  t.equal(await codeOf(craft({ extensions: wish })), 'csr_subject')
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
    { numRuns: 2000, seed: 7 },
  )
})

t.test('any bytes and any text are answered with a code', async (t) => {
  await fc.assert(
    fc.asyncProperty(fc.uint8Array({ maxLength: 300 }), async (bytes) => {
      t.equal(await codeOf(bytes), 'csr_malformed')
    }),
    { numRuns: 500, seed: 7 },
  )
  fc.assert(
    fc.property(fc.oneof(fc.string({ unit: 'binary' }), fc.base64String()), (text) => {
      try {
        t.ok(Buffer.isBuffer(decodeCsr(text)))
      } catch (error) {
        if (!isMusterError(error, 'csr_malformed')) throw error
      }
    }),
    { numRuns: 500, seed: 7 },
  )
})
