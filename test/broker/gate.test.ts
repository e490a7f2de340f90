import { X509Certificate } from 'node:crypto'
import { once } from 'node:events'
import { connect as tcpConnect } from 'node:net'
import { Duplex, PassThrough } from 'node:stream'
import { type TLSSocket, connect as tlsConnect } from 'node:tls'
import t from 'tap'
import { REFUSALS, refusalCode } from '#shared/refusals'
import { admissionRecord, type TestBroker, until } from '../support/broker.ts'
import { brokersOf } from '../support/broker-opener.ts'
import { connectDevice, connectPacket, openRaw, type Presented, refusalOf } from '../support/mqtt-clients.ts'
import { testAuthority, testIdentity } from '../support/pki.ts'
import { craftCertificate, HOSTILE, type HostileName, hostileIdentity } from '../support/pki-hostile.ts'

const authority = await testAuthority()
t.teardown(() => authority.remove())

const open = brokersOf(authority)

/** The CONNACK return code that a refused client reads. */
async function returnCode(
  broker: TestBroker,
  presented: Presented,
  clientId = 'dev-1',
): Promise<number | undefined> {
  const raw = await openRaw(broker, presented)
  const { returnCode } = await raw.connect({ clientId })
  raw.socket.destroy()
  return returnCode
}

t.test(
  'every certificate that is not as it should be is refused with a CONNACK and its own code',
  async (t) => {
    const broker = await open(t)
    for (const name of Object.keys(HOSTILE) as HostileName[]) {
      const presented = await hostileIdentity(authority, name)
      const code = refusalCode(HOSTILE[name][0])
      const raw = await openRaw(broker, presented, { ciphers: 'DEFAULT@SECLEVEL=0' })
      t.equal((await raw.connect({ clientId: 'dev-1' })).returnCode, 5, name)
      const report = await broker.report(
        'refused',
        ({ fingerprint }) => fingerprint === presented.fingerprint,
      )
      t.equal(report.code, code, `${name}: ${JSON.stringify(report.evidence)}`)
      raw.socket.destroy()
    }
    t.equal(broker.sessions.count(), 0)
    t.same(broker.mqtt.registered(), { ids: [], counted: 0 })
    const device = await broker.enroll('dev-1')
    const client = await connectDevice(broker, device)
    await client.endAsync()
  },
)

t.test(
  'the claim of a batch is refused with what to do, even if the registry had it as a device',
  async (t) => {
    const broker = await open(t)
    const claim = await testIdentity(authority, 'c-1', { kind: 'claim' })
    t.equal(await returnCode(broker, claim, 'c-1'), 5)
    broker.replica.put(admissionRecord(claim))
    t.equal(await returnCode(broker, claim, 'c-1'), 5)
    const refused = { code: 'R-CLAIM', evidence: { claim: 'c-1' }, fingerprint: claim.fingerprint }
    t.match(broker.refusals(), [refused, refused])
    t.match(REFUSALS['R-CLAIM'].fix, /Enroll with it/)
    t.equal(broker.sessions.count(), 0)
  },
)

t.test('a certificate of another CA is refused with the name of its issuer', async (t) => {
  const broker = await open(t)
  const presented = await craftCertificate(authority, { signedBy: 'stranger' })
  t.equal(await returnCode(broker, presented), 5)
  t.match(broker.refusals('R-UNKNOWN-CA'), [{ evidence: { issuer: /CN=/, reason: String } }])
  const infrastructure = await testIdentity(authority, 'broker-7', { kind: 'broker' })
  t.equal(await returnCode(broker, infrastructure), 5)
  t.match(broker.refusals('R-UNKNOWN-CA')[1]?.evidence, {
    issuer: /infrastructure/,
    reason: 'ISSUER_NOT_TRUSTED',
  })
})

t.test(
  'a certificate that was altered after it was signed is refused, even if its fingerprint were recorded',
  async (t) => {
    const broker = await open(t)
    const device = await testIdentity(authority, 'dev-1')
    const der = Buffer.from(device.der.toString('latin1').replaceAll('dev-1', 'dev-2'), 'latin1')
    const x509 = new X509Certificate(der)
    const fingerprint = x509.fingerprint256.replaceAll(':', '').toLowerCase()
    broker.replica.put(admissionRecord({ ...device, id: 'dev-2', fingerprint }))
    t.equal(
      await returnCode(broker, { ...device, chainPem: x509.toString() + authority.device.pem }, 'dev-2'),
      5,
    )
    t.match(broker.refusals(), [{ code: 'R-UNKNOWN-CA', evidence: { reason: 'CERT_SIGNATURE_FAILURE' } }])
  },
)

