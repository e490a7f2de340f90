import { createHash, X509Certificate } from 'node:crypto'
import { readFileSync } from 'node:fs'
import { join } from 'node:path'
import t from 'tap'
import type { CertificateReply, Problem } from '#shared/api'
import { generateKey, readPrivateKey } from '#shared/pki/keys'
import { createCsr } from '#shared/pki/x509'
import { parseToken } from '#shared/token'
import { enroll as enrollOnce } from '../../enrollment/enroll.ts'
import { enrollDevice, newRequest, type RunningEnrollment, startEnrollment } from '../support/enrollment.ts'

async function enroll(service: RunningEnrollment, request: { token: string; csr: string }) {
  const reply = await service.client().send('POST', '/v1/enroll', { json: request })
  return { status: reply.status, ...(JSON.parse(reply.text) as Partial<CertificateReply & Problem>) }
}

t.test('the life of a device', async (t) => {
  const service = await startEnrollment(t)
  const { admin } = service

  t.test('it enrolls with a token, and the operator sees it', async (t) => {
    const device = await enrollDevice(service, { id: 'press-1' })
    const leaf = new X509Certificate(device.certificate)
    t.equal(leaf.subject, 'CN=press-1')
    t.match(leaf.subjectAltName, 'spiffe://muster.local/device/press-1')
    t.match(await admin.showDevice('press-1'), { id: 'press-1', state: 'active', batch: 'lab' })
    t.match((await admin.listDevices({ batch: 'lab' })).devices, [{ id: 'press-1', held: false }])
    t.match(await admin.explain('press-1'), { verdict: 'admitted', code: null })
  })

  t.test('a retry after a lost reply gets the same certificate and costs nothing', async (t) => {
    const { token } = await admin.createToken({ batch: 'lab', uses: 1 })
    const { csr } = await newRequest('press-2')
    const first = await enroll(service, { token, csr })
    const again = await enroll(service, { token, csr })
    t.equal(first.status, 200)
    t.same(again, first)
    t.match((await admin.listTokens('lab')).at(-1), { used: 1, state: 'spent' })
  })

  t.test('identical requests at the same moment all get the one certificate', async (t) => {
    const { token } = await admin.createToken({ batch: 'lab', uses: 5 })
    const { csr } = await newRequest('press-twin')
    const replies = await Promise.all(Array.from({ length: 10 }, () => enroll(service, { token, csr })))
    t.ok(replies.every(({ status }) => status === 200))
    t.equal(new Set(replies.map(({ certificate }) => certificate)).size, 1)
    t.match((await admin.listTokens('lab')).at(-1), { used: 1 })
  })

  t.test('two that sign at the same time both answer what was recorded', async (t) => {
    const { token } = await admin.createToken({ batch: 'lab', uses: 5 })
    const { der: csr } = await newRequest('press-pair')
    const tokenHash = parseToken(token)?.hash ?? ''
    const request = {
      tokenHash,
      csr,
      label: null,
      channel: { tlsUnique: null, why: 'no connection' } as const,
    }
    const answers = await Promise.all([1, 2, 3].map(() => enrollOnce(service.deps, request)))
    const issued = answers.flatMap((answer) => ('waitsFor' in answer ? [] : [answer]))
    t.equal(issued.length, 3)
    const serial = issued[0]?.issuance.serial ?? ''
    const recorded = await service.deps.registry.findCredential({ serial })
    t.ok(issued.every(({ certificate }) => recorded?.der.equals(certificate)))
  })

  t.test('100 parallel uses of a one-use token give exactly one certificate', async (t) => {
    const { token, id } = await admin.createToken({ batch: 'lab', uses: 1 })
    const requests = await Promise.all(Array.from({ length: 100 }, (_, n) => newRequest(`race-${n}`)))
    const client = service.client()
    const replies = await Promise.all(
      requests.map(({ csr }) => client.send('POST', '/v1/enroll', { json: { token, csr } })),
    )
    t.equal(replies.filter(({ status }) => status === 200).length, 1)
    const refused = replies.filter(({ status }) => status !== 200)
    t.ok(refused.every(({ status, text }) => status === 401 && text.includes('R-TOKEN-SPENT')))
    const { devices } = await admin.listDevices({ batch: 'lab', limit: 1000 })
    t.equal(devices.filter((device) => device.id.startsWith('race-') && device.state === 'active').length, 1)
    t.match(
      (await admin.listTokens('lab')).find((view) => view.id === id),
      { used: 1 },
    )
  })

  t.test('an id that is taken is refused with another token and key', async (t) => {
    const { token } = await admin.createToken({ batch: 'lab', uses: 1 })
    const { csr } = await newRequest('press-1')
    t.match(await enroll(service, { token, csr }), { status: 409, code: 'R-ID-TAKEN' })
  })

  t.test('it renews with its certificate, for the same key or a new one', async (t) => {
    const device = await enrollDevice(service, { id: 'press-3' })
    const client = service.client(device)
    const same = await client.send('POST', '/v1/renew', { json: { csr: device.csr } })
    t.equal(same.status, 200, same.text)
    const { csr } = await newRequest('press-3')
    const other = await client.send('POST', '/v1/renew', { json: { csr } })
    const again = await client.send('POST', '/v1/renew', { json: { csr } })
    t.equal(other.status, 200)
    t.equal(again.text, other.text, 'a lost reply costs nothing here either')
    const foreign = await newRequest('press-1')
    t.match(await client.send('POST', '/v1/renew', { json: { csr: foreign.csr } }), {
      status: 422,
      text: /R-CSR-SUBJECT/,
    })
    t.equal((await service.client().send('POST', '/v1/renew', { json: { csr } })).status, 401)
  })

  t.test('a key that another device or the CA has is refused', async (t) => {
    const { token } = await admin.createToken({ batch: 'lab', uses: 2 })
    const device = await enrollDevice(service, { id: 'press-4' })
    const { pem } = await createCsr({ key: readPrivateKey(device.key), commonName: 'press-5' })
    t.match(await enroll(service, { token, csr: pem }), { status: 422, code: 'R-CSR-KEY' })
    const { ca } = service.config.layout
    const passphrase = readFileSync(join(ca, 'passphrase'), 'utf8').trim()
    for (const name of ['root', 'device-ca', 'infrastructure-ca']) {
      const key = readPrivateKey(readFileSync(join(ca, `${name}.key`), 'utf8'), passphrase)
      const request = await createCsr({ key, commonName: 'press-5' })
      t.match(await enroll(service, { token, csr: request.pem }), { status: 422, code: 'R-CSR-KEY' }, name)
    }
  })

  t.test('a wish for more than a name is refused by name', async (t) => {
    const { token } = await admin.createToken({ batch: 'lab', uses: 2 })
    const key = generateKey()
    const ca = await createCsr({ key, commonName: 'press-6', isCa: true })
    t.match(await enroll(service, { token, csr: ca.pem }), { status: 422, evidence: { wish: 'CA:TRUE' } })
    const uris = ['spiffe://muster.local/device/press-1']
    const foreign = await createCsr({ key, commonName: 'press-6', uris })
    t.match(await enroll(service, { token, csr: foreign.pem }), { status: 422, code: 'R-CSR-SUBJECT' })
  })

  t.test('a retired device does not return with its token, but with a reissue', async (t) => {
    const device = await enrollDevice(service, { id: 'press-7' })
    await admin.retireDevice('press-7')
    t.match(await enroll(service, device), { status: 403, code: 'R-TOKEN-TOMBSTONE' })
    const renewal = await service.client(device).send('POST', '/v1/renew', { json: { csr: device.csr } })
    t.match(renewal, { status: 403, text: /R-RETIRED/ })
    t.match(await admin.explain('press-7'), { verdict: 'refused', code: 'R-RETIRED' })
    const { token } = await admin.reissueDevice('press-7')
    const { csr } = await newRequest('press-7')
    t.match(await enroll(service, { token, csr }), { status: 200, device: 'press-7' })
    t.match(await admin.showDevice('press-7'), { state: 'active' })
  })

  t.test('a cancelled token is refused, also for a retry', async (t) => {
    const { token, id } = await admin.createToken({ batch: 'lab', uses: 2 })
    const { csr } = await newRequest('press-8')
    t.equal((await enroll(service, { token, csr })).status, 200)
    await admin.cancelToken(id)
    t.match(await enroll(service, { token, csr }), { status: 401, code: 'R-TOKEN-CANCELLED' })
  })

  t.test('a service gets a certificate for its name, once per key', async (t) => {
    const { csr } = await newRequest()
    const first = await admin.createService({ id: 'dashboard', csr })
    t.match(first, { device: 'dashboard' })
    t.same(await admin.createService({ id: 'dashboard', csr }), first)
    t.match(new X509Certificate(first.certificate).subjectAltName, 'spiffe://muster.local/service/dashboard')
    await t.rejects(admin.createService({ id: 'press-1', csr: (await newRequest()).csr }), {
      code: 'id_taken',
    })
    await t.rejects(admin.createService({ id: 'constructor', csr }), { code: 'invalid_request' })
  })

  t.test('refusals are remembered with their evidence', async (t) => {
    const { refusals } = await admin.showDevice('press-7')
    t.match(refusals, [{ code: 'R-RETIRED', by: 'enrollment' }, { code: 'R-TOKEN-TOMBSTONE' }])
  })
})

