import { createPublicKey, generateKeyPairSync, randomBytes, X509Certificate } from 'node:crypto'
import 'reflect-metadata'
import * as x509 from '@peculiar/x509'
import t from 'tap'
import { isMusterError } from '#shared/errors'
import { readCertificate } from '#shared/pki/certificate'
import { readDer, TAG } from '#shared/pki/der'
import { element, NULL, oid, sequence } from '#shared/pki/der-write'
import * as encode from '#shared/pki/extensions'
import { generateKey, spkiDer } from '#shared/pki/keys'
import { encodeName } from '#shared/pki/name'
import { OID } from '#shared/pki/oid'
import { pemToDer } from '#shared/pki/pem'
import { type CertificateRequest, type Issuer, issueCertificate } from '../../../enrollment/ca/issue.ts'
import { type CaContext, type LeafContext, lintCa, lintLeaf } from '../../../enrollment/ca/lint.ts'
import { distributionPoint } from '../../../enrollment/ca/shard.ts'
import { encodeTbs, keyIdentifier, type TbsContents } from '../../../enrollment/ca/template.ts'
import { TEST_HTTP_BASE, testAuthority } from '../../support/pki.ts'

const authority = await testAuthority()
t.teardown(() => authority.remove())
const { device: issuer, infrastructure } = authority

const START = Math.floor(Date.now() / 1000) * 1000
const DAY_MS = 24 * 3600 * 1000
const key = generateKey()
const RSA_SPKI = spkiDer(generateKeyPairSync('rsa', { modulusLength: 1024 }).publicKey)

function request(changes: Partial<CertificateRequest> = {}): CertificateRequest {
  return {
    profile: 'device',
    id: 'dev-1',
    spki: spkiDer(key),
    serial: randomBytes(16).toString('hex'),
    notBefore: START,
    notAfter: START + 30 * DAY_MS,
    ...changes,
  }
}

t.test('a device certificate, read by two other implementations', async (t) => {
  const asked = request()
  const { der, fingerprint } = await issueCertificate(issuer, asked)
  const node = new X509Certificate(der)
  t.equal(node.fingerprint256.replaceAll(':', '').toLowerCase(), fingerprint)
  t.equal(node.serialNumber.toLowerCase(), asked.serial.replace(/^(00)+/, ''))
  t.equal(node.subject, 'CN=dev-1')
  t.equal(node.subjectAltName, 'URI:spiffe://muster.test/device/dev-1')
  t.same(node.keyUsage, [OID.clientAuth])
  t.equal(node.ca, false)
  t.equal(new Date(node.validFrom).getTime(), asked.notBefore)
  t.equal(new Date(node.validTo).getTime(), asked.notAfter)
  t.ok(node.verify(createPublicKey(issuer.pem)))
  t.ok(node.checkIssued(new X509Certificate(issuer.pem)))
  t.match(node.infoAccess, `CA Issuers - URI:${issuer.caUrl}`)
  t.match(node.infoAccess, `OCSP - URI:${TEST_HTTP_BASE}/ocsp`)

  const other = new x509.X509Certificate(der)
  t.same(
    other.extensions.map(({ type, critical }) => [type, critical]),
    [
      [OID.authorityKeyIdentifier, false],
      [OID.subjectKeyIdentifier, false],
      [OID.basicConstraints, true],
      [OID.keyUsage, true],
      [OID.extKeyUsage, false],
      [OID.subjectAltName, false],
      [OID.crlDistributionPoints, false],
      [OID.authorityInfoAccess, false],
    ],
  )
  t.equal(other.getExtension(x509.KeyUsagesExtension)?.usages, x509.KeyUsageFlags.digitalSignature)
  t.equal(other.getExtension(x509.AuthorityKeyIdentifierExtension)?.keyId, issuer.keyId.toString('hex'))
  const point = other.getExtension(x509.CRLDistributionPointsExtension)?.distributionPoints[0]
  t.equal(
    point?.distributionPoint?.fullName?.[0]?.uniformResourceIdentifier,
    `${issuer.crlUrl.slice(0, -4)}/${Number.parseInt(asked.serial.slice(-8), 16) % 64}.crl`,
  )
  t.ok(await other.verify({ publicKey: new x509.X509Certificate(issuer.pem), signatureOnly: true }))
})

