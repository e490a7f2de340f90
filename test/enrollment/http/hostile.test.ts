import { randomBytes } from 'node:crypto'
import { connect, type Socket } from 'node:net'
import { type ConnectionOptions, connect as connectTls } from 'node:tls'
import t from 'tap'
import { openLog } from '#shared/log'
import { newToken } from '#shared/token'
import { createLimits, type Limits } from '../../../enrollment/http/limits.ts'
import { LIMITS, openListener } from '../../../enrollment/http/server.ts'
import {
  enrollDevice,
  newRequest,
  type RunningEnrollment,
  startEnrollment,
} from '../../support/enrollment.ts'
import { testAuthority, testIdentity } from '../../support/pki.ts'
import fc from '../../support/properties.ts'

const JSON_TYPE = { 'content-type': 'application/json' }

/** Sends octets over TLS and returns everything that comes back until the server closes. */
async function converse(service: RunningEnrollment, octets: string | Buffer): Promise<string> {
  const { enrollment } = service.config.ports
  const socket = connectTls({ port: enrollment, host: '127.0.0.1', ca: service.root })
  socket.on('error', () => {}) // a reset is an answer, too
  socket.write(octets)
  return everythingFrom(socket)
}

async function everythingFrom(socket: Socket): Promise<string> {
  const chunks: Buffer[] = []
  let isLate = false
  const deadline = setTimeout(() => {
    isLate = true
    socket.destroy()
  }, 8_000)
  try {
    for await (const chunk of socket) chunks.push(chunk)
  } catch {
    // reset by the server, or late
  }
  clearTimeout(deadline)
  if (isLate) throw new Error('the server left the connection open')
  return Buffer.concat(chunks).toString('latin1')
}

