import { writeFileSync } from 'node:fs'
import { join } from 'node:path'
import t from 'tap'
import type { CertificateReply, Problem } from '#shared/api'
import { readPrivateKey, sha256Hex, spkiDer } from '#shared/pki/keys'
import { newRequest, operatorPair, type RunningEnrollment, startEnrollment } from '../support/enrollment.ts'
import { operatorOf } from '../support/operator.ts'

async function enroll(service: RunningEnrollment, request: { token: string; csr: string }) {
  const reply = await service.client().send('POST', '/v1/enroll', { json: request })
  const body: Partial<CertificateReply & Problem> = JSON.parse(reply.text)
  return { status: reply.status, ...body }
}

const runOperator = (service: RunningEnrollment, words: readonly string[]) => operatorOf(t, service)(...words)

const spkiOf = (request: { key: string }) => sha256Hex(spkiDer(readPrivateKey(request.key)))

t.test('devices that a manifest announces', async (t) => {
  const service = await startEnrollment(t)
  const { admin } = service
  const directory = service.data
  const muster = (...words: string[]) => runOperator(service, words)
  const file = (name: string, text: string) => {
    writeFileSync(join(directory, name), text)
    return join(directory, name)
  }
  await admin.createBatch({ id: 'line-1', approval: true })
  const request = await newRequest('oven-1')

  t.test('are judged row by row before anything is written', async (t) => {
    const text = `id,spki,colour\noven-1,${spkiOf(request)},red\n../x,,\nconstructor,,\noven-2,zz,\noven-1,,\noven-3,,"a\tb"\n`
    const manifest = file('bad.csv', text)
    const tried = await muster('device', 'import', manifest, '--batch', 'line-1', '--dry-run')
    t.equal(tried.status, 8)
    t.match(tried.stdout, /^1 +oven-1 +added/m)
    t.match(tried.stdout, /^2 +\.\.\/x +refused +Cannot use the device id/m)
    t.match(tried.stderr, /1 would be added, 0 are known, 5 refused; nothing was written/)
    const refused = await muster('device', 'import', manifest, '--batch', 'line-1', '--json')
    t.equal(refused.status, 5)
    t.match(JSON.parse(refused.stdout), {
      schemaVersion: 1,
      batch: 'line-1',
      added: 1,
      refused: 5,
      written: 0,
    })
    t.strictSame((await admin.listDevices()).devices, [])
    t.match(await muster('device', 'import', manifest, '--batch', 'none'), { status: 3 })
    t.match(await muster('device', 'import', join(directory, 'none'), '--batch', 'line-1'), { status: 2 })
    t.match(await muster('device', 'import', file('torn.csv', 'id\n"a'), '--batch', 'line-1'), {
      status: 2,
      stderr: /line 2/,
    })
  })

  t.test('are in at once, in slices, and again they are known', async (t) => {
    const others = Array.from({ length: 600 }, (_, at) => `many-${at},,\n`).join('')
    const manifest = file('good.csv', `id,spki,colour\noven-1,${spkiOf(request)},red\n${others}`)
    const done = await muster('device', 'import', manifest, '--batch', 'line-1', '--json')
    t.equal(done.status, 0)
    t.match(JSON.parse(done.stdout), { added: 601, known: 0, refused: 0, written: 601 })
    t.strictSame(
      JSON.parse(done.stdout).rows.map(({ row }: { row: number }) => row),
      Array.from({ length: 601 }, (_, at) => at + 1),
      'rows keep their numbers across slices',
    )
    t.match(await muster('device', 'import', manifest, '--batch', 'line-1'), {
      status: 0,
      stderr: /0 are written, 601/,
    })
    t.match((await muster('device', 'show', 'oven-1')).stdout, /colour +red/)
    const { token } = await admin.createToken({ batch: 'line-1', uses: 5 })
    const other = await newRequest('oven-1')
    t.match(await enroll(service, { token, csr: other.csr }), { status: 422, code: 'R-CSR-KEY' })
    t.match(await enroll(service, { token, csr: request.csr }), { status: 200, device: 'oven-1' })
  })

  t.test('and the report of the batch adds up, with attempts on what is spent', async (t) => {
    const { token, id } = await admin.createToken({ batch: 'line-2', uses: 1 })
    const [first, second] = [await newRequest('lamp-1'), await newRequest('lamp-2')]
    t.match(await enroll(service, { token, csr: first.csr }), { status: 200 })
    t.match(await enroll(service, { token, csr: first.csr }), { status: 200 }, 'a repeat is no attempt')
    for (let times = 0; times < 3; times++) {
      t.match(await enroll(service, { token, csr: second.csr }), { code: 'R-TOKEN-SPENT' })
    }
    const told = await muster('batch', 'report', 'line-2')
    t.equal(told.status, 0)
    t.match(told.stdout, /^Uses +1 = 1 enrolled \+ 0 reserved \+ 0 open \+ 0 expired \+ 0 cancelled$/m)
    t.match(told.stdout, /^Devices +1 = 0 expected \+ 0 pending \+ 1 enrolled \+ 0 retired$/m)
    t.match(told.stdout, new RegExp(`^${id} +token +R-TOKEN-SPENT +3 +\\d+`, 'm'))
    t.match(told.stderr, /a token that is over/)
    const report = JSON.parse((await muster('batch', 'report', 'line-2', '--json')).stdout)
    t.match(report, { schemaVersion: 1, alarms: [{ token: id, attempts: 3 }] })
    t.match(await muster('batch', 'report', 'none'), { status: 3 })
    await t.rejects(admin.batchReport('\0'), { code: 'not_found' })
  })

  t.test('octets without sense are 400, or a refused row', async (t) => {
    const rows = [{ id: 'oven-9' }]
    const bodies = [
      {},
      { batch: 'line-1' },
      { batch: 'line-1', rows: [] },
      { batch: 'line-1', rows: {} },
      { batch: 'line-1', rows: [null] },
      { batch: 'line-1', rows: [{ id: 7 }] },
      { batch: 'line-1', rows: [{ id: 'a'.repeat(300) }] },
      { batch: 'line-1', rows: [{ id: 'oven-9', attributes: { a: 7 } }] },
      { batch: 'line-1', rows: [{ id: 'oven-9', more: 1 }] },
      { batch: 'line-1', rows: Array.from({ length: 501 }, () => rows[0]) },
      { batch: '../x', rows },
      { batch: 'line-1', rows, dryRun: 'no' },
    ]
    const client = service.adminClient(operatorPair(service))
    for (const json of bodies) {
      t.equal(
        (await client.send('POST', '/v1/devices/import', { json })).status,
        400,
        JSON.stringify(json).slice(0, 90),
      )
    }
    const odd = [
      { id: '' },
      { id: '\0' },
      { id: '__proto__' },
      { id: 'oven-9', spki: 'A'.repeat(64) },
      { id: 'oven-9', attributes: { 'a b': 'x' } },
      { id: 'oven-9', attributes: { a: '\u001b[2J' } },
      { id: 'oven-9', attributes: { a: 'x'.repeat(257) } },
      {
        id: 'oven-9',
        attributes: Object.fromEntries(Array.from({ length: 17 }, (_, at) => [`a${at}`, 'x'])),
      },
    ]
    const reply = await admin.importDevices({ batch: 'line-1', rows: [...odd, ...rows] })
    t.equal(reply.applied, false)
    t.strictSame(
      reply.rows.map(({ verdict }) => verdict),
      [...odd.map(() => 'refused'), 'added'],
    )
    await t.rejects(admin.showDevice('oven-9'), { code: 'not_found' })
  })
})
