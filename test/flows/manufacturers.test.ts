import { X509Certificate } from 'node:crypto'
import { once } from 'node:events'
import { writeFileSync } from 'node:fs'
import { type AddressInfo, createServer, connect as tcpConnect } from 'node:net'
import { join } from 'node:path'
import { connect as tlsConnect } from 'node:tls'
import t from 'tap'
import type { CertificateReply, Problem } from '#shared/api'
import { generateKey, readPrivateKey } from '#shared/pki/keys'
import { OID } from '#shared/pki/oid'
import { createCsr } from '#shared/pki/x509'
import {
  newRequest,
  operatorPair,
  type Pair,
  type RunningEnrollment,
  startEnrollment,
} from '../support/enrollment.ts'
import type { TestClient } from '../support/https.ts'
import { printable, testManufacturer, utf8 } from '../support/manufacturer.ts'
import { operatorOf } from '../support/operator.ts'

const EST = '/.well-known/est'
const acme = testManufacturer()

async function enroll(client: TestClient, csr: string) {
  const reply = await client.send('POST', '/v1/enroll', { json: { csr } })
  const body: Partial<CertificateReply & Problem> = JSON.parse(reply.text)
  return { status: reply.status, ...body }
}

function enrollOverEst(client: TestClient, der: Buffer, path: string) {
  const headers = { 'content-type': 'application/pkcs10' }
  return client.send('POST', `${EST}/${path}`, { headers, body: der.toString('base64') })
}

/** What a device gets with this certificate and a new key, on a connection of its own. */
async function tried(service: RunningEnrollment, pair: Pair, commonName?: string) {
  const client = service.client(pair)
  const { csr } = await newRequest(commonName)
  return enroll(client, csr)
}

