import { once } from 'node:events'
import { type AddressInfo, createServer, connect as tcpConnect } from 'node:net'
import { connect, createServer as createTlsServer, type TLSSocket } from 'node:tls'
import t, { type Test } from 'tap'
import { generateKey, privateKeyPem } from '#shared/pki/keys'
import { type Credentials, use } from '../../broker/door/tls.ts'
import { openTestBroker, type TestBroker } from '../support/broker.ts'
import { brokersOf } from '../support/broker-opener.ts'
import { enter, openRaw, type Presented } from '../support/mqtt-clients.ts'
import { testAuthority, testIdentity } from '../support/pki.ts'

const authority = await testAuthority()
const stranger = await testAuthority()
t.teardown(() => {
  authority.remove()
  stranger.remove()
})

const open = brokersOf(authority)

/** Numbers of the groups (RFC 8446 section 4.2.7; IANA "TLS Supported Groups"). */
const X25519MLKEM768 = 0x11ec
const X25519 = 0x1d
const P384 = 0x18

/** The group of the key share in a ServerHello: the one that was agreed on (RFC 8446 section 4.2.8). */
function agreedGroup(flight: Buffer): number {
  const hello = flight.subarray(5)
  let at = 4 + 2 + 32 // header, version, random
  at += 1 + (hello[at] ?? 0) + 2 + 1 // session id, suite, compression
  const end = at + 2 + hello.readUInt16BE(at)
  for (at += 2; at < end; at += 4 + hello.readUInt16BE(at + 2)) {
    if (hello.readUInt16BE(at) === 51) return hello.readUInt16BE(at + 4)
  }
  throw new Error('no key share')
}

/** The group that a client with these settings and the broker agree on, read off the wire. */
async function groupOf(t: Test, broker: TestBroker, ecdhCurve?: string): Promise<number> {
  const flights: Buffer[] = []
  const wire = createServer((client) => {
    const server = tcpConnect(broker.port, '127.0.0.1')
    client.pipe(server).pipe(client)
    server.on('data', (chunk) => flights.push(chunk))
    for (const socket of [client, server]) socket.on('error', () => {})
  })
  wire.listen(0, '127.0.0.1')
  await once(wire, 'listening')
  t.teardown(() => wire.close())
  const { port } = wire.address() as AddressInfo // listening on TCP
  const settings = ecdhCurve === undefined ? {} : { ecdhCurve }
  const raw = await openRaw({ port, authority }, {}, settings)
  raw.socket.destroy()
  return agreedGroup(Buffer.concat(flights))
}

t.test(
  'two peers of this Node agree on the hybrid group that a quantum computer does not open',
  async (t) => {
    const broker = await open(t)
    t.equal(await groupOf(t, broker), X25519MLKEM768)
  },
)

t.test('a client that knows classical groups only is served with one', async (t) => {
  const broker = await open(t)
  t.equal(await groupOf(t, broker, 'X25519'), X25519)
  t.equal(await groupOf(t, broker, 'P-384'), P384)
  const raw = await openRaw(broker, {}, { ecdhCurve: 'P-256', maxVersion: 'TLSv1.2' })
  raw.socket.destroy()
  await t.rejects(openRaw(broker, {}, { ecdhCurve: 'secp521r1' }), 'no group in common')
})

const VERSIONS = ['TLSv1.2', 'TLSv1.3'] as const

/** Connects, and returns the session with which the connection can be resumed. */
async function session(broker: TestBroker, device: Presented, version: (typeof VERSIONS)[number]) {
  const raw = await openRaw(broker, device, { maxVersion: version })
  const ticket = version === 'TLSv1.2' ? undefined : once(raw.socket as TLSSocket, 'session')
  await raw.connect({ clientId: device.id ?? '' })
  const [saved] = (await ticket) ?? [raw.socket.getSession()]
  raw.socket.destroy()
  await raw.closed
  return saved as Buffer // `session` is emitted with one; after CONNACK there is one
}

/** Comes back with a saved session; tells whether TLS resumed it, and what CONNACK said. */
async function comeBack(
  broker: TestBroker,
  device: Presented,
  saved: Buffer,
  version: 'TLSv1.2' | 'TLSv1.3',
) {
  const raw = await openRaw(broker, device, { maxVersion: version, session: saved })
  const isResumed = raw.socket.isSessionReused()
  const { returnCode } = await raw.connect({ clientId: device.id ?? '' })
  raw.socket.destroy()
  await raw.closed
  return { isResumed, returnCode }
}

