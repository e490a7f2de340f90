import { randomBytes, X509Certificate } from 'node:crypto'
import { readFileSync, statSync, writeFileSync } from 'node:fs'
import { request as send } from 'node:http'
import { connect } from 'node:net'
import { join } from 'node:path'
import { gunzipSync } from 'node:zlib'
import t from 'tap'
import { readCertificate } from '#shared/pki/certificate'
import { OID } from '#shared/pki/oid'
import { pemToDer } from '#shared/pki/pem'
import { readDistributionPoint, readInfoAccesses } from '#shared/pki/read-extensions'
import { readCrl as readSignedCrl } from '../../../device-sim/crl.ts'
import { readCrlEntries } from '../../../enrollment/ca/read-crl.ts'
import { openRegistry } from '../../../enrollment/registry/open.ts'
import {
  enrollBroker,
  enrollDevice,
  operatorPair,
  type RunningEnrollment,
  startEnrollment,
} from '../../support/enrollment.ts'
import { ocspRequest, readOcspResponse } from '../../support/ocsp.ts'
import { BEGIN, planeOf } from '../../support/registry-plane.ts'

const DAY_MS = 86_400_000

interface Reply {
  readonly status: number
  readonly headers: Readonly<Record<string, string | string[] | undefined>>
  readonly body: Buffer
}

/** Plain node:http: fetch would unpack gzip and tidy paths. */
async function http(
  service: RunningEnrollment,
  method: string,
  path: string,
  content: { headers?: Record<string, string>; body?: Buffer } = {},
): Promise<Reply> {
  const { promise, resolve, reject } = Promise.withResolvers<Reply>()
  const url = new URL(service.whereabouts.http)
  const signal = AbortSignal.timeout(10_000)
  const options = { host: url.hostname, port: url.port, method, path, headers: content.headers ?? {}, signal }
  const outgoing = send(options, async (reply) => {
    const body = Buffer.concat(await reply.toArray())
    resolve({ status: reply.statusCode ?? 0, headers: reply.headers, body })
  })
  outgoing.once('error', reject).end(content.body)
  return promise
}

/** Of a POST, with one more line. */
const head = (line: string) =>
  Buffer.from(
    `POST /ocsp HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/ocsp-request\r\n${line}\r\n\r\n`,
  )

/** Writes pieces, each after the service has answered somebody else, and hangs up after so many replies. */
async function talk(
  service: RunningEnrollment,
  pieces: readonly Buffer[],
  { replies }: { replies: number },
): Promise<Buffer> {
  const { hostname, port } = new URL(service.whereabouts.http)
  const socket = connect({ host: hostname, port: Number(port), noDelay: true })
  const { promise, resolve, reject } = Promise.withResolvers<void>()
  const chunks: Buffer[] = []
  const count = () => Buffer.concat(chunks).toString('latin1').split('HTTP/1.1 ').length - 1
  socket.setTimeout(10_000, () => reject(new Error('no reply in time')))
  socket.once('error', reject)
  socket.on('data', (chunk) => {
    chunks.push(chunk)
    if (count() === replies) resolve()
  })
  for (const piece of pieces) {
    socket.write(piece)
    await http(service, 'GET', '/ocsp/')
  }
  if (replies > 0) await promise
  socket.destroy()
  return Buffer.concat(chunks)
}

const TYPE = { 'content-type': 'application/ocsp-request' }