t.test('hostile requests', async (t) => {
  const service = await startEnrollment(t)
  const client = service.client()
  const { csr } = await newRequest('probe-1')

  t.test('a time or a duration beyond all sense is refused by name', async (t) => {
    const { admin } = service
    const tooFar = 253_402_300_799_001
    const asked: Record<string, () => Promise<unknown>> = {
      '/expiresAt of a token': () => admin.createToken({ batch: 'far', uses: 1, expiresAt: tooFar }),
      '/expiresAt of an invitation': () => admin.inviteBroker({ id: 'far', expiresAt: tooFar }),
      '/expiresAt of an API token': () => admin.createApiToken({ name: 'far', expiresAt: 1e300 }),
      '/expiresAt of a reissue': () => admin.reissueDevice('far', { expiresAt: tooFar }),
      '/lifetimeMs of a fleet': () => admin.createFleet({ id: 'far', lifetimeMs: 3_155_760_000_001 }),
      '/lifetimeMs of a profile': () => admin.setProfile('default', { lifetimeMs: 3_155_760_000_001 }),
      '/graceMs of a profile': () => admin.setProfile('default', { graceMs: 31_557_600_001 }),
      '/undoMs of a plan': () =>
        admin.proposePlan({ action: 'revoke', devices: ['far'], undoMs: 30 * 86_400_000 + 1 }),
      '/overMs of a rotation': () => admin.beginRotation({ devices: ['far'], overMs: 31_536_000_001 }),
      '/lifetimeMs of a rollover': () => admin.startRollover({ lifetimeMs: 1e15 }),
    }
    for (const [what, ask] of Object.entries(asked)) {
      const [field] = what.split(' ')
      await t.rejects(
        ask(),
        { code: 'invalid_request', message: new RegExp(`${field} must be <= \\d+$`) },
        what,
      )
    }
    await admin.createToken({ batch: 'near', uses: 1, expiresAt: tooFar - 1 })
  })

  t.test('octets that are no HTTP end the connection and nothing else', async (t) => {
    const wrong: Record<string, string | Buffer> = {
      'random octets': randomBytes(2_000),
      'another protocol': '\x10\x0e\x00\x04MQTT\x04\x02\x00<\x00\x02ab',
      'no version': 'GET /\r\n\r\n',
      'a method of its own': 'STEAL /v1/ca HTTP/1.1\r\nHost: x\r\n\r\n',
      'two lengths':
        'POST /v1/enroll HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\nContent-Length: 3\r\n\r\n{}',
      'length and chunks':
        'POST /v1/enroll HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n',
      'a wrong chunk': 'POST /v1/enroll HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n',
      'a header without end': `GET / HTTP/1.1\r\nX: ${'a'.repeat(20_000)}`,
      'NUL in a header': 'GET / HTTP/1.1\r\nHost: x\r\nX: a\0b\r\n\r\n',
      'no host': 'GET /v1/ca HTTP/1.1\r\n\r\n',
    }
    for (const [name, octets] of Object.entries(wrong)) {
      t.match(await converse(service, octets), /^$|^HTTP\/1\.1 4\d\d /, name)
    }
    t.equal((await client.send('GET', '/healthz')).status, 200)
  })

  t.test('a body of another form is 400 with a problem document', async (t) => {
    const bodies: Record<string, string> = {
      'not JSON': '{"token"',
      null: 'null',
      array: '[]',
      text: '"mst_x"',
      'missing csr': '{"token":"x"}',
      'numbers for text': '{"token":1,"csr":2}',
      'objects for text': '{"token":{},"csr":[]}',
      'a prototype': '{"__proto__":{"x":1},"token":"x","csr":"y"}',
      'a constructor': '{"constructor":{"prototype":{"x":1}},"token":"x","csr":"y"}',
      'a token too long': JSON.stringify({ token: 'x'.repeat(300), csr }),
      'an empty csr': JSON.stringify({ token: 'x', csr: '' }),
      'very deep': `${'['.repeat(30_000)}${']'.repeat(30_000)}`,
      empty: '',
    }
    for (const [name, body] of Object.entries(bodies)) {
      const reply = await client.send('POST', '/v1/enroll', { headers: JSON_TYPE, body })
      t.equal(reply.status, 400, name)
      t.equal(reply.headers['content-type'], 'application/problem+json')
      t.match(JSON.parse(reply.text), { status: 400, code: 'invalid_request', requestId: /^[0-9a-f-]{36}$/ })
    }
  })

  t.test('size and type are checked before anything is read', async (t) => {
    const large = { headers: JSON_TYPE, body: JSON.stringify({ token: 'x', csr: 'A'.repeat(70_000) }) }
    t.match(await client.send('POST', '/v1/enroll', large), { status: 413, text: /too_large/ })
    for (const type of ['text/plain', 'application/xml', 'application/pkcs10', 'multipart/form-data']) {
      const reply = await client.send('POST', '/v1/enroll', { headers: { 'content-type': type }, body: '{}' })
      t.match(reply, { status: 415, text: /unsupported/ }, type)
    }
  })

  t.test('paths that are no paths are 400 or 404', async (t) => {
    for (const path of [
      '/%',
      '/v1/%zz',
      '/v1/../../etc/passwd',
      '/%00',
      `/${'a'.repeat(4_000)}`,
      '/v1/enroll/',
    ]) {
      const { status } = await client.send('GET', path)
      t.ok(status === 400 || status === 404, `${path.slice(0, 30)}: ${status}`)
    }
  })

  t.test('no octets in any field make it fail inside', async (t) => {
    const { token } = await service.admin.createToken({ batch: 'fuzz', uses: 1000 })
    const check = fc.asyncProperty(
      fc.oneof(
        fc.string({ unit: 'binary' }),
        fc.base64String(),
        fc.constant(csr).map((text) => text.slice(0, 200)),
      ),
      fc.constantFrom(token, 'mst_', '\u0000', '😀'),
      async (body, secret) => {
        const reply = await client.send('POST', '/v1/enroll', { json: { token: secret, csr: `${body} ` } })
        return reply.status >= 400 && reply.status < 500
      },
    )
    await t.resolves(fc.assert(check, { numRuns: 150 }))
  })

  t.test('old TLS and ciphers without authentication are refused', async (t) => {
    const { enrollment, admin } = service.config.ports
    const refusedWith = async (port: number, options: ConnectionOptions) => {
      const socket = connectTls({ port, host: '127.0.0.1', ca: service.root, ...options })
      const { promise, resolve } = Promise.withResolvers<boolean>()
      socket.once('secureConnect', () => resolve(false)).once('error', () => resolve(true))
      return promise.finally(() => socket.destroy())
    }
    const old = { minVersion: 'TLSv1', maxVersion: 'TLSv1.1', ciphers: 'ALL:@SECLEVEL=0' } as const
    const cbc = {
      maxVersion: 'TLSv1.2',
      ciphers: 'ECDHE-ECDSA-AES128-SHA256:ECDHE-ECDSA-AES128-SHA',
    } as const
    for (const port of [enrollment, admin]) {
      t.ok(await refusedWith(port, old), 'TLS 1.1')
      t.ok(await refusedWith(port, cbc), 'CBC')
      t.notOk(await refusedWith(port, { maxVersion: 'TLSv1.2' }), 'TLS 1.2 with an AEAD suite is fine')
    }
  })
})

