/** The openssl command as a second opinion on everything that the PKI writes, and as a source of requests. */
import { execFileSync, spawnSync } from 'node:child_process'
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import t from 'tap'
import type { ErrorCode, Evidence } from '#shared/errors'
import { generateKey } from '#shared/pki/keys'
import { certsOnly } from '#shared/pki/pkcs7'
import { createCsr } from '#shared/pki/x509'
import { checkCsr, decodeCsr } from '../../enrollment/ca/check-csr.ts'
import { signCrl } from '../../enrollment/ca/crl.ts'
import { distributionPoint } from '../../enrollment/ca/shard.ts'
import { TEST_PASSPHRASE, testAuthority, testIdentity } from '../support/pki.ts'

const hasOpenssl = spawnSync('openssl', ['version']).status === 0
const skip = hasOpenssl ? false : 'there is no openssl here'

const directory = mkdtempSync(join(tmpdir(), 'muster-openssl-'))
const authority = await testAuthority()
t.teardown(() => {
  authority.remove()
  rmSync(directory, { recursive: true, force: true })
})

function file(name: string, content: string | Uint8Array = ''): string {
  const path = join(directory, name)
  writeFileSync(path, content)
  return path
}

function openssl(...args: string[]): string {
  return execFileSync('openssl', args, { encoding: 'utf8', stdio: ['ignore', 'pipe', 'pipe'] })
}

const root = file('root.pem', authority.rootPem)
const deviceCa = file('device-ca.pem', authority.device.pem)
const infrastructureCa = file('infrastructure-ca.pem', authority.infrastructure.pem)

t.test('chains verify strictly, each for its purpose and for no other', { skip }, async (t) => {
  const device = file('device.pem', (await testIdentity(authority, 'dev-1')).pem)
  const broker = file('broker.pem', (await testIdentity(authority, 'broker-1', { kind: 'broker' })).pem)
  const verify = (purpose: string, ca: string, leaf: string) =>
    spawnSync('openssl', [
      'verify',
      '-x509_strict',
      '-purpose',
      purpose,
      '-CAfile',
      root,
      '-untrusted',
      ca,
      leaf,
    ]).status
  t.equal(verify('sslclient', deviceCa, device), 0)
  t.not(verify('sslserver', deviceCa, device), 0)
  t.equal(verify('sslclient', infrastructureCa, broker), 0)
  t.equal(verify('sslserver', infrastructureCa, broker), 0)
  t.not(verify('sslclient', infrastructureCa, device), 0)
})

t.test('a device certificate reads as it is meant', { skip }, async (t) => {
  const device = file('read.pem', (await testIdentity(authority, 'dev-1')).pem)
  const text = openssl('x509', '-in', device, '-noout', '-text')
  t.match(text, /Version: 3 \(0x2\)/)
  t.match(text, /Subject: CN ?= ?dev-1\n/)
  t.match(text, /Basic Constraints: critical\n\s+CA:FALSE\n/)
  t.match(text, /Key Usage: critical\n\s+Digital Signature\n/)
  t.match(text, /Extended Key Usage: ?\n\s+TLS Web Client Authentication\n/)
  t.match(text, /URI:spiffe:\/\/muster\.test\/device\/dev-1\n/)
  t.match(text, `URI:${authority.device.crlUrl.slice(0, -4)}/`)
  t.match(text, `OCSP - URI:${authority.device.ocspUrl}`)
  t.match(text, `CA Issuers - URI:${authority.device.caUrl}`)
})

t.test('a CRL verifies, and stops the certificate that is on it', { skip }, async (t) => {
  const now = Date.now()
  const bad = await testIdentity(authority, 'bad')
  const sameShard = `${'5a'.repeat(12)}${bad.serial.slice(-8)}`
  const good = await testIdentity(authority, 'good', { serial: sameShard })
  const entries = [{ serial: bad.serial, revokedAt: now - 5000, reason: 'keyCompromise' as const }]
  const url = distributionPoint(authority.device, bad.serial)
  const der = await signCrl(authority.device, {
    url,
    number: 12,
    thisUpdate: now,
    nextUpdate: now + 3_600_000,
    entries,
  })
  const crl = file('device.crl', der)
  const pem = join(directory, 'device.crl.pem')
  openssl('crl', '-inform', 'DER', '-in', crl, '-out', pem)
  const { stderr } = spawnSync('openssl', ['crl', '-in', pem, '-noout', '-CAfile', deviceCa], {
    encoding: 'utf8',
  })
  t.match(stderr, /verify OK/)
  const text = openssl('crl', '-in', pem, '-noout', '-text')
  t.match(text, /CRL Number: ?\n\s+12\n/)
  t.match(text, /Issuing Distribution Point: critical/)
  t.match(text, /Key Compromise/)
  const check = (leaf: string) => {
    const chain = ['-CAfile', root, '-untrusted', deviceCa, '-CRLfile', pem]
    return spawnSync('openssl', ['verify', '-crl_check', ...chain, leaf], { encoding: 'utf8' })
  }
  t.equal(check(file('good.pem', good.pem)).status, 0)
  t.match(check(file('bad.pem', bad.pem)).stderr, /certificate revoked/)
})

