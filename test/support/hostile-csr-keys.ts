/** Requests with keys, signatures and attributes that prove nothing. */
import { createECDH, generateKeyPairSync, sign } from 'node:crypto'
import {
  bitString,
  element,
  implicit,
  integer,
  NULL,
  oid,
  sequence,
  setOf,
  TRUE,
  utf8String,
} from '#shared/pki/der-write'
import { criticalExtension } from '#shared/pki/extensions'
import { generateKey, spkiDer } from '#shared/pki/keys'
import { OID } from '#shared/pki/oid'
import { type HostileCsr, named, type Victim } from './hostile-csr.ts'
import { craftCsr } from './pki-csr.ts'

export function keys(next: () => Victim): HostileCsr[] {
  const { id, key } = next()
  const subject = named(id)
  const point = spkiDer(key).subarray(-65)
  const ec = (parameters: Buffer, octets: Buffer) =>
    sequence(sequence(oid(OID.ecPublicKey), parameters), bitString(octets))
  const rsa = (modulus: Buffer, exponent: number) =>
    sequence(
      sequence(oid(OID.rsaEncryption), NULL),
      bitString(sequence(element(0x02, modulus), integer(exponent))),
    )
  const compressed = createECDH('prime256v1')
  compressed.generateKeys()
  const offCurve = Buffer.from(point)
  offCurve.writeUInt8((offCurve.readUInt8(64) + 1) % 256, 64)
  const p256 = oid(OID.prime256v1)
  const odd = (octets: number) => Buffer.concat([Buffer.from([0]), Buffer.alloc(octets, 0xc5)])
  const spkis: Record<string, Buffer> = {
    'a compressed point': ec(p256, compressed.getPublicKey(null, 'compressed')),
    'a hybrid point': ec(p256, compressed.getPublicKey(null, 'hybrid')),
    'a point off the curve': ec(p256, offCurve),
    'the point at infinity': ec(p256, Buffer.alloc(1)),
    'the point zero': ec(p256, Buffer.concat([Buffer.from([4]), Buffer.alloc(64)])),
    'coordinates above the field': ec(p256, Buffer.concat([Buffer.from([4]), Buffer.alloc(64, 0xff)])),
    'a short point': ec(p256, point.subarray(0, 40)),
    'no point': ec(p256, Buffer.alloc(0)),
    'a point called P-384': ec(oid(OID.secp384r1), point),
    'no curve': sequence(sequence(oid(OID.ecPublicKey)), bitString(point)),
    'curve NULL': ec(NULL, point),
    'unused bits': sequence(sequence(oid(OID.ecPublicKey), p256), bitString(point, 3)),
    'an unknown algorithm': sequence(sequence(oid('1.2.3.4')), bitString(point)),
    'a key that is a sequence': sequence(sequence(oid(OID.ecPublicKey), p256), sequence()),
    'Ed25519 of 31 octets': sequence(sequence(oid(OID.ed25519)), bitString(Buffer.alloc(31))),
    'Ed25519 with parameters': sequence(sequence(oid(OID.ed25519), NULL), bitString(Buffer.alloc(32))),
    'Ed25519 of low order': sequence(sequence(oid(OID.ed25519)), bitString(Buffer.alloc(32))),
    'RSA with the modulus 0': rsa(Buffer.from([0]), 65_537),
    'RSA with the modulus 1': rsa(Buffer.from([1]), 65_537),
    'RSA with a negative modulus': rsa(Buffer.alloc(256, 0xff), 65_537),
    'RSA with an even modulus': rsa(Buffer.concat([Buffer.from([0]), Buffer.alloc(256, 0xc4)]), 65_537),
    'RSA with the exponent 1': rsa(odd(256), 1),
    'RSA with the exponent 3': rsa(odd(256), 3),
    'RSA of 512 bits': rsa(odd(64), 65_537),
    'RSA of 65 536 bits': rsa(odd(8192), 65_537),
    'a key without fields': sequence(),
  }
  const real = {
    'RSA-1024': generateKeyPairSync('rsa', { modulusLength: 1024 }),
    'RSA-2048 with exponent 3': generateKeyPairSync('rsa', { modulusLength: 2048, publicExponent: 3 }),
    secp256k1: generateKeyPairSync('ec', { namedCurve: 'secp256k1' }),
    'P-521': generateKeyPairSync('ec', { namedCurve: 'P-521' }),
    'P-224': generateKeyPairSync('ec', { namedCurve: 'secp224r1' }),
    brainpool: generateKeyPairSync('ec', { namedCurve: 'brainpoolP256r1' }),
    'explicit P-256': generateKeyPairSync('ec', { namedCurve: 'P-256', paramEncoding: 'explicit' }),
    Ed448: generateKeyPairSync('ed448'),
  }
  const sha256 = { algorithm: sequence(oid(OID.ecdsaWithSha256)) }
  return [
    ...Object.entries(spkis).map(([name, spki]) => ({ name, der: craftCsr({ key, subject, spki }) })),
    ...Object.entries(real).map(([name, { privateKey }]) => {
      const signature = privateKey.asymmetricKeyType === 'ed448' ? { signature: Buffer.alloc(114) } : {}
      return { name, der: craftCsr({ key: privateKey, subject, ...sha256, ...signature }) }
    }),
  ]
}

