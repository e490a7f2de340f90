import { execFileSync } from 'node:child_process'
import { createPublicKey, X509Certificate } from 'node:crypto'
import 'reflect-metadata'
import * as x509 from '@peculiar/x509'
import t from 'tap'
import { readCertificate } from '#shared/pki/certificate'
import { generateKey, spkiDer } from '#shared/pki/keys'
import { derToPem } from '#shared/pki/pem'
import { type CertificateRequest, type Issuer, issueCertificate } from '../../../enrollment/ca/issue.ts'
import {
  checkFilled,
  type LeafTemplate,
  type NamedRequest,
  templateFor,
} from '../../../enrollment/ca/leaf-template.ts'
import { distributionPoint } from '../../../enrollment/ca/shard.ts'
import { testAuthority } from '../../support/pki.ts'
import fc from '../../support/properties.ts'

const authority = await testAuthority()
t.teardown(() => authority.remove())
const { device: issuer } = authority

const START = Math.floor(Date.now() / 1000) * 1000
const DAY_MS = 24 * 3600 * 1000
const KEYS = Array.from({ length: 16 }, () => spkiDer(generateKey()))

const hex = (octets: number) =>
  fc.uint8Array({ minLength: octets, maxLength: octets }).map((bytes) => Buffer.from(bytes).toString('hex'))
const requests: fc.Arbitrary<CertificateRequest> = fc.record({
  profile: fc.constantFrom('device', 'service'),
  id: fc.stringMatching(/^[a-z0-9][a-z0-9_.-]{0,30}$/),
  spki: fc.constantFrom(...KEYS),
  serial: fc.oneof(
    { weight: 9, arbitrary: hex(15).map((rest) => `40${rest}`) },
    { weight: 1, arbitrary: hex(16) },
  ),
  notBefore: fc.integer({ min: 0, max: 3_000 }).map((days) => START - days * DAY_MS),
  notAfter: fc.integer({ min: 1, max: 1_500_000 }).map((seconds) => START + seconds * 1000),
  subject: fc.constantFrom(
    { organization: null, organizationalUnit: null },
    { organization: 'Lamps', organizationalUnit: null },
  ),
})

/** The octets that were signed: the signature itself is different each time. */
async function signedPart(of: Issuer, request: CertificateRequest): Promise<string> {
  return readCertificate((await issueCertificate(of, request)).der).tbsDer.toString('hex')
}

t.test('a certificate from a template is, octet for octet, what the general encoder writes', async (t) => {
  let filled = 0
  await fc.assert(
    fc.asyncProperty(requests, async (request) => {
      const named = { ...request, crlUrl: distributionPoint(issuer, request.serial) }
      if (templateFor(issuer, named)) filled += 1
      const fromTemplate = await signedPart(issuer, request)
      const general = await signedPart({ ...issuer }, request) // another issuer, which has no templates yet
      return fromTemplate === general
    }),
    { numRuns: 1_000 },
  )
  t.ok(filled > 200, `${filled} of 1 000 came from a template`)
})

t.test('a certificate from a template, read by OpenSSL and @peculiar/x509', async (t) => {
  const [first, second] = [good('dev-1', 0), good('dev-2', 1)]
  await issueCertificate(issuer, first)
  t.ok(templateFor(issuer, second))
  const { der } = await issueCertificate(issuer, second)

  const text = execFileSync('openssl', ['x509', '-noout', '-text'], {
    input: derToPem(der, 'CERTIFICATE'),
    encoding: 'utf8',
  })
  t.match(text, /Subject: CN ?= ?dev-2/)
  t.match(text, /URI:spiffe:\/\/muster\.test\/device\/dev-2/)
  const node = new X509Certificate(der)
  t.equal(node.serialNumber.toLowerCase(), second.serial)
  t.strictSame(spkiDer(node.publicKey), second.spki)
  t.ok(node.verify(createPublicKey(issuer.pem)))
  const other = new x509.X509Certificate(der)
  t.equal(other.notBefore.getTime(), second.notBefore)
  t.equal(other.notAfter.getTime(), second.notAfter)
  t.equal(other.subject, 'CN=dev-2')
  t.ok(await other.verify({ publicKey: new x509.X509Certificate(issuer.pem), signatureOnly: true }))
})

function good(id: string, key: number): NamedRequest {
  const serial = `41${'00'.repeat(14)}0${key}`
  const dates = { notBefore: START, notAfter: START + DAY_MS }
  return {
    profile: 'device',
    id,
    spki: KEYS[key] ?? Buffer.alloc(0),
    serial,
    ...dates,
    crlUrl: distributionPoint(issuer, serial),
  }
}

t.test('no octet of a certificate from a template may be other than was asked for', async (t) => {
  const request = good('dev-3', 0)
  await issueCertificate(issuer, request)
  const template = templateFor(issuer, request)
  if (template === null) return t.fail('there is a template')
  const tbs = readCertificate((await issueCertificate(issuer, request)).der).tbsDer
  checkFilled(template, { issuer, request, tbs })
  for (let place = 0; place < tbs.length; place++) {
    for (const bit of [0x01, 0x80]) {
      const bad = Buffer.from(tbs)
      bad[place] = (bad[place] ?? 0) ^ bit
      t.throws(
        () => checkFilled(template, { issuer, request, tbs: bad }),
        { code: 'lint_failed' },
        `octet ${place}`,
      )
    }
  }
  t.throws(() => checkFilled(template, { issuer, request, tbs: tbs.subarray(1) }), { code: 'lint_failed' })
  for (const other of [good('dev-4', 0), good('dev-3', 1)]) {
    t.throws(() => checkFilled(template, { issuer, request: other, tbs }), { code: 'lint_failed' })
  }
})

t.test('a template that is not whole makes no certificate', async (t) => {
  const request = good('dev-5', 0)
  const next = { ...good('dev-6', 1), spki: spkiDer(generateKey()) } // the template may have been made for any of KEYS
  await issueCertificate(issuer, request)
  const template: LeafTemplate | null = templateFor(issuer, request)
  const place = template?.places.findIndex(({ slot }) => slot === 'spki') ?? -1
  if (template === null || place === -1) return t.fail('there is a template')
  const places = template.places.filter((_, index) => index !== place)
  const tbs = readCertificate((await issueCertificate(issuer, next)).der).tbsDer
  t.throws(() => checkFilled({ der: template.der, places }, { issuer, request: next, tbs }), {
    code: 'lint_failed',
  })
})

t.test('what has no template is refused or issued as ever', async (t) => {
  const request = good('dev-7', 0)
  await issueCertificate(issuer, request)
  const late = { ...request, notAfter: issuer.notAfter + 1000 }
  await t.rejects(issueCertificate(issuer, late), { code: 'lint_failed' })
  await t.rejects(issueCertificate(issuer, { ...request, notBefore: request.notAfter }), {
    code: 'lint_failed',
  })
  await t.rejects(issueCertificate(issuer, { ...request, id: 'dev 7' }), { code: 'lint_failed' })
  await t.rejects(issueCertificate(issuer, { ...request, profile: 'server' }), { code: 'lint_failed' })
  await t.rejects(issueCertificate(issuer, { ...request, notBefore: START + 1 }), RangeError)
  const p384 = spkiDer(
    (await import('node:crypto')).generateKeyPairSync('ec', { namedCurve: 'P-384' }).publicKey,
  )
  t.strictSame(
    spkiDer(new X509Certificate((await issueCertificate(issuer, { ...request, spki: p384 })).der).publicKey),
    p384,
  )
})
