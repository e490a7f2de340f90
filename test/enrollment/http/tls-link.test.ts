import { once } from 'node:events'
import { request } from 'node:https'
import { text } from 'node:stream/consumers'
import { type ConnectionOptions, connect, type TLSSocket } from 'node:tls'
import t from 'tap'
import { generateKey } from '#shared/pki/keys'
import { createCsr } from '#shared/pki/x509'
import { checkLink } from '../../../enrollment/channel.ts'
import { enrollDevice, type RunningEnrollment, startEnrollment } from '../../support/enrollment.ts'

/** `SSL_OP_NO_EXTENDED_MASTER_SECRET`, which node:crypto has no name for. */
const NO_EXTENDED_MASTER_SECRET = 1

type Replies = (service: RunningEnrollment) => Promise<TLSSocket>
const over =
  (options: ConnectionOptions): Replies =>
  async (service) => {
    const { enrollment: port } = service.config.ports
    const socket = connect({ port, host: '127.0.0.1', servername: 'localhost', ca: service.root, ...options })
    await once(socket, 'secureConnect')
    return socket
  }
const tls12 = over({ maxVersion: 'TLSv1.2' })

/** What the client has to send: the first Finished message of the handshake, which it sent itself in a full one. */
function tlsUnique(socket: TLSSocket): string {
  const first = socket.isSessionReused() ? socket.getPeerFinished() : socket.getFinished()
  return first?.toString('base64') ?? ''
}

async function post(socket: TLSSocket, path: string, headers: Record<string, string>, body: string) {
  const sent = request({
    createConnection: () => socket,
    method: 'POST',
    path,
    headers: { host: 'localhost', 'content-length': String(body.length), ...headers },
  })
  sent.end(body)
  const [reply] = await once(sent, 'response')
  return { status: reply.statusCode as number, text: await text(reply) } // of an IncomingMessage
}

t.test('a request that is linked to its connection', async (t) => {
  const service = await startEnrollment(t)
  const { admin } = service
  await admin.createFleet({ id: 'linked', profile: { linkedToTls: true } })
  await admin.createBatch({ id: 'linked', fleet: 'linked' })
  let count = 0
  const enroll = async (socket: TLSSocket, challengePassword: string | undefined, batch = 'linked') => {
    const { token } = await admin.createToken({ batch, uses: 1 })
    const commonName = `link-${++count}`
    const password = challengePassword === undefined ? {} : { challengePassword }
    const { der } = await createCsr({ key: generateKey(), commonName, ...password })
    const authorization = `Basic ${Buffer.from(`:${token}`).toString('base64')}`
    const headers = { 'content-type': 'application/pkcs10', authorization }
    return post(socket, '/.well-known/est/simpleenroll', headers, der.toString('base64'))
  }

  t.test('is accepted over TLS 1.2, in a full handshake and a resumed one', async (t) => {
    const first = await tls12(service)
    t.equal((await enroll(first, tlsUnique(first))).status, 200)
    const session = first.getSession()
    const second = await over({ maxVersion: 'TLSv1.2', ...(session ? { session } : {}) })(service)
    t.ok(second.isSessionReused())
    t.equal((await enroll(second, tlsUnique(second))).status, 200)
  })

  t.test('is refused with the link of another connection, whoever demands it or not', async (t) => {
    const other = await tls12(service)
    t.teardown(() => other.destroy())
    for (const batch of ['linked', 'lab']) {
      const reply = await enroll(await tls12(service), tlsUnique(other), batch)
      t.match(reply, { status: 422, text: /^R-CSR-LINK.*another connection/ }, batch)
    }
  })

  t.test('is refused without a link, where the fleet demands one', async (t) => {
    const wrong: [string, string | undefined, Replies, RegExp][] = [
      ['no password', undefined, tls12, /carries no tls-unique/],
      ['a password of another kind', 'secret', tls12, /carries no tls-unique/],
      ['TLS 1.3', 'AAAAAAAAAAAAAAAA', over({}), /TLS 1\.3 has no tls-unique/],
      [
        'no extended master secret',
        'AAAAAAAAAAAAAAAA',
        over({ maxVersion: 'TLSv1.2', secureOptions: NO_EXTENDED_MASTER_SECRET }),
        /without the extended master secret/,
      ],
    ]
    for (const [name, password, connected, says] of wrong) {
      const reply = await enroll(await connected(service), password)
      t.match(reply, { status: 422, text: /^R-CSR-LINK/ }, name)
      t.match(reply.text, says)
    }
  })

  t.test('is not needed elsewhere, and then a password means nothing', async (t) => {
    for (const password of [undefined, 'secret']) {
      t.equal((await enroll(await tls12(service), password, 'lab')).status, 200)
      t.equal((await enroll(await over({})(service), password, 'lab')).status, 200)
    }
  })

  t.test('renews, and csrattrs asks for it', async (t) => {
    const device = await enrollDevice(service, { id: 'drifter' })
    await admin.setProfile('default', { linkedToTls: true })
    const pair = { cert: device.certificate, key: device.key }
    const renew = async (linked: boolean) => {
      const socket = await over({ maxVersion: 'TLSv1.2', ...pair })(service)
      const challengePassword = linked ? tlsUnique(socket) : 'none'
      const { pem } = await createCsr({ key: generateKey(), commonName: 'drifter', challengePassword })
      const headers = { 'content-type': 'application/json' }
      return post(socket, '/v1/renew', headers, JSON.stringify({ csr: pem }))
    }
    t.match(await renew(false), { status: 422, text: /R-CSR-LINK/ })
    t.equal((await renew(true)).status, 200)
    const { text } = await service.client().send('GET', '/.well-known/est/linked/csrattrs')
    t.ok(Buffer.from(text, 'base64').includes(Buffer.from('06092a864886f70d010907', 'hex')))
  })
})

t.test('no text of a password makes anything but a verdict', async (t) => {
  const channel = { tlsUnique: 'AAAAAAAAAAAAAAAA' }
  t.equal(checkLink(channel.tlsUnique, channel), null)
  for (const text of ['', 'a', 'A'.repeat(15), 'A'.repeat(17), '\0'.repeat(16), 'AAAAAAAAAAAAAA==']) {
    t.type(checkLink(text, channel), 'string')
  }
  t.throws(() => checkLink('BAAAAAAAAAAAAAAA', channel), { code: 'csr_link' })
})
