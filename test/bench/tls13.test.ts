import { once } from 'node:events'
import { type AddressInfo, connect } from 'node:net'
import { createServer, type TLSSocket } from 'node:tls'
import t, { type Test } from 'tap'
import { generateKey, privateKeyPem } from '#shared/pki/keys'
import { arrivalOf, arrive, verifyServer } from '../../bench/arrivals.ts'
import { Tls13Client } from '../../bench/tls13-client.ts'
import type { Ticket } from '../../bench/tls13-hello.ts'
import { type TestAuthority, testAuthority, testIdentity } from '../support/pki.ts'

/** A TLS server of Node that asks for certificates, and answers whatever comes with a CONNACK. */
async function listen(t: Test, authority: TestAuthority, { answer = '20020000' } = {}) {
  const identity = await testIdentity(authority, 'broker-1', { kind: 'broker' })
  const met: { readonly name: string | undefined; readonly isResumed: boolean; readonly said: string }[] = []
  const server = createServer({
    ...{ cert: identity.chainPem, key: identity.keyPem, requestCert: true },
    ca: [authority.rootPem, authority.device.pem],
  })
  server.on('secureConnection', (socket: TLSSocket) => {
    socket.on('error', () => socket.destroy())
    socket.once('data', (octets) => {
      const { subject } = socket.getPeerX509Certificate() ?? {}
      met.push({ name: subject, isResumed: socket.isSessionReused(), said: octets.toString('hex', 0, 8) })
      socket.write(Buffer.from(answer, 'hex'))
    })
  })
  server.on('tlsClientError', (_, socket) => socket.destroy())
  server.listen(0, '127.0.0.1')
  await once(server, 'listening')
  t.teardown(() => new Promise((resolve) => server.close(resolve)))
  return { met, port: (server.address() as AddressInfo).port } // listening on TCP
}

async function setUp(t: Test) {
  const authority = await testAuthority()
  t.teardown(() => authority.remove())
  const { id, pem, keyPem } = await testIdentity(authority, 'dev-1')
  return { authority, pair: { id, certificate: pem, key: keyPem } }
}

t.test(
  'the TLS of the load proves its certificate, sends CONNECT, and resumes what it was given',
  async (t) => {
    const { authority, pair } = await setUp(t)
    const { met, port } = await listen(t, authority)
    const tickets = new Map<string, Ticket>()
    const load = { port, arrivals: [arrivalOf(pair)], atOnce: 1 }
    const seen: boolean[] = []
    const connectWith = (how: { count: number; tickets: typeof tickets | null }) =>
      arrive({ ...load, ...how }, (socket, { isResumed }) => {
        seen.push(isResumed)
        socket.destroy()
      })
    await connectWith({ count: 2, tickets: null })
    await connectWith({ count: 4, tickets })
    const [none, yes] = [false, true]
    t.strictSame(seen, [none, none, none, yes, yes, yes])
    t.strictSame(
      met.map(({ isResumed }) => isResumed),
      seen,
      'server and load agree',
    )
    for (const { name, said } of met)
      t.strictSame([name, said], ['CN=dev-1', '1011000400044d51'.slice(0, 4).concat(said.slice(4))])
    await verifyServer({ port, ca: authority.rootPem }, pair)
    const other = await testAuthority()
    t.teardown(() => other.remove())
    await t.rejects(verifyServer({ port, ca: other.rootPem }, pair), /self-signed|issuer|unable/)
  },
)

t.test(
  'the load stops at a CONNACK that refuses, and at a server that refuses its certificate',
  async (t) => {
    const { authority, pair } = await setUp(t)
    const refusing = await listen(t, authority, { answer: '20020005' })
    const load = { arrivals: [arrivalOf(pair)], count: 1, atOnce: 1, tickets: null }
    const accepted = () => t.fail('it was let in')
    await t.rejects(arrive({ ...load, port: refusing.port }, accepted), { message: /20020005/ })
    const { port } = await listen(t, authority)
    const forged = arrivalOf({ ...pair, key: privateKeyPem(generateKey()) })
    await t.rejects(arrive({ ...load, arrivals: [forged], port }, accepted), { code: 'unavailable' })
  },
)

t.test('octets that were changed on the way end the handshake', async (t) => {
  const { authority, pair } = await setUp(t)
  const { port } = await listen(t, authority)
  const socket = connect(port, '127.0.0.1')
  await once(socket, 'connect')
  const failed = Promise.withResolvers<Error>()
  socket.on('data', (octets) => {
    octets[octets.length - 1] = (octets[octets.length - 1] ?? 0) ^ 1 // seen by the next listener
  })
  new Tls13Client(socket, {
    identity: arrivalOf(pair).identity,
    ticket: null,
    events: {
      opened: () => failed.reject(new Error('opened')),
      received: () => failed.reject(new Error('received')),
      ticket: null,
      failed: failed.resolve,
    },
  })
  t.ok((await failed.promise) instanceof Error)
})
