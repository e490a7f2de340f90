import { X509Certificate } from 'node:crypto'
import t from 'tap'
import type { CertificateReply, PendingReply, Problem } from '#shared/api'
import { readPrivateKey, sha256Hex, spkiDer } from '#shared/pki/keys'
import { run as runCli } from '../../operator/cli.ts'
import type { Terminal } from '../../operator/terminal.ts'
import { newRequest, type RunningEnrollment, startEnrollment } from '../support/enrollment.ts'

async function enroll(service: RunningEnrollment, request: { token: string; csr: string }) {
  const reply = await service.client().send('POST', '/v1/enroll', { json: request })
  const body: Partial<CertificateReply & PendingReply & Problem> = JSON.parse(reply.text)
  return { status: reply.status, headers: reply.headers, ...body }
}

/** `muster <words>` on the profile of the service; at its terminal sits somebody who answers `answer`, or nobody. */
async function muster(service: RunningEnrollment, words: string, answer?: string) {
  const [stdout, stderr]: [string[], string[]] = [[], []]
  const terminal: Terminal = {
    out: (text) => void stdout.push(text),
    err: (text) => void stderr.push(text),
    canAsk: answer !== undefined,
    isScreen: false,
    ask: async () => answer ?? '',
    paint: (_, text) => text,
  }
  const other = async () => t.fail(`${words} is not a command of the operator`)
  const programs = { enrollment: other, broker: other, sim: other, bench: other, bin: '', terminal }
  const profile = ['--profile', service.whereabouts.operatorProfile]
  const status = await runCli([...words.split(' '), ...profile], programs)
  return { status, stdout: stdout.join('\n'), stderr: stderr.join('\n') }
}

const spkiOf = (request: { key: string }) => sha256Hex(spkiDer(readPrivateKey(request.key)))

