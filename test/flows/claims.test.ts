import { X509Certificate } from 'node:crypto'
import { readFileSync, statSync } from 'node:fs'
import { join } from 'node:path'
import t from 'tap'
import type { CertificateReply, Problem } from '#shared/api'
import { readPrivateKey } from '#shared/pki/keys'
import { createCsr } from '#shared/pki/x509'
import { newRequest, type Pair, type RunningEnrollment, startEnrollment } from '../support/enrollment.ts'
import type { TestClient } from '../support/https.ts'
import { operatorOf } from '../support/operator.ts'

const EST = '/.well-known/est'

async function enroll(client: TestClient, csr: string) {
  const reply = await client.send('POST', '/v1/enroll', { json: { csr } })
  const body: Partial<CertificateReply & Problem> = JSON.parse(reply.text)
  return { status: reply.status, ...body }
}

/** `label`: the batch in the path. */
function enrollOverEst(client: TestClient, der: Buffer, label?: string) {
  const path = label === undefined ? `${EST}/simpleenroll` : `${EST}/${label}/simpleenroll`
  const headers = { 'content-type': 'application/pkcs10' }
  return client.send('POST', path, { headers, body: der.toString('base64') })
}

/** A claim over the API, with its key. */
async function claimOf(
  service: RunningEnrollment,
  of: { batch?: string; uses: number; expiresAt?: number; devices?: string[]; approval?: boolean },
): Promise<Pair & { id: string; csr: string }> {
  const { key, csr } = await newRequest()
  const { id, certificate } = await service.admin.createClaim({ batch: 'line-1', ...of, csr })
  return { id, key, csr, certificate }
}

