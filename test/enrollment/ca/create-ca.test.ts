import { createHash } from 'node:crypto'
import {
  chmodSync,
  chownSync,
  cpSync,
  existsSync,
  mkdirSync,
  mkdtempSync,
  readdirSync,
  readFileSync,
  renameSync,
  rmSync,
  statSync,
  writeFileSync,
} from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import 'reflect-metadata'
import * as x509 from '@peculiar/x509'
import t from 'tap'
import { generateKey, privateKeyPem } from '#shared/pki/keys'
import { OID } from '#shared/pki/oid'
import { type AuthorityOptions, openAuthority } from '../../../enrollment/ca/create-ca.ts'

const NOW = Date.UTC(2027, 0, 2, 3, 4, 5, 678)
const root = mkdtempSync(join(tmpdir(), 'muster-create-ca-'))
t.teardown(() => rmSync(root, { recursive: true, force: true }))

function options(name: string, changes: Partial<AuthorityOptions> = {}): AuthorityOptions {
  return {
    directory: join(root, name, 'ca'),
    trustDomain: 'muster.test',
    httpBase: 'http://127.0.0.1:8080',
    passphrase: 'correct horse',
    now: NOW,
    ...changes,
  }
}

/** A created authority's directory, copied so that a test can spoil it; copying saves making keys. */
const original = options('original')
const created = await openAuthority(original)
function copy(name: string): AuthorityOptions {
  const copied = options(name)
  cpSync(original.directory, copied.directory, { recursive: true })
  chmodSync(copied.directory, 0o700)
  return copied
}

const modeOf = (path: string) => (statSync(path).mode & 0o777).toString(8)

t.test('the first open creates, the second finds the same', async (t) => {
  t.equal(created.created, true)
  const again = await openAuthority({ ...original, now: NOW + 1000 })
  t.equal(again.created, false)
  t.equal(again.rootPem, created.rootPem)
  t.equal(again.device.id, created.device.id)
  t.equal(again.infrastructure.pem, created.infrastructure.pem)
  const tbs = Buffer.from('anything')
  t.ok(await again.device.signer.sign(tbs))
})

t.test('only the owner can enter the directory or read a key, and keys are encrypted', async (t) => {
  t.equal(modeOf(original.directory), '700')
  for (const name of ['root', 'device-ca', 'infrastructure-ca']) {
    const path = join(original.directory, `${name}.key`)
    t.equal(modeOf(path), '600')
    t.match(readFileSync(path, 'utf8'), /^-----BEGIN ENCRYPTED PRIVATE KEY-----\n/)
  }
  t.same(readdirSync(original.directory).sort(), [
    'authority.json',
    'device-ca.crt',
    'device-ca.key',
    'infrastructure-ca.crt',
    'infrastructure-ca.key',
    'root.crt',
    'root.key',
  ])
  t.notMatch(readFileSync(join(original.directory, 'authority.json'), 'utf8'), /correct horse/)
})

t.test('another implementation reads the CA certificates as they are meant', async (t) => {
  const certificates = [created.rootPem, created.device.pem, created.infrastructure.pem].map(
    (pem) => new x509.X509Certificate(pem),
  )
  const [rootCertificate, device, infrastructure] = certificates
  for (const certificate of certificates) {
    const constraints = certificate.getExtension(x509.BasicConstraintsExtension)
    t.match(constraints, { ca: true, critical: true, pathLength: certificate === rootCertificate ? 1 : 0 })
    const usage = certificate.getExtension(x509.KeyUsagesExtension)
    t.match(usage, { critical: true, usages: x509.KeyUsageFlags.keyCertSign | x509.KeyUsageFlags.cRLSign })
    t.ok(
      await certificate.verify({ publicKey: rootCertificate?.publicKey ?? 'no root', date: new Date(NOW) }),
    )
    t.equal(certificate.notBefore.getTime(), Math.floor((NOW - 3600_000) / 1000) * 1000)
    t.match(certificate.getExtension(x509.SubjectAlternativeNameExtension)?.names.toJSON(), [
      { type: 'url', value: 'spiffe://muster.test' },
    ])
  }
  t.same(device?.getExtension(x509.ExtendedKeyUsageExtension)?.usages, [OID.clientAuth, OID.ocspSigning])
  t.same(infrastructure?.getExtension(x509.ExtendedKeyUsageExtension)?.usages.length, 3)
  t.equal(created.device.id, createHash('sha256').update(created.device.der).digest('hex'))
  t.equal(created.device.notAfter, device?.notAfter.getTime())
  t.equal(created.device.crlUrl, `http://127.0.0.1:8080/crl/${created.device.id}.crl`)
  t.equal(created.device.caUrl, `http://127.0.0.1:8080/ca/${created.device.id}.crt`)
  t.not(device?.subject, infrastructure?.subject)
})