t.test('devices that come with the certificate of their manufacturer', async (t) => {
  const clock = { offsetMs: 0 }
  const service = await startEnrollment(t, { clock })
  const { admin } = service
  const muster = operatorOf(t, service)
  const file = (name: string, text: string) => {
    writeFileSync(join(service.data, name), text)
    return join(service.data, name)
  }
  await admin.createBatch({ id: 'ovens', approval: true })
  await admin.createBatch({ id: 'lamps' })

  t.test('are those on its list, which is judged row by row before anything is written', async (t) => {
    const ca = file('acme.pem', acme.ca)
    t.match(await muster('manufacturer', 'add', 'acme', '--batch', 'none', '--ca', ca), { status: 3 })
    t.match(await muster('manufacturer', 'add', 'acme', '--batch', 'ovens', '--ca', ca), {
      status: 0,
      stdout: /^Manufacturer acme of batch ovens: CN=Acme device CA$/,
    })
    t.match(await muster('manufacturer', 'add', 'acme', '--batch', 'ovens', '--ca', ca), { status: 5 })
    const bad = file('bad.csv', 'serialNumber,id\nSN-1,oven-1\n SN-2,oven-2\nSN-1,oven-3\n,oven-4\nSN 5,\n')
    const judged = await muster('manufacturer', 'import', 'acme', bad, '--dry-run')
    t.equal(judged.status, 8)
    t.match(judged.stdout, /^1 +oven-1 +added/m)
    t.match(judged.stdout, /^2 +oven-2 +refused +Cannot use the serial number/m)
    t.match(judged.stdout, /^3 +oven-3 +refused +Cannot import it: row 1 has its id or number/m)
    t.match(judged.stdout, /^4 +oven-4 +refused +Cannot list it: it has no number/m)
    t.match(judged.stdout, /^5 +SN 5 +refused +Cannot use the device id "SN 5": give it one/m)
    t.match(await muster('manufacturer', 'import', 'acme', bad), { status: 5 })
    t.match(await admin.listManufacturers(), [{ id: 'acme', listed: 0, enrolled: 0, state: 'open' }])
    const good = file('good.csv', 'serialNumber,id\nSN-1,oven-1\nSN-2,\nSN-3,oven-3\nSN-4,oven-4\n')
    t.match(await muster('manufacturer', 'import', 'acme', good), { status: 0, stderr: /4 are written, 0/ })
    t.match(await muster('manufacturer', 'import', 'acme', good), { status: 0, stderr: /0 are written, 4/ })
    const pinned = acme.issue('SN-5')
    const json = JSON.stringify([
      { id: 'oven-5', serialNumber: 'SN-5', certificateSerial: pinned.certificateSerial.toUpperCase() },
      { id: 'oven-6', certificateSerial: '00:00:0a:bc' },
    ])
    t.match(await muster('manufacturer', 'import', 'acme', file('more.json', json)), { status: 0 })
    t.match((await muster('manufacturer', 'list', '--json')).stdout, /"listed":\s*6/)
    t.match(await muster('manufacturer', 'import', 'none', good), { status: 3 })
    t.match(
      await tried(service, acme.issue('SN-5')),
      { code: 'R-IDEVID-UNLISTED' },
      'both numbers are wanted',
    )
    t.match(await tried(service, pinned), { status: 200, device: 'oven-5' })
    const short = acme.issue('what it likes', { serial: Buffer.from('0abc', 'hex') })
    t.match(await tried(service, short), { status: 200, device: 'oven-6' })
  })

  t.test('get an identity that the list names, once, and a repeat with the same key is free', async (t) => {
    const idevid = acme.issue('SN-1')
    const client = service.client(idevid)
    const [one, other] = [await newRequest(), await newRequest('oven-1')]
    const foreign = await newRequest('oven-2')
    t.match(await enroll(client, foreign.csr), { status: 422, code: 'R-CSR-SUBJECT' })
    const first = await enroll(client, one.csr)
    t.match(first, { status: 200, device: 'oven-1' }, 'without approval, which the list stands for')
    const { subject, subjectAltName } = new X509Certificate(first.certificate ?? '')
    t.equal(subject, 'CN=oven-1')
    t.match(subjectAltName, /^URI:spiffe:\/\/muster\.local\/device\/oven-1$/)
    t.match(await enroll(client, one.csr), { status: 200, serial: first.serial })
    t.match(await enroll(client, other.csr), {
      status: 409,
      code: 'R-IDEVID-USED',
      evidence: { device: 'oven-1' },
    })
    const again = acme.issue('SN-1')
    t.match(await tried(service, again), { code: 'R-IDEVID-USED' }, 'nor with another certificate of it')
    const neighbour = acme.issue('SN-3')
    t.match(
      await enroll(service.client(neighbour), one.csr),
      { code: 'R-CSR-KEY' },
      'nor another device its key',
    )

    const est = await newRequest('SN-2')
    const over = service.client(acme.issue('SN-2'))
    t.equal((await enrollOverEst(over, est.der, 'lamps/simpleenroll')).status, 403, 'a list of another batch')
    t.equal((await enrollOverEst(over, est.der, 'ovens/simpleenroll')).status, 200)
    t.equal((await enrollOverEst(over, est.der, 'simpleenroll')).status, 200)
    t.match(await admin.showDevice('SN-2'), { state: 'active', batch: 'ovens' })
  })

  t.test('may keep the key that they were made with', async (t) => {
    const idevid = acme.issue('SN-4')
    const { pem } = await createCsr({ key: readPrivateKey(idevid.key) })
    t.match(await enroll(service.client(idevid, { tls12: true }), pem), { status: 200, device: 'oven-4' })
  })

  t.test('are refused by name when they are not what they say', async (t) => {
    const refusals = {
      'another CA with the same name': [testManufacturer().issue('SN-3'), 'R-UNKNOWN-CA'],
      'the name of the CA under another signature': [
        acme.issue('SN-3', { signedBy: generateKey() }),
        'R-UNKNOWN-CA',
      ],
      'another CA': [testManufacturer({ name: 'Other' }).issue('SN-3'), 'R-UNKNOWN-CA'],
      'the CA itself': [acme.pair, 'R-IDEVID'],
      'a CA below it': [acme.issue('SN-3', { isCa: true }), 'R-IDEVID'],
      'for servers': [acme.issue('SN-3', { purposes: [OID.serverAuth] }), 'R-IDEVID'],
      'two serial numbers': [
        acme.issue('', { serialNumbers: [printable('SN-3'), printable('SN-9')] }),
        'R-IDEVID',
      ],
      NUL: [acme.issue('', { serialNumbers: [utf8('SN-3\0')] }), 'R-IDEVID'],
      'another case': [acme.issue('sn-3'), 'R-IDEVID-UNLISTED'],
      'leading zeros': [acme.issue('SN-03'), 'R-IDEVID-UNLISTED'],
      'no number': [acme.issue('', { serialNumbers: [] }), 'R-IDEVID-UNLISTED'],
      'not listed': [acme.issue('SN-777'), 'R-IDEVID-UNLISTED'],
      expired: [acme.issue('SN-3', { notAfter: '250101000000Z' }), 'R-EXPIRED'],
      'not valid yet': [acme.issue('SN-3', { notBefore: '490101000000Z' }), 'R-NOTYET'],
    } as const
    for (const [name, [pair, code]] of Object.entries(refusals)) {
      t.match(await tried(service, pair), { code }, name)
    }
    t.match(await admin.showDevice('oven-3'), { state: 'expected' })
    const { token } = await admin.createToken({ batch: 'ovens', uses: 1 })
    const { csr } = await newRequest('oven-3')
    const reply = await service.client().send('POST', '/v1/enroll', { json: { token, csr } })
    t.match(JSON.parse(reply.text), {
      code: 'R-CSR-SUBJECT',
      detail: /certificate of its manufacturer "acme"/,
    })
  })

  t.test('enroll with it and do nothing else', async (t) => {
    const idevid = acme.issue('SN-1')
    const client = service.client(idevid)
    const { csr, der } = await newRequest('oven-1')
    const renewed = await client.send('POST', '/v1/renew', { json: { csr } })
    t.match(JSON.parse(renewed.text), { status: 401, code: 'R-UNKNOWN-CA' })
    const reenrolled = await enrollOverEst(client, der, 'simplereenroll')
    t.match(reenrolled.text, /^R-UNKNOWN-CA/)
    t.equal((await client.send('GET', '/v1/renewal')).status, 401)
    for (const pair of [idevid, acme.pair]) {
      const refused = await service.adminClient(pair).send('GET', '/v1/status')
      t.match(JSON.parse(refused.text), { status: 401, code: 'R-UNKNOWN-CA' })
    }
    const impostor = acme.issue('', { serialNumbers: [], purposes: [OID.clientAuth] })
    t.match(await service.client(impostor).send('GET', '/v1/renewal'), { status: 401 })
  })

  t.test('that were revoked or retired do not return by it', async (t) => {
    const idevid = acme.issue('SN-1')
    const plan = await admin.proposePlan({ action: 'revoke', devices: ['oven-1'], undoMs: 0 })
    await admin.applyPlan(plan.id, plan.counts.devices)
    await admin.receipt(plan.id, 0)
    while ((await admin.showPlan(plan.id)).state !== 'final') await new Promise(setImmediate)
    t.match(await tried(service, idevid), {
      status: 403,
      code: 'R-TOKEN-TOMBSTONE',
      evidence: { state: 'revoked' },
    })
    await admin.retireDevice('oven-4')
    t.match(await tried(service, acme.issue('SN-4')), { code: 'R-TOKEN-TOMBSTONE' })
    await admin.retireDevice('oven-3')
    t.match(
      await tried(service, acme.issue('SN-3')),
      { code: 'R-TOKEN-TOMBSTONE' },
      'also one that never came',
    )
  })

  t.test('have the CA named by TLS while it is trusted, without a restart', async (t) => {
    t.ok((await namedCas(service)).includes('Acme device CA'))
    const client = service.client(acme.issue('SN-2'))
    const repeat = await newRequest()
    t.match(await enroll(client, repeat.csr), { code: 'R-IDEVID-USED' })
    t.match(await muster('manufacturer', 'cancel', 'acme'), {
      status: 0,
      stdout: /acme of batch ovens is cancelled/,
    })
    t.notOk((await namedCas(service)).includes('Acme device CA'))
    t.match(
      await enroll(client, repeat.csr),
      { status: 401, code: 'R-TOKEN-CANCELLED' },
      'on an open connection',
    )
    t.match(await tried(service, acme.issue('SN-2')), { code: 'R-TOKEN-CANCELLED' }, 'and on a new one')
    t.match(await muster('manufacturer', 'cancel', 'none'), { status: 3 })
  })

  t.test('go to whichever list is open, and over-use and strangers are alarms', async (t) => {
    await admin.addManufacturer({
      id: 'acme-2',
      batch: 'lamps',
      ca: acme.ca,
      expiresAt: Date.now() + 3_600_000,
    })
    const rows = [
      { serialNumber: 'SN-100', id: 'lamp-1' },
      { serialNumber: 'SN-101', id: 'lamp-2' },
    ]
    t.match(await admin.listManufactured('acme-2', { rows }), { applied: true })
    await admin.addManufacturer({ id: 'acme-3', batch: 'ovens', ca: acme.ca })
    t.match(await admin.listManufactured('acme-3', { rows }), {
      applied: false,
      rows: [{ verdict: 'refused', reason: /numbers are those of "lamp-1"/ }, {}],
    })
    t.match(await tried(service, acme.issue('SN-100')), { status: 200, device: 'lamp-1' })
    t.match(await tried(service, acme.issue('SN-100')), { code: 'R-IDEVID-USED' })
    t.match(await tried(service, acme.issue('SN-999')), { code: 'R-IDEVID-UNLISTED' })
    clock.offsetMs = 3_600_000
    t.match(await tried(service, acme.issue('SN-101')), { code: 'R-TOKEN-EXPIRED' })
    clock.offsetMs = 0
    t.match(await admin.batchReport('lamps'), {
      manufacturers: { total: 1, open: 1 },
      uses: { total: 2, enrolled: 1, open: 1 },
      devices: { total: 2, expected: 1, enrolled: 1 },
      alarms: [{ code: 'R-IDEVID-USED' }, { code: 'R-TOKEN-EXPIRED', kind: 'manufacturer', token: 'acme-2' }],
    })
    t.match(
      (await muster('status')).stdout,
      /^ALARM +manufacturer acme-2: 1 attempt\(s\) refused with R-IDEVID-USED/m,
    )
    await admin.cancelManufacturer('acme-2')
    const open = { rows: [{ serialNumber: 'SN-101', id: 'lamp-2' }] }
    await t.rejects(admin.listManufactured('acme-2', open), { code: 'conflict' })
    await admin.addManufacturer({ id: 'acme-4', batch: 'lamps', ca: acme.ca })
    t.match(await admin.listManufactured('acme-4', open), { applied: true }, 'who has not come is taken over')
    t.match(await tried(service, acme.issue('SN-101')), { status: 200, device: 'lamp-2' })
    t.match(await admin.listManufactured('acme-4', { rows: [{ serialNumber: 'SN-100', id: 'lamp-1' }] }), {
      applied: false,
    })
  })

  t.test('are the same when their CA gets a new certificate for its key', async (t) => {
    const renewed = testManufacturer({ key: acme.key })
    t.not(renewed.ca, acme.ca)
    await admin.addManufacturer({ id: 'acme-5', batch: 'lamps', ca: renewed.ca })
    const row = { serialNumber: 'SN-200', id: 'lamp-3' }
    t.match(await admin.listManufactured('acme-5', { rows: [row] }), { applied: true })
    t.match(await tried(service, acme.issue('SN-200')), { status: 200, device: 'lamp-3' })
  })

  t.test('octets without sense are 400, or a refused row', async (t) => {
    const client = service.adminClient(operatorPair(service))
    const { csr } = await newRequest()
    const bodies: Record<string, unknown[]> = {
      '/v1/manufacturers': [
        {},
        { id: 'x' },
        { id: '../x', batch: 'lamps', ca: acme.ca },
        { id: 'x', batch: 'lamps', ca: 7 },
      ],
      '/v1/manufacturers/acme-5/devices': [
        {},
        { rows: [] },
        { rows: [7] },
        { rows: [{ serialNumber: 7 }] },
        { rows: [{ x: '' }] },
      ],
      '/v1/claims': [
        {},
        { batch: 'lamps', uses: 1 },
        { batch: 'lamps', uses: 0, csr },
        { batch: 'lamps', uses: 1, csr, x: 1 },
      ],
    }
    for (const [path, all] of Object.entries(bodies)) {
      for (const json of all) {
        t.equal(
          (await client.send('POST', path, { json })).status,
          400,
          `${path} ${JSON.stringify(json).slice(0, 60)}`,
        )
      }
    }
    const malformed = await client.send('POST', '/v1/claims', { json: { batch: 'lamps', uses: 1, csr: 'x' } })
    t.match(JSON.parse(malformed.text), { status: 400, code: 'R-CSR-MALFORMED' })
    const rows = [
      {},
      { id: 'lamp-9' },
      { serialNumber: '' },
      { serialNumber: 'a\0b' },
      { serialNumber: 'x'.repeat(65), id: 'lamp-9' },
      { serialNumber: 'SN-9', id: '../x' },
      { serialNumber: '__proto__' },
      { certificateSerial: 'zz', id: 'lamp-9' },
      { certificateSerial: '0'.repeat(41), id: 'lamp-9' },
      { certificateSerial: '7' },
      { certificateSerial: '', id: 'lamp-9' },
    ]
    const reply = await admin.listManufactured('acme-5', { rows })
    t.equal(reply.applied, false)
    t.strictSame(new Set(reply.rows.map(({ verdict }) => verdict)), new Set(['refused']))
    await t.rejects(admin.listManufactured('none', { rows }), { code: 'not_found' })
  })

  t.test('leave their traces in the audit log', async (t) => {
    const entries = await admin.listAudit({ limit: 1000 })
    const actions = entries.map(({ action }) => action)
    for (const action of ['manufacturer.create', 'manufacturer.list', 'manufacturer.cancel']) {
      t.ok(actions.includes(action), action)
    }
    t.ok(
      entries.some(
        ({ action, by, subject }) =>
          action === 'enroll' &&
          by === 'manufacturer:acme' &&
          /^device:oven-1 certificate:[0-9a-f]{32} idevid:[0-9a-f]{64}$/.test(subject),
      ),
    )
    t.match(await admin.verifyAudit(), { ok: true })
  })

  t.test('and a CA that could be taken for one of the plane, or is none, is not registered', async (t) => {
    const [first] = (await admin.showCas()).cas
    const bodies = [service.root, service.deps.authority.device.pem, first?.pem ?? '']
    for (const ca of bodies) {
      await t.rejects(admin.addManufacturer({ id: 'evil', batch: 'lamps', ca }), {
        code: /conflict|invalid_request/,
      })
    }
    const leaf = acme.issue('SN-1').certificate
    for (const ca of [
      leaf,
      'no PEM',
      `${acme.ca}${acme.ca}`,
      testManufacturer({ notAfter: '250101000000Z' }).ca,
    ]) {
      await t.rejects(admin.addManufacturer({ id: 'evil', batch: 'lamps', ca }), { code: 'invalid_request' })
    }
    t.notOk((await admin.listManufacturers()).some(({ id }) => id === 'evil'))
  })

  t.test('are told to wait when one certificate fails too often, and its neighbours are not', async (t) => {
    const { csr } = await newRequest()
    for (const pair of [testManufacturer().issue('SN-3'), acme.issue('SN-201')]) {
      const client = service.client(pair)
      for (let times = 0; times < 300; times++) {
        const { status } = await client.send('POST', '/v1/enroll', { json: { csr } })
        if (status !== 401 && status !== 403) t.fail(`the answer ${times} is ${status}`)
      }
      t.match(await enroll(client, csr), { status: 429, code: 'R-RATE' })
      t.match(await tried(service, acme.issue('SN-202')), { code: 'R-IDEVID-UNLISTED' })
    }
  })
})

/** What the listener says in its handshake of TLS 1.2, where the CAs that it asks for can be read (RFC 5246 section 7.4.4). */
async function namedCas(service: RunningEnrollment): Promise<string> {
  const seen: Buffer[] = []
  const relay = createServer((near) => {
    const far = tcpConnect(Number(new URL(service.whereabouts.enrollment).port), '127.0.0.1')
    for (const socket of [near, far]) socket.on('error', () => {}) // it is cut off below
    far.on('data', (chunk) => seen.push(chunk))
    near.pipe(far).pipe(near)
  })
  await once(relay.listen(0, '127.0.0.1'), 'listening')
  const { port } = relay.address() as AddressInfo // it listens on TCP
  const socket = tlsConnect({ port, host: 'localhost', ca: service.root, maxVersion: 'TLSv1.2' })
  await once(socket, 'secureConnect')
  socket.destroy()
  relay.close()
  await once(relay, 'close')
  return Buffer.concat(seen).toString('latin1')
}
