import { once } from 'node:events'
import type { AddressInfo } from 'node:net'
import { createServer, type TLSSocket } from 'node:tls'
import { Aedes } from 'aedes'
import t, { type Test } from 'tap'
import { isMusterError } from '#shared/errors'
import { systemClock } from '../../device-sim/clock.ts'
import { type LinkOptions, openLink } from '../../device-sim/mqtt-link.ts'
import { Witness } from '../../device-sim/witness.ts'
import { testAuthority, testIdentity } from '../support/pki.ts'

const authority = await testAuthority()
t.teardown(() => authority.remove())
const server = await testIdentity(authority, 'broker-1', { kind: 'broker' })
const lamp = await testIdentity(authority, 'lamp')

/** A real MQTT broker behind real TLS, which refuses the client ids in `refused`, and tells those in `busy` to come later. */
async function startBroker(t: Test) {
  const refused = new Set<string>()
  const busy = new Set<string>()
  const aedes = await Aedes.createBroker({
    authenticate: ({ id }, _user, _password, done) => {
      const error = Object.assign(new Error('no'), { returnCode: busy.has(id) ? 3 : 5 })
      if (refused.has(id) || busy.has(id))
        done(error as Parameters<typeof done>[0], false) // the type wants a library class of the same shape
      else done(null, true)
    },
    authorizeSubscribe: (_client, subscription, done) =>
      done(null, subscription.topic === 'forbidden' ? null : subscription),
  })
  const sockets = new Set<TLSSocket>()
  const tls = createServer(
    {
      key: server.keyPem,
      cert: server.chainPem,
      ca: authority.device.pem,
      requestCert: true,
      rejectUnauthorized: false,
    },
    (socket) => {
      sockets.add(socket)
      aedes.handle(socket)
    },
  )
  tls.listen(0, '127.0.0.1')
  await once(tls, 'listening')
  t.teardown(async () => {
    for (const socket of sockets) socket.destroy()
    tls.close()
    await new Promise<void>((resolve) => aedes.close(() => resolve()))
  })
  const { port } = tls.address() as AddressInfo // it listens on TCP
  return { aedes, refused, busy, sockets, url: `mqtts://127.0.0.1:${port}` }
}

function linkOptions(url: string): LinkOptions {
  return {
    url,
    ca: authority.rootPem,
    clientId: 'lamp',
    certificate: lamp.chainPem,
    key: lamp.keyPem,
    now: systemClock.now,
  }
}

t.test(
  'a link publishes until the broker has acknowledged, and receives what it subscribed to',
  async (t) => {
    const broker = await startBroker(t)
    const arrived = Promise.withResolvers<string>()
    const onMessage = (topic: string, payload: Buffer) => arrived.resolve(`${topic} ${payload}`)
    const link = await openLink({ ...linkOptions(broker.url), onMessage })
    await link.subscribe('devices/lamp/#')
    await link.publish('devices/lamp/telemetry', 'on')
    t.equal(await arrived.promise, 'devices/lamp/telemetry on')
    await t.rejects(link.subscribe('forbidden'), { code: 'forbidden' })
    await link.end()
  },
)

t.test('a refused device hears CONNACK 5', async (t) => {
  const broker = await startBroker(t)
  broker.refused.add('lamp')
  await t.rejects(openLink(linkOptions(broker.url)), { code: 'forbidden', evidence: { returnCode: 5 } })
})

t.test('a broker that asks to come later says nothing of the pair', async (t) => {
  const broker = await startBroker(t)
  broker.busy.add('lamp')
  await t.rejects(openLink(linkOptions(broker.url)), { code: 'unreachable' })
})

t.test('a broker that is not there, or is another, is unreachable', async (t) => {
  const broker = await startBroker(t)
  await t.rejects(openLink(linkOptions('mqtts://127.0.0.1:1')), { code: 'unreachable' })
  const other = await testAuthority()
  t.teardown(() => other.remove())
  await t.rejects(openLink({ ...linkOptions(broker.url), ca: other.rootPem }), { code: 'unreachable' })
})

t.test('the time of a close is known, and what was not acknowledged fails', async (t) => {
  const broker = await startBroker(t)
  const link = await openLink(linkOptions(broker.url))
  const before = systemClock.now()
  const pending = link.publish('devices/lamp/telemetry', 'never acknowledged')
  for (const socket of broker.sockets) socket.destroy()
  await t.rejects(pending, { code: 'unreachable' })
  t.ok((await link.closed) >= before)
  await t.rejects(link.publish('devices/lamp/telemetry', 'too late'), { code: 'unreachable' })
  await link.end()
})

t.test('a TLS session is resumed by the next link', async (t) => {
  const broker = await startBroker(t)
  const first = await openLink(linkOptions(broker.url))
  await first.publish('devices/lamp/telemetry', 'so that the tickets have arrived')
  const session = first.session()
  await first.end()
  t.ok(session)
  const second = await openLink({ ...linkOptions(broker.url), session })
  t.equal(first.resumed, false)
  t.equal(second.resumed, true)
  await second.end()
})

t.test('a witness knows which messages are missing, and misses none while it has no link', async (t) => {
  const broker = await startBroker(t)
  const { now: _, ...access } = linkOptions(broker.url)
  const witness = await Witness.open({ ...access, clientId: 'judge' }, { clock: systemClock, openLink })
  const lamp = await openLink(linkOptions(broker.url))
  const send = (sequence: number) =>
    lamp.publish('devices/lamp/telemetry', JSON.stringify({ sequence, at: systemClock.now() }))
  await send(1)
  await send(3)
  await lamp.publish('devices/lamp/telemetry', 'not from the simulator')
  await witness.waitFor(() => witness.missing('lamp', 3).length === 1, 5_000)
  t.strictSame(witness.missing('lamp', 3), [2])
  const [judgeSocket] = broker.sockets
  judgeSocket?.destroy()
  await once(broker.aedes, 'clientDisconnect')
  await send(2)
  await witness.waitFor(() => witness.missing('lamp', 3).length === 0, 5_000)
  t.strictSame(witness.missing('lamp', 3), [])
  t.equal(witness.delays.length, 3, 'a message that arrives twice counts once')
  await witness.waitFor(() => false, 1)
  await lamp.end()
  await witness.end()
  t.ok(isMusterError(await openLink(linkOptions('mqtts://127.0.0.1:1')).catch((error) => error)))
})
