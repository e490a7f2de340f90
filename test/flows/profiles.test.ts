import { X509Certificate } from 'node:crypto'
import t, { type Test } from 'tap'
import type { CertificateReply, ProfileRequest } from '#shared/api'
import { subjectAltName } from '#shared/pki/extensions'
import { privateKeyPem } from '#shared/pki/keys'
import { encodeName } from '#shared/pki/name'
import { derToPem } from '#shared/pki/pem'
import { KEY_TYPES, type KeyType } from '#shared/pki/spki'
import { type Pair, type RunningEnrollment, startEnrollment } from '../support/enrollment.ts'
import { type CraftedCsr, craftCsr, KEY_MAKERS } from '../support/pki-csr.ts'
import { connectAs, invitedBroker, runBroker } from '../support/running-broker.ts'

const SELF = '$' + '{device.id}'

async function fleetWith(service: RunningEnrollment, id: string, profile: ProfileRequest) {
  await service.admin.createFleet({ id, profile })
  await service.admin.createBatch({ id: `${id}-1`, fleet: id })
}

/** Enrolls with a crafted request; what came back. */
async function ask(service: RunningEnrollment, batch: string, csr: CraftedCsr) {
  const { token } = await service.admin.createToken({ batch, uses: 1 })
  const client = service.client()
  const json = { token, csr: derToPem(craftCsr(csr), 'CERTIFICATE REQUEST') }
  const { status, text } = await client.send('POST', '/v1/enroll', { json })
  client.close()
  return { status, reply: JSON.parse(text) }
}

async function enrolled(
  t: Test,
  service: RunningEnrollment,
  of: { batch: string; id: string; csr: CraftedCsr },
) {
  const { status, reply } = await ask(service, of.batch, {
    subject: encodeName({ commonName: of.id }),
    ...of.csr,
  })
  t.equal(status, 200, of.id)
  return reply as CertificateReply
}

t.test('a device with a key of each type enrolls, connects and renews', async (t) => {
  const service = await startEnrollment(t)
  await fleetWith(service, 'any', { keys: [...KEY_TYPES] })
  const broker = await runBroker(t, await invitedBroker(service, 'north'))
  for (const type of KEY_TYPES) {
    const key = KEY_MAKERS[type]()
    const id = `dev-${type}`
    const { certificate } = await enrolled(t, service, { batch: 'any-1', id, csr: { key } })
    const pair: Pair = { certificate, key: privateKeyPem(key) }
    const client = await connectAs(service, broker, { ...pair, id })
    t.ok(client.connected, `${type} connects`)
    await client.endAsync(true)
    const again = craftCsr({ key, subject: encodeName({ commonName: id }) })
    const json = { csr: derToPem(again, 'CERTIFICATE REQUEST') }
    t.equal((await service.client(pair).send('POST', '/v1/renew', { json })).status, 200, `${type} renews`)
  }
})

t.test('a key outside the profile is refused by name, and costs no use of the token', async (t) => {
  const service = await startEnrollment(t)
  await fleetWith(service, 'plain', {})
  await fleetWith(service, 'quantum', { keys: ['ML-DSA-44'] })
  const refused = async (batch: string, type: KeyType) => {
    const { status, reply } = await ask(service, batch, { key: KEY_MAKERS[type]() })
    t.match({ status, reply }, { status: 422, reply: { code: 'R-CSR-KEY' } }, `${type} in ${batch}`)
    return reply.evidence
  }
  t.match(await refused('plain-1', 'Ed25519'), { key: 'Ed25519', allowed: 'P-256, P-384', fleet: 'plain' })
  t.match(await refused('plain-1', 'RSA'), { key: 'RSA-2048' })
  await refused('plain-1', 'ML-DSA-65')
  t.match(await refused('quantum-1', 'P-256'), { key: 'P-256', allowed: 'ML-DSA-44' })
  await refused('quantum-1', 'ML-DSA-65')
  t.ok((await service.admin.listTokens()).every(({ used }) => used === 0))
})