t.test('holds, revocations and receipts', async (t) => {
  const service = await startEnrollment(t)
  const { admin } = service
  const number = async () => (await admin.status()).crl.number

  t.test('a held device may neither renew nor enroll; released it goes on', async (t) => {
    const device = await enrollDevice(service, { id: 'mill-1' })
    const plan = await admin.proposePlan({ action: 'hold', scope: { kind: 'device', id: 'mill-1' } })
    t.match(plan, { state: 'proposed', counts: { devices: 1 }, receipt: null })
    await t.rejects(admin.applyPlan(plan.id, 2), { code: 'count_mismatch' })
    t.match(await admin.applyPlan(plan.id, 1), { state: 'applied' })
    const renew = () => service.client(device).send('POST', '/v1/renew', { json: { csr: device.csr } })
    t.match(await renew(), { status: 403, text: /R-HELD/ })
    t.match(await enroll(service, device), { status: 403, code: 'R-HELD' })
    t.match(await admin.explain('mill-1'), { code: 'R-HELD', text: new RegExp(plan.id) })
    t.match(await admin.receipt(plan.id, 0), { brokers: [], survivors: [] })
    t.match(await admin.undoPlan(plan.id), { state: 'undone' })
    t.equal((await renew()).status, 200)
  })

  t.test('a revocation without undo time is final at once, and on the CRL', async (t) => {
    const device = await enrollDevice(service, { id: 'mill-2' })
    const before = await number()
    const plan = await admin.proposePlan({
      action: 'revoke',
      devices: ['mill-2'],
      reason: 'privilegeWithdrawn',
      undoMs: 0,
    })
    await admin.applyPlan(plan.id, 1)
    await until(async () => (await number()) > before)
    t.match(await admin.showPlan(plan.id), { state: 'final' })
    await t.rejects(admin.undoPlan(plan.id), { code: 'undo_over' })
    t.match(await service.client(device).send('POST', '/v1/renew', { json: { csr: device.csr } }), {
      status: 403,
      text: /R-REVOKED/,
    })
    t.match(await enroll(service, device), { status: 403, code: 'R-TOKEN-TOMBSTONE' })
    t.match(await admin.explain(device.serial), { device: 'mill-2', code: 'R-REVOKED' })
    t.match(await admin.explain(device.fingerprint), { code: 'R-REVOKED' })
    t.match(await admin.status(), { crl: { entries: 1 } })
    const crl = await (await fetch((await admin.status()).crl.url)).bytes()
    t.ok(Buffer.from(crl).includes(Buffer.from(device.serial, 'hex')))
  })

  t.test('a compromised key has no undo time, whatever was asked for', async (t) => {
    await enrollDevice(service, { id: 'mill-3' })
    const scope = { kind: 'device', id: 'mill-3' } as const
    const plan = await admin.proposePlan({ action: 'revoke', scope, reason: 'keyCompromise', undoMs: 60_000 })
    t.equal(plan.undoMs, 0)
    t.equal((await admin.proposePlan({ action: 'revoke', scope })).undoMs, 15 * 60_000)
  })

  t.test('a plan is for a scope or for devices', async (t) => {
    const bad = { code: 'invalid_request' }
    await t.rejects(admin.proposePlan({ action: 'hold' }), bad)
    const scope = { kind: 'device', id: 'mill-1' } as const
    await t.rejects(admin.proposePlan({ action: 'hold', scope, devices: ['mill-1'] }), bad)
    await t.rejects(admin.applyPlan('p-none', 1), { code: 'not_found' })
  })
})