t.test('servers and brokers name their hosts, in every form of address', async (t) => {
  const hosts = ['broker.example', '192.0.2.7', '::1', '2001:db8::ff00:42', '::ffff:192.0.2.7']
  for (const profile of ['server', 'broker'] as const) {
    const { der } = await issueCertificate(infrastructure, request({ profile, id: 'one', hosts }))
    const node = new X509Certificate(der)
    t.equal(node.checkHost('broker.example'), 'broker.example')
    for (const address of hosts.slice(1)) t.ok(node.checkIP(address), address)
    t.notOk(node.checkHost('other.example'))
    t.same(node.keyUsage, profile === 'server' ? [OID.serverAuth] : [OID.serverAuth, OID.clientAuth])
  }
})

t.test('a date from 2050 on is written as GeneralizedTime', async (t) => {
  const far = Date.UTC(2050, 0, 1)
  const late = { ...issuer, notAfter: Date.UTC(2060, 0, 1) }
  const { der } = await issueCertificate(late, request({ notBefore: far - 1000, notAfter: far }))
  const [notBefore, notAfter] = readCertificate(der).tbs.validity.children
  t.match(notBefore, { tag: 0x17, content: Buffer.from('491231235959Z') })
  t.match(notAfter, { tag: 0x18, content: Buffer.from('20500101000000Z') })
  t.equal(new Date(new X509Certificate(der).validTo).getTime(), far)
})

t.test('serials with a first bit or with first zeros keep their value', async (t) => {
  for (const serial of ['ff'.repeat(16), `00${'7f'.repeat(15)}`, `00${'80'.repeat(15)}`]) {
    const { der } = await issueCertificate(issuer, request({ serial }))
    t.equal(BigInt(`0x${new X509Certificate(der).serialNumber}`), BigInt(`0x${serial}`))
  }
})

t.test('an order that breaks a rule is refused before anything is signed', async (t) => {
  let signatures = 0
  const counting: Issuer = {
    ...issuer,
    signer: {
      ...issuer.signer,
      sign: async (tbs) => {
        signatures++
        return issuer.signer.sign(tbs)
      },
    },
  }
  const wrong: [string, Partial<CertificateRequest>][] = [
    ['validity_within_issuer', { notAfter: issuer.notAfter + 1000 }],
    ['validity_order', { notAfter: START }],
    ['serial', { serial: '00'.repeat(16) }],
    ['serial', { serial: '01' }],
    ['serial', { serial: '7f'.repeat(21) }],
    ['order_serial', { serial: 'AB'.repeat(16) }],
    ['subject', { id: 'no device id' }],
    ['subject', { id: 'constructor' }],
    ['issuer_kind', { profile: 'operator' }],
    ['san_hosts', { hosts: ['broker.example'] }],
    ['key', { spki: RSA_SPKI }],
  ]
  for (const [rule, changes] of wrong) {
    const asked = issueCertificate(counting, request(changes))
    await t.rejects(asked, { code: 'lint_failed', evidence: { rule } }, `${rule} ${JSON.stringify(changes)}`)
  }
  const server = (hosts: string[]) =>
    issueCertificate(infrastructure, request({ profile: 'server', id: 'one', hosts }))
  for (const hosts of [[], ['*.example'], ['a b'], ['-a.example'], ['a', 'a']]) {
    await t.rejects(server(hosts), { code: 'lint_failed', evidence: { rule: 'san_hosts' } }, hosts.join())
  }
  await t.rejects(issueCertificate(counting, request({ notBefore: START + 1 })), RangeError)
  t.equal(signatures, 0)
})