t.test('a creation that was cut at any step is begun anew at the next open', async (t) => {
  for (const point of [1, 2, 3, 4, 5].map((step) => `create-ca.${step}`)) {
    const cut = options(point)
    const reached = (seen: string) => {
      if (seen === point) throw new Error('power cut')
    }
    await t.rejects(openAuthority({ ...cut, reached }), { message: 'power cut' })
    if (point === 'create-ca.2') writeFileSync(join(cut.directory, 'device-ca.key.77.new'), 'half a key')
    const opened = await openAuthority(cut)
    t.notOk(existsSync(join(cut.directory, 'device-ca.key.77.new')))
    // from step 5 on authority.json is there, so what was made is kept
    t.equal(opened.created, point !== 'create-ca.5', point)
    t.equal(existsSync(join(cut.directory, 'authority.creating')), false)
    t.equal((await openAuthority(cut)).device.id, opened.device.id)
  }
})

t.test(
  'a cut creation may be completed with another passphrase or other names: nothing was used',
  async (t) => {
    const cut = options('cut-then-renamed')
    const reached = (point: string) => {
      if (point === 'create-ca.3') throw new Error('power cut')
    }
    await t.rejects(openAuthority({ ...cut, reached }))
    const opened = await openAuthority({ ...cut, trustDomain: 'other.test', passphrase: 'another one' })
    t.equal(opened.trustDomain, 'other.test')
  },
)

t.test('a used authority is never made anew', async (t) => {
  for (const missing of [
    'authority.json',
    'root.crt',
    'device-ca.crt',
    'device-ca.key',
    'infrastructure-ca.key',
  ]) {
    const spoiled = copy(`without-${missing}`)
    rmSync(join(spoiled.directory, missing))
    const before = readdirSync(spoiled.directory)
    await t.rejects(openAuthority(spoiled), { code: 'directory_unusable' }, missing)
    t.same(readdirSync(spoiled.directory), before)
  }
  const alone = options('root-key-alone')
  mkdirSync(alone.directory, { recursive: true, mode: 0o700 })
  const rootKey = readFileSync(join(original.directory, 'root.key'))
  writeFileSync(join(alone.directory, 'root.key'), rootKey, { mode: 0o600 })
  await t.rejects(openAuthority(alone), { code: 'directory_unusable' })
  t.same(readFileSync(join(alone.directory, 'root.key')), rootKey)
})

t.test('the root key may be kept elsewhere', async (t) => {
  const offline = copy('offline-root')
  rmSync(join(offline.directory, 'root.key'))
  t.equal((await openAuthority(offline)).rootPem, created.rootPem)
})

t.test('a key or a directory that others may read is refused', async (t) => {
  for (const name of ['root.key', 'device-ca.key', 'infrastructure-ca.key']) {
    const spoiled = copy(`open-${name}`)
    chmodSync(join(spoiled.directory, name), 0o640)
    await t.rejects(
      openAuthority(spoiled),
      { code: 'key_file_insecure', message: /0640; fix: chmod 600/ },
      name,
    )
  }
  const open = copy('open-directory')
  chmodSync(open.directory, 0o750)
  await t.rejects(openAuthority(open), { code: 'key_file_insecure', message: /chmod 700/ })
})

t.test('a key or a directory of another user is refused', { skip: process.getuid?.() !== 0 }, async (t) => {
  const foreignKey = copy('foreign-key')
  chownSync(join(foreignKey.directory, 'device-ca.key'), 65_534, 65_534)
  await t.rejects(openAuthority(foreignKey), { code: 'key_file_insecure', message: /owns it/ })
  const foreign = copy('foreign-directory')
  chownSync(foreign.directory, 65_534, 65_534)
  await t.rejects(openAuthority(foreign), { code: 'key_file_insecure', message: /owns it/ })
})

t.test('a wrong passphrase opens nothing, and neither does an unencrypted key', async (t) => {
  await t.rejects(openAuthority({ ...original, passphrase: 'wrong' }), { code: 'passphrase_wrong' })
  const plain = copy('plain-key')
  writeFileSync(join(plain.directory, 'device-ca.key'), privateKeyPem(generateKey()), { mode: 0o600 })
  await t.rejects(openAuthority(plain), { code: 'key_file_insecure', message: /not encrypted/ })
})