t.test(
  'a certificate of our CA that only TLS finds fault with is refused, even if it were recorded',
  async (t) => {
    const broker = await open(t)
    // RFC 5280 section 4.2: a critical extension that is not known; our own checks ask for what has to be there.
    const crafted = await craftCertificate(authority, { critical: '1.3.6.1.4.1.32473.1' })
    const { certificate, ...record } = admissionRecord(await testIdentity(authority, 'dev-1'))
    const { fingerprint } = crafted
    broker.replica.put({ ...record, certificate: { ...certificate, fingerprint } })
    t.equal(await returnCode(broker, crafted), 5)
    const refused = { code: 'R-PROFILE', fingerprint, evidence: { violation: /^[A-Z_]+$/ } }
    t.match(broker.refusals(), [refused])
    t.equal(broker.sessions.count(), 0)
  },
)

t.test('a client without a certificate is told so, in the words of its protocol version', async (t) => {
  const broker = await open(t)
  for (const [version, octets] of [
    [4, '20020005'],
    [3, '20020005'],
    [5, '2003008700'],
  ] as const) {
    const raw = await openRaw(broker, {})
    const protocolId = version === 3 ? 'MQIsdp' : 'MQTT'
    raw.send(connectPacket({ clientId: 'x', protocolVersion: version, protocolId }))
    await raw.closed
    t.equal(raw.octets.toString('hex'), octets)
  }
  t.equal(broker.refusals('R-NOCERT').length, 3)
  t.equal(refusalOf(await connectDevice(broker, {}).catch((error) => error)), 5)
})

t.test('the answer waits for the whole CONNECT, however it is cut', async (t) => {
  const broker = await open(t)
  const raw = await openRaw(broker, {})
  raw.socket.setNoDelay(true)
  const whole = Buffer.from('100d00044d51545404020000000178', 'hex')
  for (const octet of whole.subarray(0, -1)) raw.send(Buffer.from([octet]))
  await broker.report('refused')
  t.equal(raw.octets.length, 0)
  raw.send(whole.subarray(-1))
  await raw.closed
  t.equal(raw.octets.toString('hex'), '20020005')
})

t.test(
  'a chain that verifies is refused when the registry has no record of it, after a short wait',
  async (t) => {
    const broker = await open(t, { limits: { recordWaitMs: 50 } })
    const stranger = await testIdentity(authority, 'dev-9')
    t.equal(await returnCode(broker, stranger, 'dev-9'), 5)
    t.match(broker.refusals(), [
      {
        code: 'R-UNRECORDED',
        device: 'dev-9',
        evidence: { fingerprint: stranger.fingerprint, waitedMs: Number },
      },
    ])
  },
)

t.test('a certificate that was enrolled milliseconds ago connects at once', async (t) => {
  const broker = await open(t)
  const device = await broker.enroll('dev-1')
  const record = broker.replica.records.get(device.fingerprint)
  t.ok(record)
  broker.replica.records.clear()
  const connecting = connectDevice(broker, device)
  await until(() => broker.replica.waiters.size > 0)
  t.equal(broker.sessions.count(), 0)
  if (record !== undefined) broker.replica.put(record)
  const client = await connecting
  t.equal(broker.sessions.count(), 1)
  await client.endAsync()
})

t.test('what the wait promised does not count: the replica is read again', async (t) => {
  const broker = await open(t)
  const device = await broker.enroll('dev-1')
  const record = broker.replica.records.get(device.fingerprint)
  broker.replica.records.clear()
  const refused = returnCode(broker, device)
  await until(() => broker.replica.waiters.size > 0)
  broker.replica.waiters.get(device.fingerprint)?.(record ?? null)
  t.equal(await refused, 5)
})

t.test('a replica that cannot be read admits nobody', async (t) => {
  const broker = await open(t)
  const device = await broker.enroll('dev-1')
  broker.replica.failure = new Error('disk I/O error')
  const raw = await openRaw(broker, device)
  raw.send(connectPacket({ clientId: 'dev-1' }))
  await raw.closed
  t.equal(raw.octets.toString('hex'), '')
  t.equal(broker.sessions.count(), 0)
  broker.replica.failure = null
  await (await connectDevice(broker, device)).endAsync()
})

t.test(
  'a broker that has not heard the registry for too long turns new connections away, not open ones',
  async (t) => {
    const broker = await open(t, { maxStalenessMs: 60_000 })
    const [device, other] = [await broker.enroll('dev-1'), await broker.enroll('dev-2')]
    const client = await connectDevice(broker, device)
    broker.replica.heardAt = Date.now() - 61_000
    t.equal(await returnCode(broker, other, 'dev-2'), 5)
    t.match(broker.refusals(), [{ code: 'R-STALE', device: 'dev-2', evidence: { maxStalenessMs: 60_000 } }])
    await client.publishAsync('devices/dev-1/up', 'still here', { qos: 1 })
    broker.replica.heardAt = null
    t.equal(await returnCode(broker, other, 'dev-2'), 5)
    await client.endAsync()
  },
)