t.test('guessing', async (t) => {
  const service = await startEnrollment(t)
  const client = service.client()
  const { csr } = await newRequest('honest-1')
  const guess = () => newToken(randomBytes).text
  const enroll = (token: string, body = csr) =>
    client.send('POST', '/v1/enroll', { json: { token, csr: body } })

  t.test('a token that nobody issued is turned away before its request is parsed', async (t) => {
    t.match(await enroll(guess(), 'this is no request'), { status: 401, text: /R-TOKEN-UNKNOWN/ })
  })

  t.test('who guesses is told to wait, and everybody else at his address goes on', async (t) => {
    const { token } = await service.admin.createToken({ batch: 'lab', uses: 1 })
    const api = await service.admin.createApiToken({ name: 'ci' })
    const replies = await Promise.all(Array.from({ length: 200 }, () => enroll(guess())))
    const throttled = replies.filter(({ status }) => status === 429)
    t.ok(throttled.length >= 170, `${throttled.length} of 200`)
    t.match(throttled[0], { text: /R-RATE/, headers: { 'retry-after': /^\d+$/ } })
    t.equal((await enroll(token)).status, 200, 'a valid enrollment')
    t.equal((await enroll(token)).status, 200, 'and its retry')
    const headers = (secret: string) => ({ headers: { authorization: `Bearer ${secret}` } })
    const admin = service.adminClient()
    t.equal((await admin.send('GET', '/v1/status', headers(guess()))).status, 429)
    t.equal((await admin.send('GET', '/v1/status', headers(api.token))).status, 200)
    const est = { authorization: `Basic ${Buffer.from(`:${guess()}`).toString('base64')}` }
    const reply = await client.send('POST', '/.well-known/est/simpleenroll', {
      headers: { ...est, 'content-type': 'application/pkcs10' },
      body: 'AAAA',
    })
    t.match(reply, { status: 429, text: /^R-RATE/ })
    t.match(reply.rawHeaders['Retry-After'], /^\d+$/)
  })

  t.test('a token whose requests keep failing is told to wait, another one is not', async (t) => {
    const one = await service.admin.createToken({ batch: 'lab', uses: 1 })
    const two = await service.admin.createToken({ batch: 'lab', uses: 1 })
    const replies = await Promise.all(Array.from({ length: 320 }, () => enroll(one.token, 'junk')))
    t.ok(replies.some(({ status }) => status === 429))
    t.equal((await enroll(two.token, (await newRequest('honest-2')).csr)).status, 200)
  })

  t.test('a device whose renewals keep failing is told to wait, another one is not', async (t) => {
    const one = await enrollDevice(service, { id: 'stuck-1' })
    const two = await enrollDevice(service, { id: 'stuck-2' })
    const [json, est] = [service.client(one), service.client(one)]
    const sendJson = (body: string) => json.send('POST', '/v1/renew', { json: { csr: body } })
    const sendEst = () =>
      est.send('POST', '/.well-known/est/simplereenroll', {
        headers: { 'content-type': 'application/pkcs10' },
        body: 'junk',
      })
    const replies = await Promise.all(
      Array.from({ length: 330 }, (_, at) => (at % 2 === 0 ? sendJson('junk') : sendEst())),
    )
    t.ok(replies.some(({ status }) => status === 429))
    t.match(await sendEst(), { status: 429, text: /^R-RATE/ })
    t.match(await sendJson(one.csr), { status: 429 }, 'over both ways in')
    t.equal((await service.client(two).send('POST', '/v1/renew', { json: { csr: two.csr } })).status, 200)
  })

  t.test('an invitation is guessed no better', async (t) => {
    const hosts = ['localhost']
    const send = (token: string) =>
      service.adminClient().send('POST', '/v1/brokers/enroll', { json: { token, csr, hosts } })
    t.match(await send('mst_x'), { status: 429 })
    t.match(await send(guess()), { status: 401, text: /R-TOKEN-UNKNOWN/ })
  })
})