t.test('names that do not agree with those of the creation are refused', async (t) => {
  for (const change of [{ trustDomain: 'other.test' }, { httpBase: 'http://127.0.0.1:9080' }]) {
    await t.rejects(openAuthority({ ...original, ...change }), {
      code: 'config_invalid',
      message: /created with/,
    })
  }
})

t.test('authority.json is believed only as far as the certificates confirm it', async (t) => {
  const path = (of: AuthorityOptions) => join(of.directory, 'authority.json')
  const content: Record<string, unknown> = JSON.parse(readFileSync(path(original), 'utf8'))
  const tampered: [string, unknown, Partial<AuthorityOptions>][] = [
    ['trust domain', { ...content, trustDomain: 'evil.test' }, { trustDomain: 'evil.test' }],
    ['http base', { ...content, httpBase: 'http://evil.test' }, { httpBase: 'http://evil.test' }],
    ['swapped CAs', { ...content, device: content.infrastructure, infrastructure: content.device }, {}],
    ['hash', { ...content, device: '00'.repeat(32) }, {}],
    ['version', { ...content, schemaVersion: 2 }, {}],
    ['unknown field', { ...content, more: true }, {}],
    ['array', [], {}],
  ]
  for (const [name, changed, changes] of tampered) {
    const spoiled = { ...copy(`tampered-${name}`), ...changes }
    writeFileSync(path(spoiled), JSON.stringify(changed))
    await t.rejects(openAuthority(spoiled), { code: 'directory_unusable' }, name)
  }
  const torn = copy('torn')
  writeFileSync(path(torn), '{"schemaVersion":1,')
  await t.rejects(openAuthority(torn), { code: 'directory_unusable', message: /not JSON/ })
})

t.test('certificates and keys that do not belong together are refused', async (t) => {
  const swapped = copy('swapped-keys')
  const key = (ca: string) => join(swapped.directory, `${ca}.key`)
  renameSync(key('device-ca'), key('x'))
  renameSync(key('infrastructure-ca'), key('device-ca'))
  renameSync(key('x'), key('infrastructure-ca'))
  await t.rejects(openAuthority(swapped), { code: 'directory_unusable', message: /another one's/ })

  const foreign = copy('foreign-root')
  const other = await openAuthority(options('other'))
  writeFileSync(join(foreign.directory, 'root.crt'), other.rootPem)
  await t.rejects(openAuthority(foreign), { code: 'directory_unusable', message: /authority\.json names/ })
  const path = join(foreign.directory, 'authority.json')
  const content: Record<string, unknown> = JSON.parse(readFileSync(path, 'utf8'))
  writeFileSync(path, JSON.stringify({ ...content, root: other.rootId }))
  await t.rejects(openAuthority(foreign), { code: 'directory_unusable', message: /has not signed/ })

  const garbage = copy('garbage')
  writeFileSync(join(garbage.directory, 'device-ca.crt'), 'not a certificate')
  await t.rejects(openAuthority(garbage), { code: 'directory_unusable', message: /not a certificate/ })
})

t.test('nothing is signed by a clock before the creation or after the end of the CA', async (t) => {
  await t.rejects(openAuthority({ ...original, now: NOW - 2 * 3600_000 }), { code: 'clock_wrong' })
  await t.rejects(openAuthority({ ...original, now: created.device.notAfter }), { code: 'clock_wrong' })
})

t.test('names that no certificate can carry are refused before anything is made', async (t) => {
  const wrong: Partial<AuthorityOptions>[] = [
    { trustDomain: '' },
    { trustDomain: 'Upper.test' },
    { trustDomain: 'a/b' },
    { trustDomain: 'a'.repeat(65) },
    { trustDomain: '.test' },
    { httpBase: '' },
    { httpBase: 'https://muster.test' },
    { httpBase: 'http://muster.test/' },
    { httpBase: 'http://muster.test/x' },
    { httpBase: 'http://user@muster.test' },
    { httpBase: 'file:///etc' },
    { passphrase: '' },
  ]
  for (const change of wrong) {
    const refused = options('refused', change)
    await t.rejects(openAuthority(refused), { code: 'config_invalid' }, JSON.stringify(change))
    t.equal(existsSync(refused.directory), false)
  }
})
