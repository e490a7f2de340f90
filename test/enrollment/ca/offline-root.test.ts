import { X509Certificate } from 'node:crypto'
import { existsSync, mkdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import t, { type Test } from 'tap'
import { generateKey } from '#shared/pki/keys'
import { createCsr } from '#shared/pki/x509'
import { openMaintenance } from '../../../enrollment/maintenance.ts'
import { enrollDevice, startEnrollment } from '../../support/enrollment.ts'

const maintenance = openMaintenance()
const names = { trustDomain: 'plant.example', httpBase: 'http://pki.plant.example:8080' }

/** A plane with requests, and a root elsewhere that has signed them. */
async function offline(t: Test) {
  const base = t.testdir({})
  const data = join(base, 'plane')
  const rootDirectory = join(base, 'vault')
  const requests = await maintenance.initOffline({ data, ...names })
  const chains: string[] = []
  for (const csr of requests) chains.push(await maintenance.signIssuer({ ...names, rootDirectory, csr }))
  return { base, data, rootDirectory, requests, chains }
}

t.test('a plane runs under a root that was never on its machine', async (t) => {
  const { base, data, chains } = await offline(t)
  await t.rejects(
    startEnrollment(t, { data: base }),
    { code: 'directory_unusable' },
    'not before the certificates are there',
  )
  await maintenance.install({ data, certificates: chains })
  t.notOk(existsSync(join(data, 'ca', 'root.key')))
  const service = await startEnrollment(t, { data: base })
  const lamp = await enrollDevice(service, { id: 'lamp' })
  t.match(lamp.certificate, /BEGIN CERTIFICATE/)
  t.equal(service.deps.authority.trustDomain, names.trustDomain)
  await t.rejects(maintenance.install({ data, certificates: chains }), { code: 'conflict' })
  await t.rejects(maintenance.initOffline({ data, ...names }), { code: 'conflict' })
})

t.test('certificates that do not fit are not installed', async (t) => {
  const { base, data, chains, requests, rootDirectory } = await offline(t)
  const [device = '', infrastructure = ''] = chains
  const refused = (certificates: string[], message: RegExp) =>
    t.rejects(maintenance.install({ data, certificates }), { code: 'check_failed', message })
  await refused([device], /key of the infrastructure CA/)
  const leafOnly = join(base, 'leaf.pem')
  writeFileSync(
    leafOnly,
    `${readFileSync(device, 'utf8').split('-----END CERTIFICATE-----\n', 1)[0]}-----END CERTIFICATE-----\n`,
  )
  await refused([leafOnly], /root is not among them/)
  const other = await maintenance.signIssuer({
    ...names,
    rootDirectory: join(base, 'other'),
    csr: requests[1] ?? '',
  })
  await refused([device, other], /has not signed|root/)
  const misnamed = await maintenance.signIssuer({
    ...names,
    httpBase: 'http://elsewhere:8080',
    rootDirectory,
    csr: requests[1] ?? '',
  })
  await refused([device, misnamed], /not for plant\.example/)
  await maintenance.signIssuer({ ...names, rootDirectory, csr: requests[1] ?? '' })
  t.notOk(existsSync(join(data, 'ca', 'authority.json')))
  await t.resolves(maintenance.install({ data, certificates: [device, infrastructure] }))
})

t.test('a root key without its certificate is not replaced: it may have signed something', async (t) => {
  const { rootDirectory, requests } = await offline(t)
  const [key, certificate] = ['root.key', 'root.crt'].map((name) => join(rootDirectory, name))
  const before = readFileSync(key ?? '', 'utf8')
  const { publicKey } = new X509Certificate(readFileSync(certificate ?? ''))
  rmSync(certificate ?? '')
  await maintenance.signIssuer({ ...names, rootDirectory, csr: requests[0] ?? '' })
  t.equal(readFileSync(key ?? '', 'utf8'), before)
  t.ok(new X509Certificate(readFileSync(certificate ?? '')).publicKey.equals(publicKey))
})

t.test('the root signs nothing but the requests of issuing CAs', async (t) => {
  const base = t.testdir({})
  mkdirSync(join(base, 'in'))
  const csr = join(base, 'in', 'request.csr')
  const attempt = async (request: { commonName?: string; uris?: string[] }) => {
    writeFileSync(csr, (await createCsr({ key: generateKey(), ...request })).pem)
    return maintenance.signIssuer({ ...names, rootDirectory: join(base, 'vault'), csr })
  }
  await t.rejects(attempt({ commonName: 'lamp' }), { code: 'csr_subject' })
  await t.rejects(attempt({ commonName: 'muster-device-ca', uris: ['spiffe://plant.example'] }), {
    code: 'csr_subject',
  })
  writeFileSync(csr, 'not a request')
  await t.rejects(maintenance.signIssuer({ ...names, rootDirectory: join(base, 'vault'), csr }), {
    code: 'csr_malformed',
  })
})