t.test('slow and silent clients', async (t) => {
  t.match(LIMITS, { headersMs: 10_000, requestMs: 15_000, handshakeMs: 10_000, bodyOctets: 65_536 })
  const authority = await testAuthority()
  t.teardown(authority.remove)
  const server = await testIdentity(authority, 'enrollment', { kind: 'server' })
  const limits = { handshakeMs: 300, headersMs: 300, requestMs: 500, checkEveryMs: 50, connections: 20 }
  const port = 20_000 + Math.floor(Math.random() * 10_000)
  const listener = await openListener({
    name: 'test',
    host: '127.0.0.1',
    port,
    tls: { certificate: server.chainPem, key: server.keyPem, clientCas: [authority.rootPem] },
    log: openLog('test', 'silent'),
    limits,
    register: (app) => void app.post('/', async () => ({ ok: true })),
  })
  t.teardown(listener.stop)
  const tls = () => connectTls({ port, host: '127.0.0.1', ca: authority.rootPem }).on('error', () => {})

  t.test('a connection without a handshake is closed', async (t) => {
    const half = connect({ port, host: '127.0.0.1' })
    half.write(Buffer.from('160301020001000', 'hex'))
    const outcomes = await Promise.all([
      everythingFrom(connect({ port, host: '127.0.0.1' })),
      everythingFrom(half),
    ])
    t.same(
      outcomes.map((text) => text.length < 100),
      [true, true],
    )
  })

  t.test('headers that never end are closed', async (t) => {
    const socket = tls()
    socket.write('POST / HTTP/1.1\r\nHost: x\r\n')
    t.match(await everythingFrom(socket), /^HTTP\/1\.1 408 |^$/)
  })

  t.test('a body that never ends is closed', async (t) => {
    const socket = tls()
    socket.write(
      'POST / HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: 100\r\n\r\n{',
    )
    t.match(await everythingFrom(socket), /^HTTP\/1\.1 408 |^$/)
  })

  t.test('more connections than allowed are closed, and when they are gone it serves again', async (t) => {
    const sockets = Array.from({ length: 60 }, () =>
      connect({ port, host: '127.0.0.1' }).on('error', () => {}),
    )
    await Promise.all(sockets.map(everythingFrom))
    const socket = tls()
    socket.write(
      'POST / HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Type: application/json\r\nContent-Length: 2\r\n\r\n{}',
    )
    t.match(await everythingFrom(socket), /^HTTP\/1\.1 200 /)
  })
})

t.test('guesses from the addresses of one subscriber count together, however they are written', async (t) => {
  const guess = (limits: Limits, address: string) => limits.unknown(address).catch(({ code }) => code)
  for (const network of ['fe80::', '2001:db8::', '2001:db8:0:7:', '2001:db8:0:0:']) {
    const limits = createLimits()
    const codes: string[] = []
    for (let n = 1; n <= 40; n++) codes.push(await guess(limits, `${network}${n.toString(16)}:2:3:4`))
    t.equal(codes.at(-1), 'rate', network)
    t.equal(await guess(limits, '2001:db9::1'), 'token_unknown', 'others are not told to wait')
  }
  const limits = createLimits()
  for (let n = 1; n <= 40; n++) t.equal(await guess(limits, `::ffff:192.0.2.${n}`), 'token_unknown')
})
