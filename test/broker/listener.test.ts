import { once } from 'node:events'
import { connect as connectTcp } from 'node:net'
import { connect as connectTls } from 'node:tls'
import t from 'tap'
import { handshakeFault } from '../../broker/door/handshake-faults.ts'
import { openTestBroker, until } from '../support/broker.ts'
import { connectDevice, refusalOf } from '../support/mqtt-clients.ts'
import { testAuthority } from '../support/pki.ts'
import fc from '../support/properties.ts'

const authority = await testAuthority()
t.teardown(() => authority.remove())

t.test('an enrolled device connects, publishes to itself and is reported', async (t) => {
  const broker = await openTestBroker({ authority })
  t.teardown(() => broker.close())
  const device = await broker.enroll('dev-1')
  const client = await connectDevice(broker, device)
  const received = new Promise((resolve) =>
    client.once('message', (_, payload) => resolve(payload.toString())),
  )
  await client.subscribeAsync('devices/dev-1/#', { qos: 1 })
  await client.publishAsync('devices/dev-1/up', 'hello', { qos: 1 })
  t.equal(await received, 'hello')
  t.match(await broker.report('connected'), {
    device: 'dev-1',
    fingerprint: device.fingerprint,
    resumed: false,
  })
  t.equal(broker.sessions.count(), 1)
  await client.endAsync()
  t.match(await broker.report('disconnected'), { device: 'dev-1', reason: 'client' })
  t.equal(broker.sessions.count(), 0)
  t.same(broker.mqtt.registered(), { ids: [], counted: 0 })
})

t.test('a client without a certificate is told that it is not authorized', async (t) => {
  const broker = await openTestBroker({ authority })
  t.teardown(() => broker.close())
  t.equal(refusalOf(await connectDevice(broker, {}).catch((error) => error)), 5)
  t.match(await broker.report('refused'), { code: 'R-NOCERT', evidence: { address: '127.0.0.1' } })
})

t.test(
  'a handshake that fails is a refusal that says what for, once a minute for each address',
  async (t) => {
    const broker = await openTestBroker({ authority })
    t.teardown(() => broker.close())
    const plain = async (octets: string | null) => {
      const socket = connectTcp(broker.port, '127.0.0.1')
      socket.on('error', () => {}) // 'close' follows
      const closed = new Promise((resolve) => socket.once('close', resolve))
      await once(socket, 'connect')
      if (octets === null) socket.resetAndDestroy()
      else socket.write(octets)
      await closed
    }
    const tls = async (options: object) => {
      const socket = connectTls({ port: broker.port, host: '127.0.0.1', servername: 'localhost', ...options })
      socket.on('error', () => {}) // 'close' follows
      await new Promise((resolve) => socket.once('close', resolve))
    }
    await plain(null)
    await plain('\u0010\u000d\u0000\u0004MQTT\u0004\u0002\u0000\u003c\u0000\u0001a')
    await plain('\u0010\u000d\u0000\u0004MQTT\u0004\u0002\u0000\u003c\u0000\u0001a')
    await plain('GET / HTTP/1.1\r\n\r\n')
    const legacy = {
      maxVersion: 'TLSv1.2',
      ciphers: 'ECDHE-ECDSA-AES128-SHA:@SECLEVEL=0',
      rejectUnauthorized: false,
    }
    await tls(legacy)
    await tls({
      minVersion: 'TLSv1.1',
      maxVersion: 'TLSv1.1',
      ciphers: 'ALL:@SECLEVEL=0',
      rejectUnauthorized: false,
    })
    await until(() => broker.refusals('R-TLS').length === 4)
    t.match(
      broker.refusals('R-TLS').map(({ evidence }) => evidence),
      [
        { fault: 'wrong_version_number', means: 'it is not TLS', address: '127.0.0.1' },
        { fault: 'http_request', means: 'it is not TLS' },
        { fault: 'no_shared_cipher', means: /AEAD/ },
        { fault: 'unsupported_protocol', means: /neither TLS 1\.2 nor 1\.3/ },
      ],
    )
    t.same(new Set(broker.refusals('R-TLS').map(({ device }) => device)), new Set([null]))
    t.equal(broker.refusals().length, 4, 'who goes away without a word is none')
  },
)

t.test('what the client says of the certificate of the broker is told', async (t) => {
  const of = (code: string) => handshakeFault(Object.assign(new Error('x'), { code }))
  t.match(of('ERR_SSL_TLSV1_ALERT_UNKNOWN_CA'), { means: /does not trust the root/ })
  t.match(of('ERR_SSL_SSL/TLS_ALERT_CERTIFICATE_EXPIRED'), { means: /clock/ })
  t.match(of('ERR_SSL_SSL/TLS_ALERT_BAD_CERTIFICATE'), { means: /refuses the certificate/ })
  t.match(of('ERR_SSL_NO_APPLICATION_PROTOCOL'), { means: /ALPN/ })
  t.same(of('ERR_SSL_LENGTH_MISMATCH'), { fault: 'length_mismatch' })
  for (const spoiled of ['decryption_failed_or_bad_record_mac', 'ssl/tls_alert_bad_record_mac'])
    t.same(of(`ERR_SSL_${spoiled.toUpperCase()}`), { fault: spoiled }, 'it is TLS')
  for (const code of ['ECONNRESET', 'ERR_TLS_HANDSHAKE_TIMEOUT', '']) t.equal(of(code), null, code)
})

t.test('whatever code an error has, its fault is short, or none', async () => {
  fc.assert(
    fc.property(fc.oneof(fc.string(), fc.stringMatching(/^ERR_SSL_[A-Z/_]{1,200}$/)), (code) => {
      const fault = handshakeFault(Object.assign(new Error('x'), { code }))
      return fault === null || String(fault.fault).length <= 80
    }),
  )
})