const EXPIRES_MS = 3_600_000
const RESUMED_AND_REFUSED = {
  revoked: { code: 'R-REVOKED', end: (broker: TestBroker, device: TestDevice) => broker.revoke(device) },
  held: { code: 'R-HELD', end: (broker: TestBroker, device: TestDevice) => broker.hold(device) },
  expired: {
    code: 'R-EXPIRED',
    end(_: TestBroker, __: TestDevice, clock: { ahead: number }) {
      clock.ahead = EXPIRES_MS + 2_000
    },
  },
} as const
type TestDevice = Awaited<ReturnType<TestBroker['enroll']>>

for (const [state, { code, end }] of Object.entries(RESUMED_AND_REFUSED)) {
  t.test(
    `a device that was ${state} resumes TLS and is refused, also by a broker that restarted with the same ticket keys`,
    async (t) => {
      const ticketKeys = Buffer.alloc(48, 7)
      const clock = { ahead: 0 }
      const now = () => Date.now() + clock.ahead
      const first = await openTestBroker({ authority, ticketKeys, now })
      const returning = []
      for (const version of VERSIONS) {
        const device = await first.enroll(`dev-${version}`, { notAfter: Date.now() + EXPIRES_MS })
        returning.push({ version, device, saved: await session(first, device, version) })
      }
      for (const { version, device, saved } of returning) {
        t.same(await comeBack(first, device, saved, version), { isResumed: true, returnCode: 0 }, version)
      }
      for (const { device } of returning) await end(first, device, clock)
      for (const { version, device, saved } of returning) {
        t.same(await comeBack(first, device, saved, version), { isResumed: true, returnCode: 5 }, version)
      }
      const records = [...first.replica.records.values()]
      await first.close()

      const second = await open(t, { ticketKeys, now })
      for (const record of records) second.replica.put(record)
      for (const { version, device, saved } of returning) {
        t.same(await comeBack(second, device, saved, version), { isResumed: true, returnCode: 5 }, version)
        t.equal(
          (await second.report('refused', ({ fingerprint }) => fingerprint === device.fingerprint)).code,
          code,
        )
      }
    },
  )
}

t.test(
  'a broker that restarts without its ticket keys, which are never written, makes full handshakes',
  async (t) => {
    const first = await openTestBroker({ authority })
    const device = await first.enroll('dev-1')
    const saved = await session(first, device, 'TLSv1.3')
    const records = [...first.replica.records.values()]
    await first.close()
    const second = await open(t)
    for (const record of records) second.replica.put(record)
    t.same(await comeBack(second, device, saved, 'TLSv1.3'), { isResumed: false, returnCode: 0 })
  },
)

/** What the broker of a test presents and trusts. */
async function material(options: Partial<Credentials> & { hosts?: string[]; notAfter?: number } = {}) {
  const { hosts, notAfter, ...changed } = options
  const server = await testIdentity(authority, 'broker-1', {
    kind: 'broker',
    ...(hosts === undefined ? {} : { hosts }),
    ...(notAfter === undefined ? {} : { notAfter, notBefore: notAfter - 1_000_000 }),
  })
  const good = { certificate: server.chainPem, key: server.keyPem, root: authority.rootPem }
  return { ...good, trust: [authority.device.pem], ...changed } satisfies Credentials
}

/** Fingerprint of the certificate that a newcomer is shown. */
async function shownCertificate(broker: TestBroker): Promise<string> {
  const { socket } = await openRaw(broker, {})
  const shown = socket.getPeerX509Certificate()
  socket.destroy()
  if (shown === undefined) throw new Error('no certificate was shown')
  return shown.fingerprint256
}

t.test('new material is served to newcomers, and who is connected stays', async (t) => {
  const broker = await open(t)
  const device = await broker.enroll('dev-1')
  const live = await enter(broker, device)
  const before = await shownCertificate(broker)
  broker.listener.reload(await material())
  t.not(await shownCertificate(broker), before)
  t.same(broker.listener.faults(), [])
  await live.ping()
  const other = await enter(broker, await broker.enroll('dev-2'))
  await other.ping()
})