t.test('what a certificate points to is served', async (t) => {
  const service = await startEnrollment(t)
  const issuer = service.deps.authority.device.pem
  const device = await enrollDevice(service, { id: 'probe-1' })
  const request = (nonce?: Buffer) =>
    ocspRequest({ issuer, serials: [device.serial], ...(nonce && { nonce }) })
  const { extensions } = readCertificate(pemToDer(device.certificate, 'CERTIFICATE')).tbs
  const read = <T>(type: string, reader: (value: { isCritical: boolean; value: Buffer }) => T) => {
    const found = extensions.get(type)
    if (!found) throw new Error(`no ${type}`)
    return reader(found)
  }
  const [ocsp] = read(OID.authorityInfoAccess, readInfoAccesses)
  const crl = new URL(read(OID.crlDistributionPoints, readDistributionPoint)).pathname

  t.test('OCSP by POST and by GET, with the headers that caches need', async (t) => {
    t.match(ocsp, { method: OID.ocsp, uri: `${service.whereabouts.http}/ocsp` })
    const posted = await http(service, 'POST', '/ocsp', { headers: TYPE, body: request() })
    t.match(readOcspResponse(posted.body, issuer), { status: 0, statuses: ['good'] })
    const path = `/ocsp/${encodeURIComponent(request().toString('base64'))}`
    const got = await http(service, 'GET', path)
    t.same(got.body, posted.body)
    t.match(got, {
      status: 200,
      headers: {
        'content-type': 'application/ocsp-response',
        'cache-control': 'max-age=300, public, no-transform, must-revalidate',
        etag: /^"[0-9a-f]{64}"$/,
      },
    })
    const at = (header: string) => Date.parse(String(got.headers[header]))
    t.equal(at('expires') - at('last-modified'), 3_600_000)
    const again = await http(service, 'GET', path, { headers: { 'if-none-match': String(got.headers.etag) } })
    t.match(again, { status: 304, body: { length: 0 } })
  })

  t.test('a nonce comes back in an answer that nobody uses again', async (t) => {
    const nonce = randomBytes(32)
    const reply = await http(service, 'POST', '/ocsp/', { headers: TYPE, body: request(nonce) })
    t.match(readOcspResponse(reply.body, issuer), { nonce })
    // RFC 9919 section 7.2: no-store and no-cache are for answers without authority
    t.equal(reply.headers['cache-control'], 'max-age=0, no-transform, must-revalidate')
    t.equal(reply.headers.etag, undefined)
  })

  t.test('a hold is seen by the next request', async (t) => {
    const ask = async () =>
      readOcspResponse(
        (await http(service, 'POST', '/ocsp', { headers: TYPE, body: request() })).body,
        issuer,
      )
    t.match(await ask(), { statuses: ['good'] })
    const plan = await service.admin.proposePlan({ action: 'hold', scope: { kind: 'batch', id: 'lab' } })
    await service.admin.applyPlan(plan.id, 1)
    t.match(await ask(), { statuses: ['revoked 6'] })
    await service.admin.undoPlan(plan.id)
    t.match(await ask(), { statuses: ['good'] })
  })

  t.test(
    'a hold that another process commits is seen by the next request too, by POST and by GET',
    async (t) => {
      const path = `/ocsp/${encodeURIComponent(request().toString('base64'))}`
      const ask = async () => {
        const replies = [
          await http(service, 'POST', '/ocsp', { headers: TYPE, body: request() }),
          await http(service, 'GET', path),
        ]
        return replies.flatMap(({ body }) => {
          const said = readOcspResponse(body, issuer)
          return 'statuses' in said ? said.statuses : []
        })
      }
      const registry = await openRegistry(service.config.layout.registry, {
        trustDomain: service.deps.authority.device.trustDomain,
        epoch: 'it has one',
        now: Date.now(),
      })
      t.teardown(() => registry.close())
      const other = planeOf(registry, 'other')
      other.pass(Date.now() - BEGIN)
      t.same(await ask(), ['good', 'good'])
      await other.hold('from-elsewhere', { scope: 'batch', id: 'lab' })
      t.same(await ask(), ['revoked 6', 'revoked 6'])
      await registry.undoPlan('from-elsewhere', other.act())
      t.same(await ask(), ['good', 'good'])
    },
  )

  t.test('a request is answered in whatever pieces it comes', async (t) => {
    const body = request()
    const whole = Buffer.concat([head(`Content-Length: ${body.length}`), body])
    const said = (replies: Buffer) =>
      replies
        .toString('latin1')
        .split('HTTP/1.1 ')
        .slice(1)
        .map((reply) => reply.slice(0, 3))
    t.same(said(await talk(service, [Buffer.concat([whole, whole, whole])], { replies: 3 })), [
      '200',
      '200',
      '200',
    ])
    const cuts = [1, head('').length - 2, whole.length - body.length, whole.length - 40, whole.length - 1]
    for (const cut of cuts) {
      const pieces = [whole.subarray(0, cut), whole.subarray(cut)]
      t.same(said(await talk(service, pieces, { replies: 1 })), ['200'], `cut at ${cut}`)
    }
    const inChunks = await http(service, 'POST', '/ocsp', {
      headers: { ...TYPE, 'transfer-encoding': 'chunked' },
      body,
    })
    t.match(readOcspResponse(inChunks.body, issuer), { statuses: ['good'] })
    const none = await http(service, 'POST', '/ocsp', { headers: { ...TYPE, 'content-length': '0' } })
    t.match(readOcspResponse(none.body, issuer), { status: 1 })
  })

  t.test('a body that is too long, or never whole, costs nobody else an answer', async (t) => {
    const tooLong = await http(service, 'POST', '/ocsp', {
      headers: { ...TYPE, 'transfer-encoding': 'chunked' },
      body: Buffer.alloc(9_000, 0x30),
    })
    t.match(tooLong, { status: 413, headers: { connection: 'close' } })
    const promised = await talk(service, [head('Content-Length: 9000')], { replies: 1 })
    t.match(promised.toString('latin1'), /^HTTP\/1.1 413[\s\S]*connection: close/i, 'it is not waited for')
    await talk(service, [Buffer.concat([head('Content-Length: 100'), Buffer.alloc(50)])], { replies: 0 })
    const reply = await http(service, 'POST', '/ocsp', { headers: TYPE, body: request() })
    t.match(readOcspResponse(reply.body, issuer), { statuses: ['good'] })
  })

  t.test('what is no OCSP request is told so, and never fails inside', async (t) => {
    const post = (body: Buffer, headers: Record<string, string> = TYPE) =>
      http(service, 'POST', '/ocsp', { headers, body })
    for (const body of [Buffer.alloc(0), randomBytes(200), Buffer.alloc(8_000, 0x30)]) {
      const reply = await post(body)
      t.match(readOcspResponse(reply.body, issuer), { status: 1 })
      t.match(reply, { status: 200, headers: { 'cache-control': 'no-store' } })
    }
    t.equal((await post(Buffer.alloc(9_000, 0x30))).status, 413)
    for (const type of ['text/plain', 'application/json', 'application/x-www-form-urlencoded']) {
      const { status } = await post(Buffer.from('{}'), { 'content-type': type })
      t.equal(status, 415, type)
    }
    for (const path of ['/ocsp/', '/ocsp/MEYw', '/ocsp/%00', `/ocsp/${'A'.repeat(5_000)}`]) {
      t.match(
        readOcspResponse((await http(service, 'GET', path)).body, issuer),
        { status: 1 },
        path.slice(0, 20),
      )
    }
    for (const [method, path] of [
      ['GET', '/ocsp'],
      ['PUT', '/ocsp'],
      ['GET', '/ocsp/%'],
      ['GET', '/ocsp/%ff%fe'],
    ] as const) {
      const { status } = await http(service, method, path)
      t.ok(status === 200 || (status >= 400 && status < 500), `${method} ${path}: ${status}`)
    }
  })

  t.test('the shard, and the full list, plain and packed', async (t) => {
    const full = new URL((await service.admin.status()).crl.url).pathname
    t.match(crl, /^\/crl\/[0-9a-f]{64}\/\d+\.crl$/)
    for (const path of [crl, full]) {
      const plain = await http(service, 'GET', path)
      t.match(plain, {
        status: 200,
        headers: { 'content-type': 'application/pkix-crl', vary: 'accept-encoding' },
      })
      t.equal(plain.headers['content-encoding'], undefined)
      for (const accepted of ['gzip', 'br, gzip;q=0.5', '*']) {
        const packed = await http(service, 'GET', path, { headers: { 'accept-encoding': accepted } })
        t.equal(packed.headers['content-encoding'], 'gzip', accepted)
        t.same(gunzipSync(packed.body), plain.body)
        t.not(packed.headers.etag, plain.headers.etag, 'a strong tag names octets')
        const headers = { 'accept-encoding': accepted, 'if-none-match': String(packed.headers.etag) }
        t.equal((await http(service, 'GET', path, { headers })).status, 304)
      }
      for (const accepted of ['br', 'gzip;q=0', 'identity', 'x-gzip-like']) {
        const reply = await http(service, 'GET', path, { headers: { 'accept-encoding': accepted } })
        t.equal(reply.headers['content-encoding'], undefined, accepted)
      }
    }
    const { id } = service.deps.authority.device
    for (const file of ['64.crl', '-1.crl', '01.crl', '1e1.crl', 'x.crl', '0', '..%2fauthority.json']) {
      t.equal((await http(service, 'GET', `/crl/${id}/${file}`)).status, 404, file)
    }
    t.equal((await http(service, 'GET', `/crl/${'0'.repeat(64)}/0.crl`)).status, 404)
  })

  t.test('the status says how fresh both are', async (t) => {
    const { crl, ocsp } = await service.admin.status()
    t.match(crl, { shards: 64, entries: 0 })
    t.ok(crl.earliestNextUpdate > Date.now() + DAY_MS / 3)
    t.equal(ocsp.url, `${service.whereabouts.http}/ocsp`)
    t.ok(ocsp.notAfter > Date.now() + 6 * DAY_MS)
    t.ok(ocsp.presigned > 0)
  })
})

