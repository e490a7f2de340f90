import { X509Certificate } from 'node:crypto'
import tls from 'node:tls'
import t from 'tap'
import { testAuthority, testIdentity } from '../../support/pki.ts'

/** One handshake; resolves with what each side thinks of the other. */
async function handshake(server: tls.TlsOptions, client: tls.ConnectionOptions) {
  const listener = tls.createServer({ requestCert: true, rejectUnauthorized: false, ...server })
  const seen = new Promise<{ authorized: boolean; error: string }>((resolve) => {
    listener.once('secureConnection', (socket) => {
      socket.on('error', () => {})
      resolve({ authorized: socket.authorized, error: String(socket.authorizationError ?? '') })
      socket.end()
    })
  })
  await new Promise<void>((resolve) => listener.listen(0, '127.0.0.1', resolve))
  const address = listener.address()
  const port = typeof address === 'object' && address !== null ? address.port : 0
  const socket = tls.connect({ host: '127.0.0.1', port, rejectUnauthorized: false, ...client })
  const verdict = await new Promise<{ authorized: boolean; error: string }>((resolve, reject) => {
    socket.once('error', reject)
    socket.once('secureConnect', () => {
      resolve({ authorized: socket.authorized, error: String(socket.authorizationError ?? '') })
    })
  })
  const result = { server: await seen, client: verdict }
  socket.destroy()
  await new Promise((resolve) => listener.close(resolve))
  return result
}

t.test('TLS trusts each issuing CA for what it is there for', async (t) => {
  const authority = await testAuthority()
  t.teardown(() => authority.remove())
  const device = await testIdentity(authority, 'dev-1')
  const operator = await testIdentity(authority, 'olga', { kind: 'operator' })
  const broker = await testIdentity(authority, 'broker-1', { kind: 'broker' })
  const server = { key: broker.keyPem, cert: broker.chainPem, ca: [authority.device.pem, authority.rootPem] }
  const client = { ca: authority.rootPem, key: device.keyPem, cert: device.chainPem }
  t.match(await handshake(server, client), { server: { authorized: true }, client: { authorized: true } })

  // signed with the key of the device CA, as a thief of it would
  const thief = await testIdentity(
    { ...authority, infrastructure: { ...authority.device, kind: 'infrastructure' } },
    'broker-1',
    { kind: 'broker' },
  )
  const forged = await handshake({ ...server, key: thief.keyPem, cert: thief.chainPem }, client)
  t.match(
    forged.client,
    { authorized: false, error: /INVALID_PURPOSE/ },
    'a server that the device CA has signed',
  )

  // Node drops allowPartialTrustChain, so the root must be an anchor and listeners compare the issuer themselves
  const partial = { ...server, ca: authority.device.pem, allowPartialTrustChain: true }
  t.match(await handshake(partial, client), { server: { authorized: false } })
  const other = await handshake(server, { ...client, key: operator.keyPem, cert: operator.chainPem })
  t.match(other.server, { authorized: true })
  const deviceCa = new X509Certificate(authority.device.pem)
  t.equal(operator.x509.checkIssued(deviceCa) && operator.x509.verify(deviceCa.publicKey), false)
  t.equal(device.x509.checkIssued(deviceCa) && device.x509.verify(deviceCa.publicKey), true)
})