t.test('octets before CONNECT are few and soon over', async (t) => {
  const broker = await open(t, { limits: { connectMs: 300 } })
  const device = await broker.enroll('dev-1')
  const hostile = {
    'another first packet': Buffer.from('c000', 'hex'),
    HTTP: Buffer.from('GET / HTTP/1.1\r\n\r\n'),
    'CONNECT of 4 097 octets': Buffer.from('108120', 'hex'),
    'CONNECT of 256 MB': Buffer.from('10ffffff7f', 'hex'),
    'five octets of length': Buffer.from('10ffffffff01', 'hex'),
    nothing: Buffer.alloc(0),
    'half a CONNECT': Buffer.from('100d00044d5154', 'hex'),
  }
  for (const presented of [device, {}]) {
    for (const [name, octets] of Object.entries(hostile)) {
      const raw = await openRaw(broker, presented)
      raw.send(octets)
      await raw.closed
      t.equal(raw.octets.length, 0, name)
    }
  }
  const violations = broker.refusals('R-PACKET').map(({ evidence }) => String(evidence.violation))
  t.match(violations, [
    ...['the first packet is not CONNECT', 'the first packet is not CONNECT'],
    ...['packet of 4097 octets, 4096 allowed', /^packet of \d+ octets, 4096 allowed/],
    ...['malformed remaining length', /^no CONNECT within/, /^no CONNECT within/],
  ])
  t.equal(violations.length, Object.keys(hostile).length)
  t.equal(broker.refusals('R-NOCERT').length, Object.keys(hostile).length)
  t.equal(broker.sessions.count(), 0)
})

t.test('a CONNECT that drips is cut off at the deadline, refused or not', async (t) => {
  const broker = await open(t, { limits: { connectMs: 200 } })
  const device = await broker.enroll('dev-1')
  for (const presented of [device, {}]) {
    const raw = await openRaw(broker, presented)
    const began = Date.now()
    const drip = setInterval(() => raw.send(Buffer.from([0x10])), 20)
    raw.send(Buffer.from('1020', 'hex'))
    await raw.closed
    clearInterval(drip)
    t.ok(Date.now() - began >= 150)
  }
})

/** The first flight of a TLS client. */
async function clientHello(): Promise<Buffer> {
  const sent = new PassThrough()
  const duplex = Duplex.from({ writable: sent, readable: new PassThrough() })
  const client = tlsConnect({ socket: duplex }).on('error', () => {})
  const [hello] = await once(sent, 'data')
  client.destroy()
  return hello
}

t.test('a client that is silent in the handshake, or drips it, is gone at the deadline', async (t) => {
  const broker = await open(t, { limits: { handshakeMs: 200 } })
  const silent = tcpConnect(broker.port, '127.0.0.1')
  const half = tcpConnect(broker.port, '127.0.0.1', () => half.write(Buffer.from('16030100', 'hex')))
  const dripping = tcpConnect(broker.port, '127.0.0.1', () =>
    dripping.write(Buffer.from('160301020001', 'hex')),
  )
  // The server has answered this one; a record of its second flight drips.
  const hello = await clientHello()
  const answered = tcpConnect(broker.port, '127.0.0.1', () =>
    answered.write(Buffer.concat([hello, Buffer.from('1703034000', 'hex')])),
  )
  const drip = setInterval(() => {
    dripping.write(Buffer.from([0]))
    answered.write(Buffer.from([0]))
  }, 20)
  for (const socket of [silent, half, dripping, answered]) socket.on('error', () => {})
  await Promise.all(
    [silent, half, dripping, answered].map(
      (socket) => new Promise((resolve) => socket.resume().once('close', resolve)),
    ),
  )
  clearInterval(drip)
  t.pass()
})

t.test('more connections than allowed are dropped, and there is room again when others leave', async (t) => {
  const broker = await open(t, { limits: { connections: 2 } })
  const device = await broker.enroll('dev-1')
  const first = await openRaw(broker, device)
  const second = await openRaw(broker, device)
  await t.rejects(openRaw(broker, device))
  first.socket.destroy()
  second.socket.destroy()
  await Promise.all([first.closed, second.closed])
  const isRoom = async () => {
    const again = await openRaw(broker, device).catch(() => null)
    again?.socket.destroy()
    return again !== null
  }
  await until(isRoom)
  t.pass()
})