t.test('the responder has a certificate of its own, which is renewed', async (t) => {
  const clock = { offsetMs: 0 }
  const data = t.testdir()
  const service = await startEnrollment(t, { data, clock })
  const { enrollment } = service.config.layout
  const file = (end: string) =>
    join(enrollment, `ocsp-${service.deps.authority.device.id.slice(0, 16)}.${end}`)
  const shown = () => new X509Certificate(readFileSync(file('crt'))).fingerprint256
  const first = shown()
  t.equal(statSync(file('key')).mode & 0o777, 0o600)
  const entries = await service.admin.listAudit({ limit: 100 })
  t.ok(entries.some(({ action, subject }) => action === 'issue.responder' && subject.includes('ocsp')))
  await service.renewOwn()
  t.equal(shown(), first, 'not before it is due')
  clock.offsetMs = 5 * DAY_MS
  await service.renewOwn()
  const second = shown()
  t.not(second, first)
  await service.stop()
  const again = await startEnrollment(t, { data, clock })
  t.equal(shown(), second, 'it survives a restart')
  await again.stop()
  writeFileSync(file('crt'), 'damaged')
  await startEnrollment(t, { data, clock })
  t.not(shown(), second)
})

t.test('an authority from before there were shards goes on with the full list', async (t) => {
  const data = t.testdir()
  const before = await startEnrollment(t, { data })
  await before.stop()
  const path = join(before.config.layout.ca, 'authority.json')
  const { crlShards, ...old } = JSON.parse(readFileSync(path, 'utf8'))
  t.equal(crlShards, 64)
  writeFileSync(path, JSON.stringify(old))
  const after = await startEnrollment(t, { data })
  t.same(JSON.parse(readFileSync(path, 'utf8')), { ...old, crlShards: 64 })
  t.equal((await http(after, 'GET', `/crl/${after.deps.authority.device.id}.crl`)).status, 200)
  t.equal((await http(after, 'GET', `/crl/${after.deps.authority.device.id}/63.crl`)).status, 200)
})