export function signatures(next: () => Victim): HostileCsr[] {
  const { id, key } = next()
  const subject = named(id)
  const scalar = (value: number) => sequence(integer(value), integer(value))
  const order = Buffer.from('00ffffffff00000000ffffffffffffffffbce6faada7179e84f3b9cac2fc632551', 'hex')
  const good = sign('sha256', Buffer.from('another request'), key)
  const values: Record<string, Buffer> = {
    nothing: Buffer.alloc(0),
    zeros: Buffer.alloc(72),
    'r and s zero': scalar(0),
    'r and s one': scalar(1),
    'r and s the order': sequence(element(0x02, order), element(0x02, order)),
    'r and s negative': sequence(Buffer.from([2, 1, 0xff]), Buffer.from([2, 1, 0xff])),
    'of another request': good,
    'raw r and s': sign('sha256', Buffer.from('x'), { key, dsaEncoding: 'ieee-p1363' }),
    'very long': Buffer.alloc(8000, 0x30),
    'trailing bytes': Buffer.concat([good, Buffer.alloc(1)]),
  }
  const algorithms: Record<string, string> = {
    'MD5 with RSA': '1.2.840.113549.1.1.4',
    'SHA-1 with RSA': '1.2.840.113549.1.1.5',
    'SHA-1 with ECDSA': '1.2.840.10045.4.1',
    'SHA-256 with RSA': OID.sha256WithRsa,
    'RSA-PSS': '1.2.840.113549.1.1.10',
    Ed25519: OID.ed25519,
    'no signature (RFC 9925)': '1.3.6.1.5.5.7.6.36',
    'the key algorithm': OID.ecPublicKey,
  }
  return [
    ...Object.entries(values).map(([name, signature]) => ({
      name,
      der: craftCsr({ key, subject, signature }),
    })),
    ...Object.entries(algorithms).map(([name, type]) => ({
      name,
      der: craftCsr({ key, subject, algorithm: sequence(oid(type)) }),
    })),
    {
      name: 'parameters',
      der: craftCsr({ key, subject, algorithm: sequence(oid(OID.ecdsaWithSha256), NULL) }),
    },
    { name: 'no algorithm', der: craftCsr({ key, subject, algorithm: sequence() }) },
    { name: 'the key of another', der: craftCsr({ key, subject, spki: spkiDer(generateKey()) }) },
  ]
}

export function attributes(next: () => Victim): HostileCsr[] {
  const attribute = (type: string, ...values: Buffer[]) => sequence(oid(type), setOf(...values))
  const request = sequence(oid(OID.extensionRequest), setOf(sequence()))
  const ca = sequence(criticalExtension(OID.basicConstraints, sequence(TRUE)))
  const contents: Record<string, readonly Buffer[]> = {
    'two extension requests': [request, request],
    'an extension request without a value': [attribute(OID.extensionRequest)],
    'an extension request with two': [attribute(OID.extensionRequest, sequence(), ca)],
    'an extension request that is a set': [attribute(OID.extensionRequest, setOf())],
    'an extension request of Microsoft': [attribute('1.3.6.1.4.1.311.2.1.14', ca)],
    'an extension request that is text': [attribute(OID.extensionRequest, utf8String('CA:TRUE'))],
    'a challenge password with NUL': [attribute('1.2.840.113549.1.9.7', utf8String('a\0b'))],
    'two challenge passwords': [attribute('1.2.840.113549.1.9.7', utf8String('a'), utf8String('b'))],
    'a challenge password of 8 000 characters': [
      attribute('1.2.840.113549.1.9.7', utf8String('x'.repeat(8000))),
    ],
    'a challenge password that is a number': [attribute('1.2.840.113549.1.9.7', integer(7))],
    'an attribute without values': [sequence(oid(OID.extensionRequest))],
    'an attribute without a type': [sequence(setOf())],
    '700 attributes': Array.from({ length: 700 }, (_, at) => attribute(`1.2.3.${at}`, NULL)),
    'not attributes': [NULL],
  }
  const victim = (encoded: Buffer) => {
    const { id, key } = next()
    return craftCsr({ key, subject: named(id), attributes: encoded })
  }
  return [
    ...Object.entries(contents).map(([name, members]) => ({ name, der: victim(element(0xa0, ...members)) })),
    { name: 'another tag', der: victim(element(0xa1, request)) },
    { name: 'primitive', der: victim(implicit(0, Buffer.alloc(2))) },
    { name: 'twice', der: victim(Buffer.concat([element(0xa0, request), element(0xa0, request)])) },
  ]
}