t.test('what is served over plain HTTP', async (t) => {
  const service = await startEnrollment(t)
  const { crl } = await service.admin.status()
  const { device } = service.deps.authority

  t.test('the CRL has its type and an ETag, and a second request costs no transfer', async (t) => {
    const reply = await fetch(crl.url)
    t.equal(reply.headers.get('content-type'), 'application/pkix-crl')
    const etag = reply.headers.get('etag') ?? ''
    t.equal((await reply.bytes())[0], 0x30)
    t.equal((await fetch(crl.url, { headers: { 'if-none-match': etag } })).status, 304)
    t.equal((await fetch(crl.url, { headers: { 'if-none-match': '"other"' } })).status, 200)
  })

  t.test('the URLs in a certificate lead to its CA and from there to the root', async (t) => {
    const reply = await fetch(device.caUrl)
    t.equal(reply.headers.get('content-type'), 'application/pkix-cert')
    const issuer = new X509Certificate(await reply.bytes())
    t.equal(createHash('sha256').update(issuer.raw).digest('hex'), device.id)
    const rootUrl = /CA Issuers - URI:(\S+)/.exec(issuer.infoAccess ?? '')?.[1] ?? ''
    t.ok(issuer.verify(new X509Certificate(await (await fetch(rootUrl)).bytes()).publicKey))
  })

  t.test('anything else is not there', async (t) => {
    for (const path of ['/crl/other.crl', '/ca/other.crt', '/crl/..%2f..%2fca%2froot.key', '/v1/ca', '/']) {
      t.equal((await fetch(service.whereabouts.http + path)).status, 404, path)
    }
  })
})