t.test('the CRL that certificates of the plane name is served, and lists forgotten brokers', async (t) => {
  const service = await startEnrollment(t)
  const { infrastructure } = service.deps.authority
  const broker = await enrollBroker(service, 'edge-1')
  const staying = await enrollBroker(service, 'edge-2')
  const parts = (pem: string) => readCertificate(new X509Certificate(pem).raw).tbs // the first of a chain
  const crlOf = (pem: string) => {
    const found = parts(pem).extensions.get(OID.crlDistributionPoints)
    if (!found) throw new Error('it names no CRL')
    return new URL(readDistributionPoint(found)).pathname
  }
  const operator = operatorPair(service).certificate
  t.equal(crlOf(broker.certificate), crlOf(operator), 'one for all of the infrastructure CA')
  const fetched = async () => {
    const reply = await http(service, 'GET', crlOf(broker.certificate))
    t.match(reply, { status: 200, headers: { 'content-type': 'application/pkix-crl', etag: /^"crl-\d+"$/ } })
    readSignedCrl(reply.body, infrastructure.pem)
    const { number, thisUpdate, nextUpdate } = service.deps.revocationLists.of(infrastructure.id)
      ?.published ?? {
      number: 0,
      thisUpdate: 0,
      nextUpdate: 0,
    }
    return { entries: readCrlEntries(reply.body), number, thisUpdate, nextUpdate }
  }
  const serialOf = (pem: string) => new X509Certificate(pem).serialNumber.toLowerCase()
  const empty = await fetched()
  t.equal(empty.entries.length, 0)
  t.equal(empty.nextUpdate - empty.thisUpdate, DAY_MS, 'as fresh as those of devices')

  await service.admin.forgetBroker('edge-1')
  await service.deps.revocationLists.refresh(service.deps.now())
  const listed = await fetched()
  t.match(listed.entries, [{ serial: serialOf(broker.certificate), reason: 'cessationOfOperation' }])
  t.notOk(listed.entries.some(({ serial }) => serial === serialOf(staying.certificate)))
  t.ok(listed.number > empty.number)
  t.ok(new X509Certificate(broker.certificate).checkIssued(new X509Certificate(infrastructure.pem)))
  const devices = await http(service, 'GET', `/crl/${service.deps.authority.device.id}.crl`)
  t.equal(readCrlEntries(devices.body).length, 0, 'and not on the list of devices')
})