t.test('only TLS 1.2 and 1.3 with AEAD suites are spoken', async (t) => {
  const broker = await open(t)
  const device = await broker.enroll('dev-1')
  const tls12 = { minVersion: 'TLSv1.2', maxVersion: 'TLSv1.2' } as const
  await t.rejects(
    openRaw(broker, device, { ...tls12, ciphers: 'ECDHE-ECDSA-AES128-SHA256:ECDHE-ECDSA-AES256-SHA' }),
  )
  const old = { minVersion: 'TLSv1', maxVersion: 'TLSv1.1', ciphers: 'DEFAULT@SECLEVEL=0' } as const
  await t.rejects(openRaw(broker, device, old))
  for (const options of [tls12, {}]) {
    const raw = await openRaw(broker, device, options)
    t.match(raw.socket.getCipher().name, /GCM|POLY1305/)
    t.equal((await raw.connect({ clientId: 'dev-1' })).returnCode, 0)
    raw.socket.destroy()
  }
})

t.test('a TLS 1.2 client cannot renegotiate: nobody changes certificates in a connection', async (t) => {
  const broker = await open(t)
  const device = await broker.enroll('dev-1')
  const raw = await openRaw(broker, device, { maxVersion: 'TLSv1.2' })
  await raw.connect({ clientId: 'dev-1' })
  raw.socket.renegotiate({ rejectUnauthorized: false }, () => {})
  await raw.closed
  t.equal((await broker.report('disconnected')).device, 'dev-1')
})

/** Connects, and returns the session with which the connection can be resumed. */
async function session(
  broker: TestBroker,
  device: Presented,
  maxVersion: 'TLSv1.2' | 'TLSv1.3',
): Promise<Buffer> {
  const raw = await openRaw(broker, device, { maxVersion })
  const ticket = maxVersion === 'TLSv1.2' ? undefined : once(raw.socket as TLSSocket, 'session')
  t.equal((await raw.connect({ clientId: device.id ?? '' })).returnCode, 0)
  const [resumable] = (await ticket) ?? [raw.socket.getSession()]
  raw.socket.destroy()
  await raw.closed
  return resumable
}

t.test('a revoked device cannot return with a saved TLS 1.3 ticket or TLS 1.2 session', async (t) => {
  const broker = await open(t)
  for (const version of ['TLSv1.2', 'TLSv1.3'] as const) {
    const device = await broker.enroll(`dev-${version}`)
    const saved = await session(broker, device, version)
    const resumed = await openRaw(broker, device, { maxVersion: version, session: saved })
    t.ok(resumed.socket.isSessionReused(), `${version} resumes`)
    t.equal((await resumed.connect({ clientId: device.id })).returnCode, 0)
    await broker.report('connected', (report) => report.device === device.id && report.resumed)
    resumed.socket.destroy()
    await broker.revoke(device)
    const again = await openRaw(broker, device, { maxVersion: version, session: saved })
    t.ok(again.socket.isSessionReused())
    t.equal((await again.connect({ clientId: device.id })).returnCode, 5)
    t.match(await broker.report('refused', (report) => report.device === device.id), { code: 'R-REVOKED' })
    again.socket.destroy()
  }
})

t.test('a certificate that has expired since is refused on a resumed session', async (t) => {
  let ahead = 0
  const broker = await open(t, { now: () => Date.now() + ahead })
  const device = await broker.enroll('dev-1', { notAfter: Date.now() + 3_600_000 })
  const saved = await session(broker, device, 'TLSv1.3')
  ahead = 3_602_000
  const again = await openRaw(broker, device, { session: saved })
  t.ok(again.socket.isSessionReused())
  t.equal((await again.connect({ clientId: 'dev-1' })).returnCode, 5)
  t.match(await broker.report('refused'), { code: 'R-EXPIRED' })
  again.socket.destroy()
})

t.test(
  'after a reload the new certificate is served, and a CA that was taken away admits nobody',
  async (t) => {
    const broker = await open(t)
    const device = await broker.enroll('dev-1')
    const saved = await session(broker, device, 'TLSv1.3')
    const renewed = await testIdentity(authority, 'broker-1', { kind: 'broker' })
    const credentials = { certificate: renewed.chainPem, key: renewed.keyPem, root: authority.rootPem }
    broker.listener.reload({ ...credentials, trust: [authority.device.pem] })
    const raw = await openRaw(broker, device, { session: saved })
    t.equal(raw.socket.getPeerX509Certificate()?.fingerprint256, renewed.x509.fingerprint256)
    t.equal((await raw.connect({ clientId: 'dev-1' })).returnCode, 0)
    raw.socket.destroy()
    broker.listener.reload({ ...credentials, trust: [] })
    t.equal(await returnCode(broker, device), 5)
    const resumed = await openRaw(broker, device, { session: saved })
    t.equal((await resumed.connect({ clientId: 'dev-1' })).returnCode, 5)
    resumed.socket.destroy()
    t.match(broker.refusals('R-UNKNOWN-CA')[0]?.evidence, { issuer: /device CA/ })
  },
)
