import { X509Certificate } from 'node:crypto'
import { connect } from 'node:tls'
import t from 'tap'
import { EST_OPERATIONS } from '#shared/identity/device'
import { type DerNode, oidOf, readDer, TAG } from '#shared/pki/der'
import { OID } from '#shared/pki/oid'
import { readBody } from '../../../enrollment/http/est-message.ts'
import {
  enrollDevice,
  newRequest,
  operatorPair,
  type RunningEnrollment,
  startEnrollment,
} from '../../support/enrollment.ts'
import fc from '../../support/properties.ts'

const ENROLL = '/.well-known/est/simpleenroll'
const REENROLL = '/.well-known/est/simplereenroll'
const PKCS10 = { 'content-type': 'application/pkcs10' }

function basic(token: string, user = ''): Record<string, string> {
  return { ...PKCS10, authorization: `Basic ${Buffer.from(`${user}:${token}`).toString('base64')}` }
}

/** An OID, or an attribute with its values, which are OIDs or numbers. */
function shown(node: DerNode): string {
  if (node.tag === TAG.oid) return oidOf(node)
  const [type, values] = node.children
  const value = (one: DerNode) => (one.tag === TAG.oid ? oidOf(one) : one.content.toString('hex'))
  return `${oidOf(type)}: ${values?.children.map(value).join(' ')}`
}

async function newToken(service: RunningEnrollment, batch = 'est', uses = 1): Promise<string> {
  return (await service.admin.createToken({ batch, uses })).token
}

/** The certificates of a certs-only SignedData: the DER of each starts where the one before it ends. */
function certificatesOf(reply: { text: string }): X509Certificate[] {
  const der = Buffer.from(reply.text.replace(/\s/g, ''), 'base64')
  const found: X509Certificate[] = []
  for (let at = 0; at < der.length - 4; at++) {
    if (der[at] !== 0x30 || der[at + 1] !== 0x82) continue
    const slice = der.subarray(at, at + 4 + der.readUInt16BE(at + 2))
    try {
      found.push(new X509Certificate(slice))
      at += slice.length - 1
    } catch {
      // an inner sequence of the SignedData, not a certificate
    }
  }
  return found
}

