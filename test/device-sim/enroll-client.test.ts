import { once } from 'node:events'
import { createServer } from 'node:https'
import type { AddressInfo } from 'node:net'
import type { TLSSocket } from 'node:tls'
import t, { type Test } from 'tap'
import { generateKey } from '#shared/pki/keys'
import { seededRandom } from '../../device-sim/backoff.ts'
import { type Clock, systemClock } from '../../device-sim/clock.ts'
import { DeviceTime } from '../../device-sim/device-time.ts'
import { openEnrollClient } from '../../device-sim/enroll-client.ts'
import { keySigner } from '../../enrollment/ca/signer.ts'
import { type TestIdentity, testAuthority, testIdentity } from '../support/pki.ts'

const authority = await testAuthority()
t.teardown(() => authority.remove())
const server = await testIdentity(authority, 'enrollment', { kind: 'server' })
const lamp = await testIdentity(authority, 'lamp')
const roots = authority.rootPem

/** What a device believes whose clock says this. */
function believing(clock: Clock = systemClock, certificates = () => roots) {
  return { roots, time: new DeviceTime({ clock, certificates }) }
}

const trust = believing()

type Answer = { status: number; body: unknown; headers?: Record<string, string> }

/** An enrollment service that gives the answers one after the other, and notes who asked what. */
async function startService(
  t: Test,
  answers: Answer[],
  as: Pick<TestIdentity, 'keyPem' | 'chainPem'> = server,
) {
  const asked: { path: string; body: unknown; subject: string }[] = []
  const options = {
    key: as.keyPem,
    cert: as.chainPem,
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
      body: chunks.length > 0 ? JSON.parse(Buffer.concat(chunks).toString()) : null,
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
  const reply = await openClient(service.url, clock).enroll({ trust, token: 'mst_x', csr: 'csr' })
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
  await openClient(service.url, systemClock).renew({ trust, pair, csr: 'csr' })
  t.match(service.asked, [{ path: '/v1/renew', body: { csr: 'csr' }, subject: 'lamp' }])
})

t.test('a refusal is final', async (t) => {
  const service = await startService(t, [
    { status: 401, body: { code: 'R-TOKEN-SPENT', detail: 'spent' } },
    DONE,
  ])
  const { clock, waits } = notedWaits()
  await t.rejects(openClient(service.url, clock).enroll({ trust, token: 'mst_x', csr: 'csr' }), {
    code: 'token_spent',
  })
  t.strictSame(waits, [])
})

t.test('patience ends, and so does a device that is stopped', async (t) => {
  const { clock, waits } = notedWaits()
  const client = openClient('https://127.0.0.1:1', clock)
  await t.rejects(client.enroll({ trust, token: 'mst_x', csr: 'csr' }), { code: 'unreachable' })
  t.ok(waits.length > 3)
  const stopped = openClient('https://127.0.0.1:1', systemClock, AbortSignal.abort())
  await t.rejects(stopped.enroll({ trust, token: 'mst_x', csr: 'csr' }), { code: 'unreachable' })
})

const DAY_MS = 86_400_000
const BUNDLE: Answer = { status: 200, body: {} }

/** A machine whose clock says this at its start. */
function clockAt(startedAt: number): Clock {
  const began = systemClock.now()
  return { now: () => startedAt + systemClock.now() - began, wait: systemClock.wait }
}

const isNow = (at: number) => Math.abs(at - Date.now()) < 60_000

for (const [name, startedAt] of [
  ['1970', 0],
  ['ten years ahead', Date.now() + 3_650 * DAY_MS],
  ['a year behind', Date.now() - 365 * DAY_MS],
] as const) {
  t.test(`a device whose clock is at ${name} learns the time, and only then shows its token`, async (t) => {
    const service = await startService(t, [BUNDLE, DONE])
    const device = believing(clockAt(startedAt), () => '') // its certificates would tell too much here: they are new
    t.notOk(device.time.isKnown || isNow(device.time.now()))
    await openClient(service.url, systemClock).enroll({ trust: device, token: 'mst_x', csr: 'csr' })
    t.strictSame(
      service.asked.map(({ path }) => path),
      ['/v1/ca', '/v1/enroll'],
    )
    t.ok(device.time.isKnown && isNow(device.time.now()))
  })
}

t.test('every answer tells the time to a device whose clock is wrong by less', async (t) => {
  const service = await startService(t, [DONE])
  const device = believing(clockAt(Date.now() + 3 * DAY_MS))
  await openClient(service.url, systemClock).enroll({ trust: device, token: 'mst_x', csr: 'csr' })
  t.equal(service.asked.length, 1)
  t.ok(isNow(device.time.now()))
})