t.test(
  'material that cannot serve is refused with a reason, and what was there before goes on',
  async (t) => {
    const broker = await open(t)
    const device = await broker.enroll('dev-1')
    const live = await enter(broker, device)
    const before = await shownCertificate(broker)
    const foreign = await testIdentity(stranger, 'broker-1', { kind: 'broker' })
    const clientOnly = await testIdentity(authority, 'dev-9')
    const service = await testIdentity(authority, 'broker-1', { kind: 'broker' })
    const hour = 3_600_000
    const bad: [string, Partial<Credentials> & { hosts?: string[]; notAfter?: number }, RegExp][] = [
      ['no PEM', { certificate: 'nothing' }, /missing/],
      ['a broken certificate', { certificate: service.chainPem.replace('MII', 'MIX') }, /cannot be used/],
      ['a broken key', { key: service.keyPem.slice(0, 40) }, /cannot be used/],
      ['the key of another', { key: privateKeyPem(generateKey()) }, /does not belong/],
      ['another root', { certificate: foreign.chainPem, key: foreign.keyPem }, /does not end at a root/],
      ['a chain with a gap', { certificate: service.pem, key: service.keyPem }, /does not end at a root/],
      [
        'a chain in which one did not sign the other',
        { certificate: service.pem + authority.device.pem, key: service.keyPem },
        /not signed by the next/,
      ],
      ['an expired certificate', { notAfter: Date.now() - hour }, /expired/],
      ['one that is not valid yet', { notAfter: Date.now() + 1_000_000 + hour }, /valid from/],
      ['one for clients only', { certificate: clientOnly.chainPem, key: clientOnly.keyPem }, /SAN URI/],
      ['one without a name of this broker', { hosts: ['elsewhere.test'] }, /does not name localhost/],
    ]
    for (const [what, changed, reason] of bad) {
      broker.listener.reload(await material(changed))
      t.match(broker.listener.faults(), [reason], what)
      t.equal(await shownCertificate(broker), before, what)
      await live.ping()
      await (await enter(broker, await broker.enroll(`dev-${what.replaceAll(' ', '-')}`))).ping()
    }
    t.match(broker.logged(), /TLS material refused/)
    broker.listener.reload(await material())
    t.same(broker.listener.faults(), [])
    t.not(await shownCertificate(broker), before)
  },
)

t.test(
  'an issuer that cannot vouch is left out, and one that was taken away is gone in any case',
  async (t) => {
    const broker = await open(t)
    const device = await broker.enroll('dev-1')
    const saved = await session(broker, device, 'TLSv1.3')
    const live = await enter(broker, device)
    const leaf = await testIdentity(authority, 'dev-7')
    broker.listener.reload(
      await material({ trust: [authority.device.pem, stranger.device.pem, leaf.pem, 'nothing'] }),
    )
    t.match(broker.listener.faults(), [/does not end at a root/, /is no CA/, /cannot be read/])
    await live.ping()
    t.equal((await comeBack(broker, await broker.enroll('dev-2'), saved, 'TLSv1.3')).returnCode, 0)
    const key = privateKeyPem(generateKey())
    broker.listener.reload(await material({ key, trust: [] }))
    t.match(broker.listener.faults(), [/does not belong/])
    const raw = await openRaw(broker, device, { session: saved })
    t.notOk(raw.socket.isSessionReused(), 'the keys of its ticket are gone')
    t.equal((await raw.connect({ clientId: 'dev-1' })).returnCode, 5)
    raw.socket.destroy()
  },
)

t.test(
  'another certificate, and a CA less, end the tickets that were made before; an issuer more does not',
  async (t) => {
    const broker = await open(t)
    const device = await broker.enroll('dev-1')
    const first = await material()
    broker.listener.reload(first)
    const saved = await session(broker, device, 'TLSv1.3')
    broker.listener.reload({ ...first, trust: [authority.device.pem, authority.infrastructure.pem] })
    t.same(await comeBack(broker, device, saved, 'TLSv1.3'), { isResumed: true, returnCode: 0 })
    broker.listener.reload(first)
    t.same(await comeBack(broker, device, saved, 'TLSv1.3'), { isResumed: false, returnCode: 0 })
    const again = await session(broker, device, 'TLSv1.3')
    broker.listener.reload(await material())
    t.same(await comeBack(broker, device, again, 'TLSv1.3'), { isResumed: false, returnCode: 0 })
  },
)

t.test(
  'a chain ends at a CA that is trusted: that the root has signed it is not verified anew',
  async (t) => {
    const { certificate: cert, key } = await material()
    const server = createTlsServer({ requestCert: true, rejectUnauthorized: false })
    use(server, { cert, key, ca: authority.device.pem }) // and not the root, where a chain would have to end otherwise
    server.listen(0, '127.0.0.1')
    await once(server, 'listening')
    t.teardown(() => server.close())
    const { port } = server.address() as AddressInfo // listening on TCP
    for (const [whose, isVerified] of [
      [authority, true],
      [stranger, false],
    ] as const) {
      const device = await testIdentity(whose, 'dev-1')
      const client = connect({ port, rejectUnauthorized: false, key: device.keyPem, cert: device.pem })
      const [socket] = (await once(server, 'secureConnection')) as [TLSSocket] // what a TLS server emits
      t.equal(socket.authorized, isVerified)
      client.destroy()
      await once(socket.resume(), 'close')
    }
  },
)