const good = request({ serial: 'a5'.repeat(16) })
const goodDer = (await issueCertificate(issuer, good)).der
const goodTbs = readCertificate(goodDer).tbsDer
const context: LeafContext = {
  signing: issuer,
  order: { ...good, hosts: [] },
  issuerKind: 'device',
  trustDomain: issuer.trustDomain,
  crlUrl: distributionPoint(issuer, good.serial),
  caUrl: issuer.caUrl,
  ocspUrl: issuer.ocspUrl,
}

t.test('the linter lets no other bit pass than was ordered', (t) => {
  lintLeaf(goodTbs, context)
  for (let bit = 0; bit < goodTbs.length * 8; bit++) {
    const changed = Buffer.from(goodTbs)
    changed.writeUInt8(changed.readUInt8(bit >> 3) ^ (1 << (bit & 7)), bit >> 3)
    try {
      lintLeaf(changed, context)
      t.fail(`bit ${bit & 7} of octet ${bit >> 3}`)
    } catch (error) {
      if (!isMusterError(error, 'lint_failed')) throw error
    }
  }
  t.end()
})

/** The good certificate with some of its parts replaced, encoded without a look from the linter. */
function tbsWith(
  changes: Partial<TbsContents>,
  replaced: Partial<Record<keyof typeof OID, Buffer | null>> = {},
) {
  const parts = {
    authorityKeyIdentifier: encode.authorityKeyIdentifier(issuer.keyId),
    subjectKeyIdentifier: encode.subjectKeyIdentifier(keyIdentifier(good.spki)),
    basicConstraints: encode.basicConstraints(false),
    keyUsage: encode.keyUsage(['digitalSignature']),
    extKeyUsage: encode.extKeyUsage([OID.clientAuth]),
    subjectAltName: encode.subjectAltName([{ uri: 'spiffe://muster.test/device/dev-1' }]),
    crlDistributionPoints: encode.crlDistributionPoint(context.crlUrl),
    authorityInfoAccess: encode.ocspAndCaIssuers({ caUrl: issuer.caUrl, ocspUrl: `${TEST_HTTP_BASE}/ocsp` }),
    ...replaced,
  }
  return encodeTbs({
    ...good,
    algorithm: issuer.signer.algorithm,
    issuer: issuer.name,
    subject: encodeName({ commonName: 'dev-1' }),
    extensions: Object.values(parts).filter((part) => part !== null),
    ...changes,
  })
}