t.test('a certs-only PKCS#7 gives its certificates back', { skip }, async (t) => {
  const device = await testIdentity(authority, 'dev-1')
  const p7 = file('certs.p7', certsOnly([device.der, authority.device.der]))
  const text = openssl('pkcs7', '-inform', 'DER', '-in', p7, '-print_certs')
  t.equal(text.match(/BEGIN CERTIFICATE/g)?.length, 2)
  t.match(text, /subject=CN ?= ?dev-1/)
})

t.test('the CA keys open with the passphrase', { skip }, (t) => {
  const key = join(authority.directory, 'device-ca.key')
  const fromKey = openssl('pkey', '-in', key, '-passin', `pass:${TEST_PASSPHRASE}`, '-pubout')
  t.equal(fromKey, openssl('x509', '-in', deviceCa, '-noout', '-pubkey'))
  t.throws(() => openssl('pkey', '-in', key, '-passin', 'pass:wrong'))
  t.end()
})

t.test('our requests verify', { skip }, async (t) => {
  const { pem } = await createCsr({
    key: generateKey(),
    commonName: 'dev-1',
    uris: ['spiffe://muster.test/device/dev-1'],
  })
  const { stdout, stderr, status } = spawnSync(
    'openssl',
    ['req', '-in', file('ours.csr', pem), '-noout', '-verify', '-text'],
    { encoding: 'utf8' },
  )
  t.equal(status, 0)
  t.match(stdout + stderr, /verify OK/i)
  t.match(stdout, /URI:spiffe:\/\/muster\.test\/device\/dev-1/)
})

/** A request made by openssl with its default configuration. */
function request(...args: string[]): string {
  const out = join(directory, 'request.csr')
  openssl('req', '-new', '-nodes', '-keyout', join(directory, 'request.key'), '-out', out, ...args)
  return readFileSync(out, 'utf8')
}

const P256 = ['-newkey', 'ec', '-pkeyopt', 'ec_paramgen_curve:P-256']

t.test('requests that openssl makes are read', { skip }, async (t) => {
  const plain = request(...P256, '-subj', '/CN=dev-1')
  t.match(await checkCsr(decodeCsr(plain)), { commonName: 'dev-1', uris: [] })
  const rich = request(
    ...P256,
    '-sha384',
    '-subj',
    '/C=DE/O=Acme/serialNumber=7/CN=dev-1',
    '-reqexts',
    'v3_req',
  )
  t.match(await checkCsr(decodeCsr(rich)), { commonName: 'dev-1' })
  const uri = 'spiffe://muster.test/device/dev-1'
  const named = request(...P256, '-subj', '/CN=dev-1', '-addext', `subjectAltName=URI:${uri}`)
  t.match(await checkCsr(decodeCsr(named)), { commonName: 'dev-1', uris: [uri] })
  const p384 = request('-newkey', 'ec', '-pkeyopt', 'ec_paramgen_curve:P-384', '-subj', '/CN=dev-1')
  t.match(await checkCsr(decodeCsr(p384)), { commonName: 'dev-1' })
})

t.test('what openssl can wish for and a device cannot have is refused by name', { skip }, async (t) => {
  const subject = ['-subj', '/CN=dev-1']
  const wrong: [string, string[], { code: ErrorCode; evidence?: Evidence }][] = [
    [
      'CA',
      [...P256, '-addext', 'basicConstraints=CA:TRUE'],
      { code: 'csr_subject', evidence: { wish: 'CA:TRUE' } },
    ],
    ['keyCertSign', [...P256, '-addext', 'keyUsage=keyCertSign'], { code: 'csr_subject' }],
    ['serverAuth', [...P256, '-addext', 'extendedKeyUsage=serverAuth'], { code: 'csr_subject' }],
    ['DNS', [...P256, '-addext', 'subjectAltName=DNS:a.example'], { code: 'csr_subject' }],
    ['RSA', ['-newkey', 'rsa:2048'], { code: 'csr_key', evidence: { key: 'RSA-2048' } }],
    ['Ed25519', ['-newkey', 'ed25519'], { code: 'csr_key' }],
    ['explicit curve', [...P256, '-pkeyopt', 'ec_param_enc:explicit'], { code: 'csr_key' }],
    ['SHA-1', [...P256, '-sha1'], { code: 'csr_malformed' }],
  ]
  for (const [name, args, refusal] of wrong) {
    await t.rejects(checkCsr(decodeCsr(request(...args, ...subject))), refusal, name)
  }
})