t.test('EST with real clients in mind', async (t) => {
  const service = await startEnrollment(t)
  const client = service.client()

  t.test('cacerts needs no credentials and holds the root and the device CA', async (t) => {
    const reply = await client.send('GET', '/.well-known/est/cacerts')
    t.equal(reply.status, 200)
    t.equal(certificatesOf(reply).length, 2)
    t.match(certificatesOf(reply)[0]?.raw, new X509Certificate(service.root).raw)
    t.equal((await client.send('GET', '/.well-known/est/anything/cacerts')).status, 200)
  })

  t.test('header names have the exact case that libest compares, and nothing is chunked', async (t) => {
    const { rawHeaders } = await client.send('GET', '/.well-known/est/cacerts')
    t.equal(rawHeaders['Content-Type'], 'application/pkcs7-mime; smime-type=certs-only')
    t.equal(rawHeaders['Content-Transfer-Encoding'], 'base64')
    t.match(rawHeaders['Content-Length'], /^\d+$/)
    t.equal(rawHeaders['Transfer-Encoding'], undefined)
    const refused = await client.send('POST', ENROLL, { headers: PKCS10, body: 'AAAA' })
    t.equal(refused.rawHeaders['WWW-Authenticate'], 'Basic realm="est"')
    const size = Object.entries(rawHeaders).reduce(
      (sum, [name, value]) => sum + name.length + value.length + 4,
      0,
    )
    t.ok(size < 1024, 'strongSwan reads at most 1024 octets of headers')
  })

  t.test('strongSwan gets one line, libest lines of 64 characters', async (t) => {
    const plain = await client.send('GET', '/.well-known/est/cacerts')
    t.notMatch(plain.text, /\s/)
    const libest = await client.send('GET', '/.well-known/est/cacerts', {
      headers: { 'user-agent': 'Cisco libest client 1.0' },
    })
    const lines = libest.text.trimEnd().split('\n')
    t.ok(lines.length > 1 && lines.slice(0, -1).every((line) => line.length === 64))
    t.equal(libest.text.replaceAll('\n', ''), plain.text)
  })

  t.test('without credentials it challenges, then enrolls on the same connection', async (t) => {
    const { der } = await newRequest('est-1')
    const first = await client.send('POST', ENROLL, { headers: PKCS10, body: der.toString('base64') })
    t.match(first, { status: 401, text: /token/ })
    const token = await newToken(service)
    const reply = await client.send('POST', ENROLL, { headers: basic(token), body: der.toString('base64') })
    t.equal(reply.status, 200, reply.text)
    const [leaf, ...rest] = certificatesOf(reply)
    t.equal(rest.length, 0, 'only the issued certificate')
    t.equal(leaf?.subject, 'CN=est-1')
  })

  t.test('a user name is ignored, and TLS 1.2 is enough', async (t) => {
    const token = await newToken(service)
    const { der } = await newRequest('est-2')
    const old = service.client(undefined, { tls12: true })
    const reply = await old.send('POST', ENROLL, {
      headers: basic(token, 'anybody'),
      body: der.toString('base64'),
    })
    t.equal(reply.status, 200, reply.text)
  })

  t.test('every shape of base64 that clients send is read', async (t) => {
    const token = await newToken(service, 'est', 10)
    const { der } = await newRequest('est-3')
    const base64 = der.toString('base64')
    const lines = base64.match(/.{1,64}/g) ?? []
    const shapes = [
      base64,
      `${lines.join('\r\n')}\r\n`,
      `${lines.join('\n')}\n`,
      lines.join(' \t\n'),
      `\n\n${base64}\n\n`,
    ]
    const certificates = new Set<string>()
    for (const body of shapes) {
      const reply = await client.send('POST', ENROLL, { headers: basic(token), body })
      t.equal(reply.status, 200, reply.text)
      certificates.add(reply.text)
    }
    t.equal(
      certificates.size,
      1,
      'a request is recognised by its key, so all of them got the same certificate',
    )
  })

  t.test('media types are compared without parameters and case; others are refused', async (t) => {
    const token = await newToken(service)
    const body = (await newRequest('est-4')).der.toString('base64')
    const send = (type: string) =>
      client.send('POST', ENROLL, { headers: { ...basic(token), 'content-type': type }, body })
    for (const type of [
      'application/json',
      'text/plain',
      'application/pkcs10x',
      'application/x-pkcs10',
      '',
    ]) {
      t.equal((await send(type)).status, 415, type)
    }
    t.equal((await send('Application/PKCS10; charset=utf-8; x="y"')).status, 200)
  })

  t.test('a body that is not a request is refused with a sentence and our code', async (t) => {
    const token = await newToken(service, 'est', 100)
    const { csr, der } = await newRequest('est-5')
    const bodies: Record<string, string | Buffer> = {
      empty: '',
      'only white space': '\r\n \t',
      'PEM armour': csr,
      'DER without base64': der,
      base64url: `${der.toString('base64url')}_-`,
      'wrong padding': `${der.toString('base64')}=`,
      'a letter too few': der.toString('base64').slice(0, -1),
      'padding inside': `AAA=${der.toString('base64')}`,
      NUL: `${der.toString('base64')}\0`,
      'half a request': der.subarray(0, 100).toString('base64'),
      'two requests': Buffer.concat([der, der]).toString('base64'),
      'nested sequences': Buffer.alloc(6000, 0x30).toString('base64'),
      'nothing but zeros': Buffer.alloc(300).toString('base64'),
      'longer than 24 KiB': 'A'.repeat(24 * 1024 + 4),
    }
    for (const [name, body] of Object.entries(bodies)) {
      const reply = await client.send('POST', ENROLL, { headers: basic(token), body })
      t.match(reply, { status: 400, text: /^R-CSR-MALFORMED: Cannot read the request/ }, name)
      t.equal(reply.headers['content-type'], 'text/plain; charset=utf-8')
    }
    t.equal(
      (await client.send('POST', ENROLL, { headers: basic(token), body: der.toString('base64') })).status,
      200,
    )
  })

  t.test('a body over 64 KiB ends with 413', async (t) => {
    const reply = await client.send('POST', ENROLL, { headers: basic('x'), body: 'A'.repeat(70_000) })
    t.match(reply, { status: 413, text: /too_large/ })
  })

  t.test('credentials in every wrong shape are 401, never 500', async (t) => {
    const body = (await newRequest('est-6')).der.toString('base64')
    const encoded = (text: string) => Buffer.from(text).toString('base64')
    const wrong = [
      'Basic',
      'Basic !!!',
      `Basic ${encoded('no colon')}`,
      `Basic ${encoded(':')}`,
      `Basic ${encoded(':mst_')}`,
      `Basic ${encoded(`:mst_${'a'.repeat(49)}`)}`,
      `Basic ${Buffer.from([0x3a, 0xff, 0xfe, 0x00]).toString('base64')}`,
      'Bearer abc',
      'Digest username="x"',
      `Basic ${'A'.repeat(4000)}`,
    ]
    for (const authorization of wrong) {
      const reply = await service
        .client()
        .send('POST', ENROLL, { headers: { ...PKCS10, authorization }, body })
      t.equal(reply.status, 401, authorization.slice(0, 40))
      t.equal(reply.rawHeaders['WWW-Authenticate'], 'Basic realm="est"')
    }
  })

  t.test('a label selects the batch: another batch is refused, an operation is no label', async (t) => {
    const token = await newToken(service, 'line-7')
    const body = (await newRequest('est-7')).der.toString('base64')
    const send = (label: string) =>
      client.send('POST', `/.well-known/est/${label}/simpleenroll`, { headers: basic(token), body })
    t.match(await send('line-8'), { status: 403, text: /^R-TOKEN-BATCH/ })
    for (const operation of EST_OPERATIONS) t.equal((await send(operation)).status, 404, operation)
    t.equal((await client.send('POST', '/.well-known/est/line-7/fullcmc', { body: 'x' })).status, 501)
    t.equal((await send('a%00b')).status, 404)
    t.equal((await send('line-7')).status, 200)
  })

  t.test('csrattrs asks for one type of key and its signature, of anybody, per batch', async (t) => {
    const profiles = {
      ed: ['Ed25519', 'P-384'],
      ml: ['ML-DSA-65'],
      rsa: ['RSA', 'P-256'],
      ec: ['P-384', 'P-256'],
    } as const
    for (const [id, keys] of Object.entries(profiles)) {
      await service.admin.createFleet({ id, profile: { keys: [...keys] } })
      await service.admin.createBatch({ id: `${id}-1`, fleet: id })
    }
    const fetchAttributes = async (label: string) => {
      const reply = await client.send('GET', `/.well-known/est/${label}csrattrs`)
      t.match(reply, { status: 200, headers: { 'content-type': 'application/csrattrs' } })
      return readDer(Buffer.from(reply.text, 'base64')).children.map(shown)
    }
    const usual = await fetchAttributes('')
    t.strictSame(usual, [`${OID.ecPublicKey}: ${OID.prime256v1}`, OID.ecdsaWithSha256])
    t.strictSame(await fetchAttributes('ed-1/'), [`${OID.ed25519}: `, OID.ed25519])
    t.strictSame(await fetchAttributes('ml-1/'), [`${OID.mlDsa65}: `, OID.mlDsa65])
    t.strictSame(await fetchAttributes('rsa-1/'), [`${OID.rsaEncryption}: 0c00`, OID.sha256WithRsa])
    t.strictSame(await fetchAttributes('ec-1/'), [
      `${OID.ecPublicKey}: ${OID.secp384r1}`,
      OID.ecdsaWithSha384,
    ])
    t.strictSame(await fetchAttributes('unknown/'), usual, 'nobody learns which batches there are')
  })

  t.test('what is not offered says so', async (t) => {
    t.equal((await client.send('POST', '/.well-known/est/fullcmc', { body: 'x' })).status, 501)
    t.equal((await client.send('GET', '/.well-known/est/unknown')).status, 404)
    t.equal((await client.send('DELETE', ENROLL)).status, 404)
  })

  t.test('simplereenroll needs a client certificate and the very names of it', async (t) => {
    const device = await enrollDevice(service, { id: 'est-8' })
    const uri = 'spiffe://muster.local/device/est-8'
    const send = async (names: { cn?: string; uris?: string[] }, pair: typeof device | undefined) => {
      const body = (await newRequest(names.cn, names.uris ?? [])).der.toString('base64')
      return service.client(pair).send('POST', REENROLL, { headers: PKCS10, body })
    }
    t.match(await send({ cn: 'est-8', uris: [uri] }, undefined), { status: 401, text: /^R-NOCERT/ })
    t.match(await send({ cn: 'est-8' }, device), { status: 422, text: /^R-CSR-SUBJECT/ }, 'no SAN')
    t.match(await send({ uris: [uri] }, device), { status: 422 }, 'no subject')
    t.match(await send({ cn: 'est-9', uris: [uri] }, device), { status: 422 }, 'another subject')
    t.match(await send({ cn: 'est-8', uris: ['spiffe://muster.local/device/est-9'] }, device), {
      status: 422,
    })
    t.match(await send({ cn: 'est-8', uris: ['spiffe://muster.local/service/est-8'] }, device), {
      status: 422,
    })
    const reply = await send({ cn: 'est-8', uris: [uri] }, device)
    t.equal(reply.status, 200, reply.text)
    t.not(certificatesOf(reply)[0]?.serialNumber.toLowerCase(), device.serial)
  })

  t.test('of 50 devices by 50 identities only the diagonal succeeds', async (t) => {
    const ids = Array.from({ length: 50 }, (_, at) => `m-${at}`)
    const devices = await Promise.all(ids.map((id) => enrollDevice(service, { id })))
    const bodies = await Promise.all(
      ids.map(async (id) => {
        const { der } = await newRequest(id, [`spiffe://muster.local/device/${id}`])
        return { id, body: der.toString('base64') }
      }),
    )
    const wrong: string[] = []
    for (const device of devices) {
      const asDevice = service.client(device)
      for (const { id, body } of bodies) {
        const { status } = await asDevice.send('POST', REENROLL, { headers: PKCS10, body })
        if (status !== (id === device.id ? 200 : 422)) wrong.push(`${device.id} as ${id}: ${status}`)
      }
      asDevice.close()
    }
    t.strictSame(wrong, [])
    const { devices: after } = await service.admin.listDevices({ limit: 1000 })
    t.equal(after.filter(({ id }) => id.startsWith('m-')).length, 50)
    const shown = await service.admin.showDevice('m-7')
    t.equal(shown.certificates.length, 2, 'its first and its one successor')
  })

  t.test('a certificate of an operator or a stranger is no device', async (t) => {
    const body = (await newRequest('local')).der.toString('base64')
    const reply = await service
      .client(operatorPair(service))
      .send('POST', REENROLL, { headers: PKCS10, body })
    t.match(reply, { status: 401, text: /^R-UNKNOWN-CA/ })
  })

  t.test('a request in single octets is understood', async (t) => {
    const token = await newToken(service)
    const body = (await newRequest('est-drip')).der.toString('base64')
    const head = `POST ${ENROLL} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/pkcs10\r\nAuthorization: ${basic(token).authorization}\r\nContent-Length: ${body.length}\r\nConnection: close\r\n\r\n`
    const socket = connect({ port: service.config.ports.enrollment, host: '127.0.0.1', ca: service.root })
    for (const octet of head + body) socket.write(octet)
    const chunks: Buffer[] = []
    for await (const chunk of socket) chunks.push(chunk)
    t.match(Buffer.concat(chunks).toString(), /^HTTP\/1\.1 200 /)
  })
})

t.test('a body is read as base64 or refused as malformed, whatever its octets', async (t) => {
  t.doesNotThrow(() =>
    fc.assert(
      fc.property(fc.uint8Array({ maxLength: 300 }), (octets) => {
        try {
          return readBody(Buffer.from(octets)).length > 0
        } catch (error) {
          return Object(error).code === 'csr_malformed'
        }
      }),
    ),
  )
  t.doesNotThrow(() =>
    fc.assert(
      fc.property(
        fc.uint8Array({ minLength: 1, maxLength: 300 }),
        fc.integer({ min: 1, max: 80 }),
        (octets, width) => {
          const base64 = Buffer.from(octets).toString('base64')
          const folded = base64.replace(new RegExp(`.{1,${width}}`, 'g'), '$&\r\n')
          return readBody(Buffer.from(folded)).equals(Buffer.from(octets))
        },
      ),
    ),
  )
})