t.test('the linter names the rule', (t) => {
  const uri = 'spiffe://muster.test/device/dev-1'
  const unknown = encode.extension('1.2.3.4', NULL)
  const wrong: [string, Buffer, Partial<LeafContext>?][] = [
    ['der', goodTbs.subarray(0, -1)],
    ['der', tbsWith({}, { keyUsage: encode.extKeyUsage([OID.clientAuth]) })],
    ['signature_algorithm', tbsWith({ algorithm: sequence(oid(OID.ecdsaWithSha256), NULL) })],
    ['signature_algorithm', tbsWith({ algorithm: sequence(oid('1.2.840.10045.4.1')) })],
    ['issuer_name', tbsWith({ issuer: infrastructure.name })],
    [
      'authority_key_id',
      tbsWith({}, { authorityKeyIdentifier: encode.authorityKeyIdentifier(infrastructure.keyId) }),
    ],
    ['authority_key_id', tbsWith({}, { authorityKeyIdentifier: null })],
    ['subject_key_id', tbsWith({}, { subjectKeyIdentifier: encode.subjectKeyIdentifier(issuer.keyId) })],
    ['order_dates', tbsWith({ notAfter: good.notAfter + 1000 })],
    ['subject', tbsWith({ subject: encodeName({ commonName: 'dev-2' }) })],
    ['subject', tbsWith({ subject: encodeName({ organization: 'x', commonName: 'dev-1' }) })],
    ['extension_set', tbsWith({}, { ocspSigning: unknown })],
    ['extension_set', tbsWith({}, { crlDistributionPoints: null })],
    ['basic_constraints', tbsWith({}, { basicConstraints: encode.basicConstraints({ pathLength: 0 }) })],
    [
      'basic_constraints',
      tbsWith({}, { basicConstraints: encode.extension(OID.basicConstraints, sequence()) }),
    ],
    ['key_usage', tbsWith({}, { keyUsage: encode.keyUsage(['digitalSignature', 'keyCertSign']) })],
    ['ext_key_usage', tbsWith({}, { extKeyUsage: encode.extKeyUsage([OID.clientAuth, OID.serverAuth]) })],
    ['san_uri', tbsWith({}, { subjectAltName: encode.subjectAltName([{ uri }, { uri }]) })],
    [
      'san_uri',
      tbsWith({}, { subjectAltName: encode.subjectAltName([{ uri: 'spiffe://muster.test/service/dev-1' }]) }),
    ],
    ['san_hosts', tbsWith({}, { subjectAltName: encode.subjectAltName([{ uri }, { host: 'a' }]) })],
    ['crl_distribution_point', goodTbs, { crlUrl: infrastructure.crlUrl }],
    ['crl_distribution_point', goodTbs, { crlUrl: issuer.crlUrl }],
    ['authority_info_access', goodTbs, { caUrl: infrastructure.caUrl }],
    ['authority_info_access', goodTbs, { ocspUrl: null }],
    ['authority_info_access', tbsWith({}, { authorityInfoAccess: encode.caIssuers(issuer.caUrl) })],
    ['issuer_kind', goodTbs, { issuerKind: 'infrastructure' }],
    ['order_key', goodTbs, { order: { ...context.order, spki: spkiDer(generateKey()) } }],
  ]
  t.same(tbsWith({}), goodTbs)
  for (const [rule, tbs, changes] of wrong) {
    t.throws(
      () => lintLeaf(tbs, { ...context, ...changes }),
      { code: 'lint_failed', evidence: { rule } },
      rule,
    )
  }
  t.end()
})

t.test('a date before 2050 that is written as GeneralizedTime is a fault', (t) => {
  const generalized = (at: number) =>
    element(
      TAG.generalizedTime,
      Buffer.from(`${new Date(at).toISOString().replace(/\D/g, '').slice(0, 14)}Z`),
    )
  const validity = sequence(generalized(good.notBefore), generalized(good.notAfter))
  const parts = readDer(goodTbs).children.map(({ raw }, index) => (index === 4 ? validity : raw))
  const rule = 'validity_encoding'
  t.throws(() => lintLeaf(sequence(...parts), context), { code: 'lint_failed', evidence: { rule } })
  t.end()
})

t.test('a CA certificate keeps to its own rules', (t) => {
  const ca = readCertificate(issuer.der).tbsDer
  const root = readCertificate(pemToDer(authority.rootPem, 'CERTIFICATE')).tbs
  const { signer } = issuer // of the same kind of key as the root's
  const signing = {
    ...{ name: root.subject.raw, keyId: keyIdentifier(root.spki.raw), notAfter: root.notAfter },
    signer,
  }
  const caContext = { signing, pathLength: 0, trustDomain: 'muster.test' }
  lintCa(ca, caContext)
  const wrong: [string, Buffer, Partial<CaContext>][] = [
    ['basic_constraints', ca, { pathLength: 1 }],
    ['san_uri', ca, { trustDomain: 'other.test' }],
    ['validity_within_issuer', ca, { signing: { ...signing, notAfter: issuer.notAfter - 1000 } }],
    ['key_usage', goodTbs, { signing: issuer }],
  ]
  for (const [rule, tbs, changes] of wrong) {
    t.throws(
      () => lintCa(tbs, { ...caContext, ...changes }),
      { code: 'lint_failed', evidence: { rule } },
      rule,
    )
  }
  t.end()
})
