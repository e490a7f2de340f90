import { X509Certificate } from 'node:crypto'
import t from 'tap'
import { isMusterError } from '#shared/errors'
import { generateKey } from '#shared/pki/keys'
import { OID } from '#shared/pki/oid'
import { pemToDer } from '#shared/pki/pem'
import {
  isIssuedBy,
  isSerialNumber,
  readCertificateSerial,
  readIdevid,
  readIdevidCa,
} from '../../../enrollment/ca/idevid.ts'
import { type IdevidFault, printable, testManufacturer, utf8 } from '../../support/manufacturer.ts'
import fc from '../../support/properties.ts'

const acme = testManufacturer()
const caOf = (pem: string) => readIdevidCa(pemToDer(pem, 'CERTIFICATE'), 'acme')
const ca = caOf(acme.ca)
const now = Date.UTC(2026, 0, 1)
const read = (der: Uint8Array, at = now) => readIdevid(new X509Certificate(der), { ca, now: at })

t.test('a certificate of a device is read with its numbers', async (t) => {
  const idevid = acme.issue('SN-0042')
  t.ok(isIssuedBy(ca, new X509Certificate(idevid.der)))
  t.strictSame(read(idevid.der), {
    ca: ca.ca,
    fingerprint: idevid.fingerprint,
    serialNumber: 'SN-0042',
    certificateSerial: idevid.certificateSerial,
  })
  t.equal(read(acme.issue('', { serialNumbers: [] }).der).serialNumber, null)
  t.equal(read(acme.issue('', { serialNumbers: [utf8('SN 7')] }).der).serialNumber, 'SN 7')
})

t.test('the serial of a certificate is the same however a list writes it', async (t) => {
  const property = fc.property(fc.uint8Array({ minLength: 1, maxLength: 20 }), (octets) => {
    fc.pre((octets[0] ?? 0) > 0 && (octets[0] ?? 0) < 0x80) // as DER has a positive number of so many octets
    const hex = Buffer.from(octets).toString('hex')
    const { certificateSerial } = read(acme.issue('SN-0042', { serial: octets }).der)
    for (const written of [
      hex,
      hex.replace(/^0/, ''),
      `00${hex}`.slice(-40),
      hex.toUpperCase(),
      hex.replace(/..(?=.)/g, '$&:'),
    ])
      t.equal(readCertificateSerial(written), certificateSerial, written)
  })
  fc.assert(property, { numRuns: 40, examples: [[new Uint8Array(20).fill(0x0a)]] })
  for (const written of ['', ':', '0x1', 'g', '1'.repeat(41), ' 1']) {
    t.equal(readCertificateSerial(written), null, `"${written}"`)
  }
})

t.test('one that never expires, as 802.1AR has it, is good in the last second of 9999', async (t) => {
  const { der } = acme.issue('SN-1', { notAfter: '99991231235959Z' })
  t.equal(read(der, Date.UTC(9999, 11, 31, 23, 59, 59)).serialNumber, 'SN-1')
  const ending = acme.issue('SN-1', { notAfter: '251231235959Z' })
  t.throws(() => read(ending.der), { code: 'expired', evidence: { notAfter: '2025-12-31T23:59:59.000Z' } })
  t.equal(read(ending.der, now - 1).serialNumber, 'SN-1', 'the last second is valid to its end')
  t.throws(() => read(acme.issue('SN-1', { notBefore: '270101000000Z' }).der), { code: 'notyet' })
})

