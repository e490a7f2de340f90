import { once } from 'node:events'
import { createServer } from 'node:https'
import type { AddressInfo } from 'node:net'
import type { TLSSocket } from 'node:tls'
import t, { type Test } from 'tap'
import { seededRandom } from '../../device-sim/backoff.ts'
import { type Clock, systemClock } from '../../device-sim/clock.ts'
import { openEnrollClient } from '../../device-sim/enroll-client.ts'
import { testAuthority, testIdentity } from '../support/pki.ts'

const authority = await testAuthority()
t.teardown(() => authority.remove())
const server = await testIdentity(authority, 'enrollment', { kind: 'server' })
const lamp = await testIdentity(authority, 'lamp')
const ca = authority.rootPem

type Answer = { status: number; body: unknown; headers?: Record<string, string> }

/** An enrollment service that gives the answers one after the other, and notes who asked what. */
async function startService(t: Test, answers: Answer[]) {
  const asked: { path: string; body: unknown; subject: string }[] = []
  const options = {
    key: server.keyPem,
    cert: server.chainPem,
    ca: authority.device.pem,
    requestCert: true,
    rejectUnauthorized: false,
  }
  const https = createServer(options, async (request, response) => {
    const chunks: Buffer[] = []
    for await (const chunk of request) chunks.push(chunk)
    const peer = (request.socket as TLSSocket).getPeerCertificate() // an https server has no other sockets
    asked.push({
      path: request.url ?? '',
      body: JSON.parse(Buffer.concat(chunks).toString()),
      subject: String(peer.subject?.CN),
    })
    const answer = answers.shift() ?? { status: 500, body: {} }
    response
      .writeHead(answer.status, { 'content-type': 'application/json', ...answer.headers })
      .end(JSON.stringify(answer.body))
  })
  https.listen(0, '127.0.0.1')
  await once(https, 'listening')
  t.teardown(() => https.close())
  const { port } = https.address() as AddressInfo // it listens on TCP
  return { asked, url: `https://127.0.0.1:${port}` }
}

/** Waits nobody waits for: they are noted instead. */
function notedWaits(): { clock: Clock; waits: number[] } {
  const waits: number[] = []
  let skipped = 0
  const clock: Clock = {
    now: () => systemClock.now() + skipped,
    wait: async (ms) => {
      waits.push(ms)
      skipped += ms
    },
  }
  return { clock, waits }
}

function openClient(url: string, clock: Clock, signal = new AbortController().signal) {
  return openEnrollClient({
    url,
    clock,
    random: seededRandom('test'),
    signal,
    patienceMs: 60_000,
  })
}

const BUSY: Answer = {
  status: 503,
  body: { code: 'unavailable', detail: 'busy' },
  headers: { 'retry-after': '7' },
}
const DONE: Answer = {
  status: 200,
  body: { device: 'lamp', serial: 's', notAfter: 1, certificate: 'c', chain: [] },
}

t.test('a device that is told to come back later waits that long, and asks the same again', async (t) => {
  const service = await startService(t, [BUSY, BUSY, DONE])
  const { clock, waits } = notedWaits()
  const reply = await openClient(service.url, clock).enroll({ ca, token: 'mst_x', csr: 'csr' })
  t.match(reply, { device: 'lamp' })
  t.equal(waits.length, 2)
  t.ok(waits.every((ms) => ms >= 7_000 && ms < 8_000))
  t.strictSame(
    service.asked.map(({ path, body }) => ({ path, body })),
    Array.from({ length: 3 }, () => ({ path: '/v1/enroll', body: { token: 'mst_x', csr: 'csr' } })),
  )
})

t.test('a renewal is asked for with the certificate that is to be renewed', async (t) => {
  const service = await startService(t, [DONE])
  const pair = { number: 1, directory: '', key: lamp.keyPem, certificate: lamp.chainPem }
  await openClient(service.url, systemClock).renew({ ca, pair, csr: 'csr' })
  t.match(service.asked, [{ path: '/v1/renew', body: { csr: 'csr' }, subject: 'lamp' }])
})

t.test('a refusal is final', async (t) => {
  const service = await startService(t, [
    { status: 401, body: { code: 'R-TOKEN-SPENT', detail: 'spent' } },
    DONE,
  ])
  const { clock, waits } = notedWaits()
  await t.rejects(openClient(service.url, clock).enroll({ ca, token: 'mst_x', csr: 'csr' }), {
    code: 'token_spent',
  })
  t.strictSame(waits, [])
})

t.test('patience ends, and so does a device that is stopped', async (t) => {
  const { clock, waits } = notedWaits()
  const client = openClient('https://127.0.0.1:1', clock)
  await t.rejects(client.enroll({ ca, token: 'mst_x', csr: 'csr' }), { code: 'unreachable' })
  t.ok(waits.length > 3)
  const stopped = openClient('https://127.0.0.1:1', systemClock, AbortSignal.abort())
  await t.rejects(stopped.enroll({ ca, token: 'mst_x', csr: 'csr' }), { code: 'unreachable' })
})