t.test('a claim that the devices of a batch share', async (t) => {
  const clock = { offsetMs: 0 }
  const service = await startEnrollment(t, { clock })
  const { admin } = service
  const muster = operatorOf(t, service)

  t.test('is made by one command, with a key of its own', async (t) => {
    const made = await muster(
      'batch',
      'claim',
      'line-1',
      '--uses',
      '4',
      '--expires',
      '30d',
      '--out',
      service.data,
    )
    t.equal(made.status, 0, made.stderr)
    t.match(
      made.stdout,
      /^Claim c-[0-9a-f]{10} of batch line-1: .*line-1-claim\.key and .*4 use\(s\), expires in 30d/,
    )
    const [key, certificate] = ['key', 'crt'].map((end) =>
      readFileSync(join(service.data, `line-1-claim.${end}`), 'utf8'),
    ) as [string, string] // two files
    t.equal(statSync(join(service.data, 'line-1-claim.key')).mode & 0o777, 0o600)
    const x509 = new X509Certificate(certificate)
    t.match(x509.subjectAltName, /^URI:spiffe:\/\/muster\.local\/claim\/c-/)
    t.same(x509.keyUsage, ['1.3.6.1.5.5.7.3.2'])
    t.match(await muster('batch', 'claim', 'line-1', '--uses', '4', '--out', service.data), { status: 5 })
    t.match(await muster('batch', 'claim', 'line-1', '--uses', '0', '--out', join(service.data, 'x')), {
      status: 2,
    })

    const client = service.client({ certificate, key })
    const [one, two] = [await newRequest('press-1'), await newRequest('press-2')]
    const first = await enroll(client, one.csr)
    t.match(first, { status: 200, device: 'press-1' })
    t.match(new X509Certificate(first.certificate ?? '').subjectAltName, /\/device\/press-1$/)
    t.match(await enroll(client, one.csr), { status: 200, serial: first.serial }, 'a repeat is free')
    t.equal((await enrollOverEst(client, two.der)).status, 200)
    t.equal((await enrollOverEst(client, two.der, 'line-1')).status, 200, 'the label may name its batch')
    const foreign = await enrollOverEst(client, (await newRequest('press-3')).der, 'line-2')
    t.equal(foreign.status, 403)
    t.match(foreign.text, /^R-TOKEN-BATCH/)
    const tls12 = service.client({ certificate, key }, { tls12: true })
    t.match(await enroll(tls12, (await newRequest('press-4')).csr), { status: 200 })
    t.match(JSON.parse((await muster('batch', 'report', 'line-1', '--json')).stdout), {
      claims: { total: 1, open: 1 },
      tokens: { total: 0 },
      uses: { total: 4, enrolled: 3, open: 1 },
    })
    t.match((await muster('token', 'list')).stdout, /^c-\w+ +claim +line-1 +open +3\/4/m)
  })

  t.test('never has its key certified for a device, nor a device its key for a claim', async (t) => {
    const claim = await claimOf(service, { uses: 3 })
    const client = service.client(claim)
    const { pem } = await createCsr({ key: readPrivateKey(claim.key), commonName: 'press-9' })
    t.match(await enroll(client, pem), { status: 422, code: 'R-CSR-KEY', evidence: { why: /claim/ } })
    const { token } = await admin.createToken({ batch: 'line-1', uses: 1 })
    const byToken = await service.client().send('POST', '/v1/enroll', { json: { token, csr: pem } })
    t.match(JSON.parse(byToken.text), { code: 'R-CSR-KEY' }, 'not with a token either')
    await t.rejects(admin.createService({ id: 'reader', csr: claim.csr }), { code: 'csr_key' })
    await t.rejects(admin.createClaim({ batch: 'line-1', uses: 1, csr: claim.csr }), { code: 'csr_key' })
    const device = await newRequest('press-8')
    t.match(await enroll(client, device.csr), { status: 200 })
    const nameless = await createCsr({ key: readPrivateKey(device.key) })
    await t.rejects(admin.createClaim({ batch: 'line-1', uses: 1, csr: nameless.pem }), { code: 'csr_key' })
    await t.rejects(admin.createClaim({ batch: 'line-1', uses: 1, csr: device.csr }), { code: 'csr_subject' })
    t.match(await admin.listTokens('line-1'), [{ kind: 'claim' }, { kind: 'claim' }, { kind: 'token' }])
  })

  t.test('opens nothing but enrollment', async (t) => {
    const claim = await claimOf(service, { uses: 1 })
    const client = service.client(claim)
    const { csr, der } = await newRequest('press-10')
    const renewed = await client.send('POST', '/v1/renew', { json: { csr } })
    t.match(JSON.parse(renewed.text), { status: 403, code: 'R-CLAIM', fix: /Enroll with it/ })
    const headers = { 'content-type': 'application/pkcs10' }
    const body = der.toString('base64')
    const est = await client.send('POST', `${EST}/simplereenroll`, { headers, body })
    t.equal(est.status, 403)
    t.match(est.text, /^R-CLAIM: .*enroll with it/)
    t.equal((await client.send('GET', '/v1/renewal')).status, 403)
    const refused = await service.adminClient(claim).send('GET', '/v1/status')
    t.match(JSON.parse(refused.text), { status: 401, code: 'R-UNKNOWN-CA' })
    t.match(await admin.showDevice('press-10').catch((error) => error), { code: 'not_found' })
  })

  t.test('is refused by name when it is spent, expired or cancelled, on open connections too', async (t) => {
    const spent = await claimOf(service, { uses: 1, batch: 'line-3' })
    const [first, second] = [await newRequest('saw-1'), await newRequest('saw-2')]
    const client = service.client(spent)
    t.match(await enroll(client, first.csr), { status: 200 })
    t.match(await enroll(client, second.csr), {
      status: 401,
      code: 'R-TOKEN-SPENT',
      detail: /claim certificate "c-/,
    })
    t.match(await enroll(client, first.csr), { status: 200 }, 'its one device still repeats its request')

    const cancelled = await claimOf(service, { uses: 5, batch: 'line-3' })
    const open = service.client(cancelled)
    const third = await newRequest('saw-3')
    t.match(await enroll(open, third.csr), { status: 200 })
    t.match(
      (await muster('token', 'cancel', cancelled.id)).stdout,
      /^The claim c-\w+ of batch line-3 is cancelled/,
    )
    t.match(await enroll(open, third.csr), { code: 'R-TOKEN-CANCELLED' }, 'also for a repeat')
    t.match(await enroll(open, second.csr), { status: 401, code: 'R-TOKEN-CANCELLED' })

    const listed = await claimOf(service, { uses: 2, batch: 'line-3', devices: ['saw-5', 'saw-6'] })
    const bound = service.client(listed)
    t.match(await enroll(bound, (await newRequest('saw-7')).csr), { code: 'R-CSR-SUBJECT' })
    t.match(await enroll(bound, (await newRequest('saw-6')).csr), { status: 200, device: 'saw-6' })

    const expiresAt = Date.now() + 3_600_000
    const ending = await claimOf(service, { uses: 2, batch: 'line-3', expiresAt })
    clock.offsetMs = 3_600_000
    const late = service.client(ending)
    t.match(await enroll(late, second.csr), { status: 401, code: 'R-TOKEN-EXPIRED' })
    clock.offsetMs = 0

    t.match(await admin.batchReport('line-3'), {
      claims: { total: 4, open: 2, spent: 1, expired: 0, cancelled: 1 },
      uses: { total: 10, enrolled: 3, open: 3, cancelled: 4 },
      alarms: [
        { token: spent.id, kind: 'claim', code: 'R-TOKEN-SPENT', attempts: 1 },
        { token: cancelled.id, kind: 'claim', code: 'R-TOKEN-CANCELLED', attempts: 2 },
        { token: ending.id, kind: 'claim', code: 'R-TOKEN-EXPIRED', attempts: 1 },
      ],
    })
    const alarm = new RegExp(
      `^ALARM +claim ${spent.id}: 1 attempt\\(s\\) refused with R-TOKEN-SPENT, .*batch report line-3$`,
      'm',
    )
    t.match((await muster('status')).stdout, alarm)
    t.match(JSON.parse((await muster('status', '--json')).stdout).bootstrapAlarms, [
      { batch: 'line-3', kind: 'claim' },
      { batch: 'line-3', kind: 'claim' },
      { batch: 'line-3', kind: 'claim' },
    ])
  })

  t.test('of one use makes one device of 100 that come at the same time', async (t) => {
    const claim = await claimOf(service, { uses: 1, batch: 'line-4' })
    const requests = await Promise.all(Array.from({ length: 100 }, (_, at) => newRequest(`drill-${at}`)))
    const client = service.client(claim)
    const replies = await Promise.all(requests.map(({ csr }) => enroll(client, csr)))
    t.equal(replies.filter(({ status }) => status === 200).length, 1)
    t.equal(replies.filter(({ code }) => code === 'R-TOKEN-SPENT').length, 99)
    t.match(await admin.batchReport('line-4'), { uses: { total: 1, enrolled: 1 }, devices: { total: 1 } })
  })

  t.test('of another plane, or of a device, is none', async (t) => {
    const other = await startEnrollment(t, { data: t.testdir() })
    const foreign = await claimOf(other, { uses: 1 })
    const { csr, der } = await newRequest('press-20')
    t.match(await enroll(service.client(foreign), csr), { status: 401, code: 'R-UNKNOWN-CA' })
    const claim = await claimOf(service, { uses: 1 })
    const own = await newRequest('press-21')
    const { certificate = '' } = await enroll(service.client(claim), own.csr)
    const device = service.client({ certificate, key: own.key })
    t.match(await enroll(device, csr), {
      status: 401,
      code: 'unauthenticated',
      detail: /device "press-21", which renews/,
    })
    const est = await enrollOverEst(device, der)
    t.match([est.status, est.rawHeaders['WWW-Authenticate']], [401, 'Basic realm="est"'])
    t.match(await enroll(service.client(), csr), { status: 401, code: 'unauthenticated' })
    t.equal((await enrollOverEst(service.client(), der)).status, 401)
    const { token } = await admin.createToken({ batch: 'line-1', uses: 1 })
    const reply = await device.send('POST', '/v1/enroll', { json: { token, csr } })
    t.equal(reply.status, 200, 'a token counts, whatever certificate comes with it')
  })

  t.test('waits for approval where that is demanded, and is held with its batch', async (t) => {
    const claim = await claimOf(service, { uses: 2, batch: 'line-5', approval: true })
    const client = service.client(claim)
    const { csr } = await newRequest('kiln-1')
    t.match(await enroll(client, csr), { status: 202 })
    const { application } = await admin.showDevice('kiln-1')
    await admin.approveDevice('kiln-1', { spki: application?.spki ?? '' })
    t.match(await enroll(client, csr), { status: 200, device: 'kiln-1' })
    const plan = await admin.proposePlan({ action: 'hold', scope: { kind: 'batch', id: 'line-5' } })
    await admin.applyPlan(plan.id, plan.counts.devices)
    t.match(await enroll(client, (await newRequest('kiln-2')).csr), { status: 403, code: 'R-HELD' })
  })

  t.test('leaves its traces in the audit log, and on the CRL when it is cancelled', async (t) => {
    const { id, certificate } = await claimOf(service, { uses: 1, batch: 'line-6' })
    await admin.cancelToken(id)
    const entries = (await admin.listAudit({ limit: 1000 })).filter(({ subject }) => subject.includes(id))
    t.match(
      entries.map(({ action, by }) => [action, by]),
      [
        ['claim.create', 'operator:local'],
        ['claim.issue', 'operator:local'],
        ['claim.cancel', 'operator:local'],
      ],
    )
    const enrolled = (await admin.listAudit({ limit: 1000 })).filter(({ action }) => action === 'enroll')
    t.ok(enrolled.some(({ by }) => by.startsWith('claim:c-')))
    t.match(await admin.verifyAudit(), { ok: true })
    const serial = new X509Certificate(certificate).serialNumber.toLowerCase()
    const revoked = await service.deps.registry.revokedBy(service.deps.authority.device.id, 0)
    t.match(
      revoked.filter((entry) => entry.serial === serial),
      [{ reason: 'cessationOfOperation' }],
    )
  })

  t.test('is no text: the hash of its certificate opens nothing as a token', async (t) => {
    const claim = await claimOf(service, { uses: 1 })
    const hash = new X509Certificate(claim.certificate).fingerprint256.replaceAll(':', '').toLowerCase()
    const { csr } = await newRequest('press-30')
    for (const token of [hash, claim.id, claim.certificate.slice(0, 256)]) {
      const reply = await service.client().send('POST', '/v1/enroll', { json: { token, csr } })
      t.match(JSON.parse(reply.text), { status: 401, code: 'R-TOKEN-UNKNOWN' })
    }
  })
})