const FAULTS: Readonly<Record<string, IdevidFault>> = {
  'two serial numbers': { serialNumbers: [printable('SN-1'), printable('SN-2')] },
  'the same serial number twice': { serialNumbers: [printable('SN-1'), printable('SN-1')] },
  'NUL in the serial number': { serialNumbers: [utf8('SN-1\0')] },
  'a newline in the serial number': { serialNumbers: [utf8('SN-1\n')] },
  'a serial number that only looks like ASCII': { serialNumbers: [utf8('ЅN-1')] },
  'space around the serial number': { serialNumbers: [printable(' SN-1')] },
  'an empty serial number': { serialNumbers: [printable('')] },
  'a serial number of 65 characters': { serialNumbers: [printable('9'.repeat(65))] },
  'a serial number in another kind of text': { serialNumbers: [Buffer.from([0x16, 1, 0x37])] },
  'a CA certificate': { isCa: true },
  'key usage of a CA': { usages: ['digitalSignature', 'keyCertSign'] },
  'key usage for CRLs': { usages: ['digitalSignature', 'cRLSign'] },
  'key usage without signatures': { usages: ['keyAgreement'] },
  'for servers only': { purposes: [OID.serverAuth] },
  'a critical extension that nobody knows': { critical: '1.3.6.1.4.1.99999.1' },
  'version 1': { version: 1, serial: Buffer.from([7]) },
  'serial 0': { serial: Buffer.from([0]) },
  'a negative serial': { serial: Buffer.from([0x80, 1]) },
  'a serial of 21 octets': { serial: Buffer.alloc(21, 7) },
  'a SHA-1 signature': { isSha1: true },
}

t.test('what is wrong with one is named', async (t) => {
  for (const [name, fault] of Object.entries(FAULTS)) {
    const { der } = acme.issue('SN-1', fault)
    t.throws(() => read(der), { code: 'idevid', evidence: { manufacturer: 'acme', violation: String } }, name)
  }
  t.ok(read(acme.issue('SN-1', { purposes: [OID.serverAuth, OID.clientAuth] }).der))
  t.ok(read(acme.issue('SN-1', { purposes: [OID.anyExtendedKeyUsage] }).der))
})

t.test('no other key makes certificates of the CA, whatever name it writes', async (t) => {
  const foreign = testManufacturer({ name: 'Acme device CA' })
  for (const { der } of [
    foreign.issue('SN-1'),
    acme.issue('SN-1', { signedBy: generateKey() }),
    testManufacturer({ name: 'Other' }).issue('SN-1'),
  ]) {
    t.notOk(isIssuedBy(ca, new X509Certificate(der)))
  }
  const altered = Buffer.from(acme.issue('SN-1').der.toString('latin1').replace('SN-1', 'SN-2'), 'latin1')
  t.notOk(isIssuedBy(ca, new X509Certificate(altered)))
})

t.test('a CA of no use is not registered', async (t) => {
  const faults = {
    'no CA': { isCa: false },
    'key usage without keyCertSign': { usages: ['digitalSignature'] },
    'for servers only': { purposes: [OID.serverAuth] },
    'name constraints, which are not understood': { critical: '2.5.29.30' },
    'SHA-1': { isSha1: true },
    'signed by another key under its own name': { signedBy: generateKey() },
    'serial 0': { serial: Buffer.from([0]) },
  } as const
  for (const [name, fault] of Object.entries(faults)) {
    t.throws(() => caOf(testManufacturer(fault).ca), { code: 'invalid_request' }, name)
  }
  t.throws(() => readIdevidCa(Buffer.from('no certificate'), 'x'), { code: 'invalid_request' })
  t.ok(caOf(testManufacturer({ pathLength: 0 }).ca))
  const ended = caOf(testManufacturer({ notAfter: '251231235959Z' }).ca)
  const { der } = acme.issue('SN-1')
  t.throws(() => readIdevid(new X509Certificate(der), { ca: ended, now }), { code: 'expired' })
})

t.test('whatever octets a serial number has, it is read as it is or refused by name', async (t) => {
  fc.assert(
    fc.property(fc.uint8Array({ maxLength: 70 }), fc.constantFrom(0x0c, 0x13, 0x16), (octets, tag) => {
      const value = Buffer.concat([Buffer.from([tag, octets.length]), octets])
      const text = Buffer.from(octets).toString('latin1')
      const { der } = acme.issue('x', { serialNumbers: [value] })
      if (!isReadable(der)) return // TLS does not take it either
      try {
        t.equal(read(der).serialNumber, text)
        t.ok(isSerialNumber(text))
      } catch (error) {
        if (!isMusterError(error, 'idevid')) throw error
      }
    }),
    { numRuns: 60 },
  )
})

function isReadable(der: Buffer): boolean {
  try {
    return new X509Certificate(der) !== null
  } catch {
    return false
  }
}