t.test('nobody tells a device the time who is not its enrollment service', async (t) => {
  const before = Date.now() - 900 * DAY_MS
  const ended = { notBefore: before, notAfter: before + DAY_MS }
  const other = await testAuthority({ now: before })
  t.teardown(() => other.remove())
  const old = await testAuthority({ now: before })
  t.teardown(() => old.remove())
  const trust = (clock: Clock) => ({
    roots: old.rootPem,
    time: new DeviceTime({ clock, certificates: () => old.rootPem }),
  })
  const hostile = {
    'below another root': await testIdentity(other, 'enrollment', { kind: 'server', ...ended }),
    'with another name': await testIdentity(old, 'enrollment', {
      kind: 'server',
      ...ended,
      hosts: ['x.test'],
    }),
    'with the certificate of a device': await testIdentity(old, 'lamp', ended),
    'that has signed for itself': await testIdentity(
      { ...old, infrastructure: { ...old.infrastructure, signer: keySigner(generateKey()) } },
      'enrollment',
      { kind: 'server', ...ended },
    ),
  }
  const forger = await testIdentity(old, 'forger', ended)
  const forged = await issuedBy(forger, ended)
  const refuses = async (who: string, of: { as: TestIdentity; date?: number }) => {
    const headers = { date: new Date(of.date ?? before + DAY_MS / 2).toUTCString() }
    const service = await startService(t, [{ ...BUNDLE, headers }], of.as)
    const device = trust(clockAt(0))
    await t.rejects(openClient(service.url, systemClock).time(device), { code: 'unreachable' }, who)
    t.notOk(device.time.isKnown, who)
  }
  for (const [who, as] of Object.entries({ ...hostile, 'that a device has issued': forged })) {
    await refuses(who, { as })
  }
  const as = await testIdentity(old, 'enrollment', { kind: 'server', ...ended })
  await refuses('with a certificate that has ended', { as, date: Date.now() })
})

/** As a server, with a certificate that a device has signed with its own key. */
async function issuedBy(
  forger: TestIdentity,
  dates: { notBefore: number; notAfter: number },
): Promise<TestIdentity> {
  const issuer = { id: forger.issuer, pem: forger.chainPem, der: forger.der, notAfter: dates.notAfter }
  const signer = keySigner(forger.key)
  const asCa = { ...authority, infrastructure: { ...authority.infrastructure, ...issuer, signer } }
  return await testIdentity(asCa, 'enrollment', { kind: 'server', ...dates })
}

t.test('the key of a server of long ago takes no device behind its newest certificate', async (t) => {
  const then = Date.now() - 900 * DAY_MS
  const old = await testAuthority({ now: then })
  t.teardown(() => old.remove())
  const stolen = await testIdentity(old, 'enrollment', {
    ...({ kind: 'server', notBefore: then, notAfter: then + 30 * DAY_MS } as const),
  })
  const lied = { ...BUNDLE, headers: { date: new Date(then + DAY_MS).toUTCString() } }
  const service = await startService(t, [lied, lied], stolen)
  const own = await testIdentity(old, 'lamp', { notBefore: then + 3 * DAY_MS, notAfter: then + 33 * DAY_MS })
  const time = (pem: string) => new DeviceTime({ clock: clockAt(0), certificates: () => old.rootPem + pem })
  const renewed = { roots: old.rootPem, time: time(own.chainPem) }
  const client = openClient(service.url, systemClock)
  await t.rejects(client.time(renewed), {
    code: 'unreachable',
    message: /has a certificate of .*set the clock/,
  })
  t.ok(renewed.time.now() >= own.notBefore)
  const fresh = { roots: old.rootPem, time: time('') }
  await client.time(fresh)
  t.ok(fresh.time.now() < own.notBefore, 'one that has never enrolled believes it: so the threat model says')
})

t.test('an answer without a date, or with one that cannot be, tells no time', async (t) => {
  const headers = [
    { date: 'now' },
    { date: 'Thu, 01 Jan 1970 00:00:00 GMT' },
    { date: new Date(9e14).toUTCString() },
  ]
  const service = await startService(
    t,
    headers.map((each) => ({ ...BUNDLE, headers: each })),
  )
  const client = openClient(service.url, systemClock)
  for (const _ of headers) {
    const device = believing(clockAt(0))
    await t.rejects(client.time(device), { code: 'unreachable', message: /Cannot take the time/ })
    t.notOk(device.time.isKnown)
  }
})