t.test('no token, key, password or CSR is in any line of the log, at any level', async (t) => {
  const service = await startEnrollment(t)
  const device = await enrollDevice(service, { id: 'silent-1' })
  const api = await service.admin.createApiToken({ name: 'ci' })
  const invitation = await service.admin.inviteBroker({})
  const guess = `mst_${'A'.repeat(43)}000000`
  await enroll(service, { token: guess, csr: device.csr })
  const client = service.client()
  const authorization = `Basic ${Buffer.from(`:${device.token}`).toString('base64')}`
  const headers = { authorization, 'content-type': 'application/pkcs10' }
  await client.send('POST', '/.well-known/est/simpleenroll', { headers, body: 'junk' })
  const torn = { headers: { 'content-type': 'application/json' }, body: `{"token":"${device.token}",` }
  const reply = await client.send('POST', '/v1/enroll', torn)
  t.match(reply, { status: 400 })
  t.notMatch(reply.text, /mst_/, 'nor in the text of an error')
  await service.adminClient().send('GET', '/v1/status', { headers: { authorization: `Bearer ${guess}` } })
  const passphrase = service.config.passphrase.from === 'made' ? service.config.passphrase.path : ''
  const lines = service.logged.join('')
  t.ok(lines.length > 0)
  const secrets = [device.token, api.token, invitation.token, guess, authorization, device.key.slice(40, 80)]
  for (const secret of [...secrets, readFileSync(passphrase, 'utf8').trim()]) t.notOk(lines.includes(secret))
  t.notMatch(lines, /PRIVATE KEY|CERTIFICATE REQUEST/)
})

/** Looks again at each turn of the event loop, for at most 10 s. */
async function until(isTrue: () => Promise<boolean>): Promise<void> {
  const deadline = AbortSignal.timeout(10_000)
  while (!(await isTrue())) {
    deadline.throwIfAborted()
    await new Promise(setImmediate)
  }
}