t.test('a profile gives names, and a wish for others is refused', async (t) => {
  const service = await startEnrollment(t)
  await fleetWith(service, 'acme', {
    subject: { organization: 'Acme', organizationalUnit: `unit of ${SELF}` },
    san: [{ dns: `${SELF}.acme.test` }, { uri: `urn:acme:${'$'}{device.batch}:${SELF}` }],
  })
  const wishing = (...names: Parameters<typeof subjectAltName>[0]) => ({
    extensions: [subjectAltName(names)],
  })
  const own = [{ host: 'dev-1.acme.test' }, { uri: 'urn:acme:acme-1:dev-1' }]
  const { certificate } = await enrolled(t, service, { batch: 'acme-1', id: 'dev-1', csr: wishing(...own) })
  const { subject, subjectAltName: san } = new X509Certificate(certificate)
  t.equal(subject, 'O=Acme\nOU=unit of dev-1\nCN=dev-1')
  t.match(san, /DNS:dev-1\.acme\.test, URI:urn:acme:acme-1:dev-1$/)

  const outside: [string, CraftedCsr][] = [
    ['another DNS name', wishing({ host: 'dev-2.acme.test' })],
    ['another URI', wishing({ uri: 'https://acme.test/' })],
    ['an address', wishing({ host: '127.0.0.1' })],
    ['another organization', { subject: encodeName({ organization: 'Evil', commonName: 'dev-9' }) }],
    ['a template that makes no DNS name', { subject: encodeName({ commonName: 'dev_9' }) }],
    ['an id that is too long for a label', { subject: encodeName({ commonName: 'a'.repeat(64) }) }],
  ]
  for (const [name, csr] of outside) {
    const key = KEY_MAKERS['P-256']()
    const { status, reply } = await ask(service, 'acme-1', {
      key,
      subject: encodeName({ commonName: 'dev-9' }),
      ...csr,
    })
    t.match(
      { status, reply },
      { status: 422, reply: { code: 'R-CSR-SUBJECT', evidence: { wish: /./ } } },
      name,
    )
  }
})

t.test('the profile is checked again at every renewal', async (t) => {
  const service = await startEnrollment(t)
  await fleetWith(service, 'f', { keys: ['P-256', 'Ed25519'] })
  const key = KEY_MAKERS.Ed25519()
  const { certificate } = await enrolled(t, service, { batch: 'f-1', id: 'dev-1', csr: { key } })
  await service.admin.setProfile('f', { keys: ['P-256'], subject: { organization: 'New' } })
  const device = service.client({ certificate, key: privateKeyPem(key) })
  const renew = async (next: CraftedCsr) => {
    const der = craftCsr({ subject: encodeName({ commonName: 'dev-1' }), ...next })
    const json = { csr: derToPem(der, 'CERTIFICATE REQUEST') }
    const { status, text } = await device.send('POST', '/v1/renew', { json })
    return { status, reply: JSON.parse(text) }
  }
  t.match(await renew({ key }), { status: 422, reply: { code: 'R-CSR-KEY', evidence: { key: 'Ed25519' } } })
  const next = await renew({ key: KEY_MAKERS['P-256']() })
  t.equal(next.status, 200)
  t.match(new X509Certificate(next.reply.certificate).subject, /^O=New\nCN=dev-1$/)
})

t.test('life and window follow the profile, and differ among devices', async (t) => {
  const service = await startEnrollment(t)
  const lifetimeMs = 100 * 86_400_000
  await fleetWith(service, 'f', { lifetimeMs, lifetimeJitter: 0.5 })
  const ends = new Set<number>()
  for (const id of ['a', 'b', 'c']) {
    const { notAfter } = await enrolled(t, service, { batch: 'f-1', id, csr: { key: KEY_MAKERS['P-256']() } })
    const life = notAfter - Date.now()
    t.ok(life <= lifetimeMs && life > lifetimeMs * 0.49, `${life / lifetimeMs}`)
    ends.add(notAfter)
  }
  t.equal(ends.size, 3)
})

t.test('a profile that makes no sense is refused before it is stored', async (t) => {
  const service = await startEnrollment(t)
  const wrong: [string, object][] = [
    ['an unknown key type', { keys: ['RSA-1024'] }],
    ['no key type', { keys: [] }],
    ['a key type twice', { keys: ['P-256', 'P-256'] }],
    ['a window that ends before it begins', { renewal: { after: 0.9, jitter: 0.2, before: 0.95 } }],
    ['a window past the life', { renewal: { after: 0.9, jitter: 0, before: 1.5 } }],
    ['an unknown variable', { subject: { organization: '$' + '{env.HOME}' } }],
    ['a variable that is not closed', { san: [{ uri: 'urn:$' + '{device.id' }] }],
    ['the name of an identity', { san: [{ uri: 'spiffe://muster.test/operator/olga' }] }],
    ['nine names', { san: Array.from({ length: 9 }, () => ({ dns: 'a' })) }],
    ['an unknown field', { isCa: true }],
    ['a life of a second', { lifetimeMs: 1000 }],
  ]
  for (const [name, profile] of wrong) {
    await t.rejects(
      service.admin.setProfile('default', profile as ProfileRequest),
      { code: 'invalid_request' },
      name,
    )
    await t.rejects(
      service.admin.createFleet({ id: 'x', profile: profile as ProfileRequest }),
      { code: 'invalid_request' },
      name,
    )
  }
  await t.rejects(service.admin.setProfile('services', {}), { code: 'conflict' })
  await t.rejects(service.admin.setProfile('none', {}), { code: 'not_found' })
  t.match(await service.admin.showProfile('default'), { keys: ['P-256', 'P-384'], san: [] })
})