t.test('devices that an operator approves', async (t) => {
  const service = await startEnrollment(t)
  const { admin } = service
  t.equal((await muster(service, 'batch create line-1 --approval')).status, 0)
  const { token, id: tokenId } = await admin.createToken({ batch: 'line-1', uses: 3 })
  const used = async () => (await admin.listTokens('line-1')).find(({ id }) => id === tokenId)?.used

  t.test('JSON: 202 until it is approved, and then the certificate', async (t) => {
    const request = await newRequest('oven-1')
    const spki = spkiOf(request)
    const asked = await enroll(service, { token, csr: request.csr })
    t.match(asked, { status: 202, state: 'pending', device: 'oven-1', spki, retryAfterS: 30 })
    t.equal(asked.headers['retry-after'], '30')
    t.match(await admin.explain('oven-1'), { verdict: 'refused', code: 'R-PENDING' })

    const listed = await muster(service, 'device list --state pending')
    t.match(listed.stdout, new RegExp(`oven-1 +default +line-1 +${spki} +\\d+ ms ago`))
    t.match((await muster(service, 'device show oven-1')).stdout, spki)
    t.match((await muster(service, 'status')).stdout, '1 pending')

    t.match(await muster(service, 'device approve oven-1'), { status: 2, stderr: new RegExp(spki) })
    t.match(await muster(service, 'device approve oven-1 --spki 00000000'), { status: 5 }, 'another key')
    t.match(await muster(service, `device approve oven-1 --spki ${spki.slice(0, 7)}`), { status: 2 })
    const shown = `${spki.slice(0, 2)}:${spki.slice(2, 4)}:${spki.slice(4, 8)}`.toUpperCase()
    t.match(await muster(service, `device approve oven-1 --json --spki ${shown}`), { status: 0 })
    const issued = await enroll(service, { token, csr: request.csr })
    t.match(issued, { status: 200, device: 'oven-1' })
    t.equal(new X509Certificate(issued.certificate ?? '').subject, 'CN=oven-1')
    t.equal(await used(), 1)
  })

  t.test('EST: 202 with Retry-After in the case that libest compares', async (t) => {
    const { der } = await newRequest('oven-2')
    const authorization = `Basic ${Buffer.from(`:${token}`).toString('base64')}`
    const headers = { authorization, 'content-type': 'application/pkcs10' }
    const send = () =>
      service.client().send('POST', '/.well-known/est/line-1/simpleenroll', {
        headers,
        body: der.toString('base64'),
      })
    const asked = await send()
    t.match(asked, { status: 202, text: /^R-PENDING: "oven-2" waits/ })
    t.equal(asked.rawHeaders['Retry-After'], '30')
    t.match(await muster(service, 'device approve oven-2', 'zzzzzzzz'), { status: 5 }, 'typed wrong')
    const spki = (await admin.showDevice('oven-2')).application?.spki ?? ''
    t.match(await muster(service, 'device approve oven-2', spki.slice(0, 8)), { status: 0 })
    t.equal((await send()).status, 200)
  })

  t.test('proof of possession is checked each time', async (t) => {
    const request = await newRequest('oven-3')
    t.equal((await enroll(service, { token, csr: request.csr })).status, 202)
    const forged = Buffer.from(request.der)
    forged[forged.length - 1] = (forged.at(-1) ?? 0) ^ 1
    const csr = forged.toString('base64')
    t.match(await enroll(service, { token, csr }), { status: 422, code: 'R-CSR-POP' }, 'while it waits')
    t.match(await muster(service, 'device approve oven-3 --yes'), { status: 0 })
    t.match(await enroll(service, { token, csr }), { status: 422, code: 'R-CSR-POP' }, 'and afterwards')
    t.equal((await enroll(service, { token, csr: request.csr })).status, 200)
  })

  t.test('rejected, the token has its use back, and who asks again is told so', async (t) => {
    await admin.createToken({ batch: 'line-2', uses: 1, approval: true })
    const made = await admin.createToken({ batch: 'line-2', uses: 1, approval: true })
    const request = await newRequest('oven-4')
    t.equal((await enroll(service, { token: made.token, csr: request.csr })).status, 202)
    t.match(await muster(service, 'device reject oven-4 --yes'), { status: 0 })
    t.match(await enroll(service, { token: made.token, csr: request.csr }), {
      status: 403,
      code: 'R-REJECTED',
      evidence: { key: spkiOf(request) },
    })
    t.match(await muster(service, 'device reject oven-4 --yes'), { status: 3 }, 'it is gone')
    const open = (await admin.listTokens('line-2')).map(({ state }) => state)
    t.strictSame(open, ['open', 'open'])
  })

  t.test('waiting is no failure: a fleet that asks again and again is not told off', async (t) => {
    const { csr } = await newRequest('oven-5')
    const made = await admin.createToken({ batch: 'line-1', uses: 1 })
    const client = service.client()
    const replies = await Promise.all(
      Array.from({ length: 320 }, () =>
        client.send('POST', '/v1/enroll', { json: { token: made.token, csr } }),
      ),
    )
    t.ok(replies.every(({ status }) => status === 202))
    t.strictSame((await admin.showDevice('oven-5')).refusals, [], 'nor remembered as refusals')
  })

  t.test('a device that was added enrolls at once, with its key alone', async (t) => {
    const request = await newRequest('oven-6')
    const added = `device add oven-6 --batch line-1 --spki ${spkiOf(request)}`
    t.match(await muster(service, added), { status: 0, stdout: /oven-6/ })
    t.match(await muster(service, added), { status: 5 })
    t.match(await muster(service, 'device add oven-7 --batch line-1 --spki junk'), { status: 2 })
    t.match(await muster(service, 'device add constructor --batch line-1'), { status: 2 })
    t.match(await muster(service, 'device add oven-7 --batch none'), { status: 3 })
    const made = await admin.createToken({ batch: 'line-1', uses: 2 })
    const other = await newRequest('oven-6')
    t.match(await enroll(service, { token: made.token, csr: other.csr }), { status: 422, code: 'R-CSR-KEY' })
    t.match(await enroll(service, { token: made.token, csr: request.csr }), { status: 200 })
  })

  t.test('octets without sense in a decision are 400', async (t) => {
    for (const spki of ['', 'A'.repeat(64), '0'.repeat(63), '0'.repeat(65), '%00', 7, null]) {
      const body = { spki } as { spki: string } // wrong on purpose
      await t.rejects(admin.approveDevice('oven-1', body), { code: 'invalid_request' })
    }
    await t.rejects(admin.approveDevice('\0', { spki: '0'.repeat(64) }), { code: 'not_found' })
  })
})
