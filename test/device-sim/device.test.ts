import { randomBytes } from 'node:crypto'
import { EventEmitter, once } from 'node:events'
import { mkdirSync, mkdtempSync, readdirSync, rmSync, symlinkSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import t, { type Test } from 'tap'
import { MusterError } from '#shared/errors'
import type { DeviceId } from '#shared/identity/device'
import { derToPem } from '#shared/pki/pem'
import { seededRandom } from '../../device-sim/backoff.ts'
import { systemClock } from '../../device-sim/clock.ts'
import { Credentials } from '../../device-sim/credential.ts'
import { Device } from '../../device-sim/device.ts'
import type { EnrollClient } from '../../device-sim/enroll-client.ts'
import { checkPair } from '../../device-sim/judge-pairs.ts'
import type { Link, LinkOptions } from '../../device-sim/mqtt-link.ts'
import { checkCsr, decodeCsr } from '../../enrollment/ca/check-csr.ts'
import { issueCertificate } from '../../enrollment/ca/issue.ts'
import { testAuthority } from '../support/pki.ts'

const authority = await testAuthority()
t.teardown(() => authority.remove())

const SOON = () => AbortSignal.timeout(10_000)

/** Signs every CSR, the same key with the same certificate, as the enrollment service does. */
function fakeEnrollment() {
  const issued = new Map<string, string>()
  const sign = async (csr: string) => {
    const { spki, spkiHash, commonName } = await checkCsr(decodeCsr(csr))
    const now = Math.floor(Date.now() / 1000) * 1000
    const request = {
      profile: 'device',
      id: commonName ?? '',
      spki,
      notBefore: now - 60_000,
      notAfter: now + 3_600_000,
    } as const
    if (!issued.has(spkiHash)) {
      const { der } = await issueCertificate(authority.device, {
        ...request,
        serial: randomBytes(16).toString('hex'),
      })
      issued.set(spkiHash, derToPem(der, 'CERTIFICATE'))
    }
    const certificate = issued.get(spkiHash) ?? ''
    return {
      device: request.id,
      serial: '',
      notAfter: 0,
      renewAfter: 0,
      renewBefore: 0,
      certificate,
      chain: [authority.device.pem, authority.rootPem],
    }
  }
  const client: EnrollClient = {
    enroll: ({ csr }) => sign(csr),
    renew: ({ csr }) => sign(csr),
    bundle: () => Promise.reject(new MusterError('unreachable', 'down')),
    time: () => Promise.reject(new MusterError('unreachable', 'down')),
  }
  return { client, issued }
}

/** A broker that takes one connection a client and acknowledges what it is told to. */
function fakeBroker() {
  const events = new EventEmitter<{ opened: [LinkOptions] }>()
  const links: (LinkOptions & { close(): void; published: string[] })[] = []
  const state = {
    refuses: (_: LinkOptions): number | Promise<number> => 0,
    acknowledges: true,
    isDown: false,
  }
  const openLink = async (options: LinkOptions): Promise<Link> => {
    if (state.isDown) throw new MusterError('unreachable', 'down')
    const returnCode = await state.refuses(options)
    if (returnCode > 0) throw new MusterError('forbidden', 'refused', { evidence: { returnCode } })
    const closed = Promise.withResolvers<number>()
    const published: string[] = []
    const link = { ...options, published, close: () => closed.resolve(options.now()) }
    links.at(-1)?.close() // takeover
    links.push(link)
    events.emit('opened', options)
    return {
      resumed: options.session !== undefined,
      closed: closed.promise,
      publish: async (_, payload) => {
        published.push(payload)
        if (!state.acknowledges)
          await closed.promise.then(() => Promise.reject(new MusterError('unreachable', 'closed')))
      },
      subscribe: async () => {},
      session: () => Buffer.from(`session of ${options.certificate.length} ${links.length}`),
      end: async () => closed.resolve(options.now()),
    }
  }
  return { events, state, openLink, newest: () => links[links.length - 1] }
}

function fakes(t: Test) {
  const directory = mkdtempSync(join(tmpdir(), 'muster-device-'))
  t.teardown(() => rmSync(directory, { recursive: true, force: true }))
  const enrollment = fakeEnrollment()
  const broker = fakeBroker()
  const open = (reached: (step: string) => void = () => {}) => {
    const deps = {
      broker: 'mqtts://localhost:1',
      ca: authority.rootPem,
      clock: systemClock,
      random: seededRandom('test'),
      enrollClient: enrollment.client,
      openLink: broker.openLink,
      reached,
    }
    const device = new Device('lamp' as DeviceId, { credentials: Credentials.open(directory), deps }) // a constant
    t.teardown(() => device.stop())
    return device
  }
  const pair = () => checkPair(directory, { root: authority.rootPem, now: Date.now() })
  return { directory, enrollment, broker, open, pair }
}

t.test('a device that gets no answer asks again with the same key', async (t) => {
  const { open, enrollment, pair } = fakes(t)
  const { enroll } = enrollment.client
  enrollment.client.enroll = async (request) => {
    await enroll(request)
    throw new MusterError('unreachable', 'the reply was lost')
  }
  await t.rejects(open().enroll('token'), { code: 'unreachable' })
  enrollment.client.enroll = enroll
  await open().enroll('token')
  t.equal(enrollment.issued.size, 1)
  t.equal(pair().fault, null)
})

t.test('a device that loses its link returns and sends again what nobody acknowledged', async (t) => {
  const { open, broker } = fakes(t)
  const device = open()
  await device.enroll('token')
  await device.connect(SOON())
  device.publish()
  await device.outbox.drained()
  broker.state.acknowledges = false
  device.publish()
  device.publish()
  broker.state.acknowledges = true
  broker.newest()?.close()
  await once(device.events, 'lost')
  await device.connect(SOON())
  await device.outbox.drained()
  t.match(
    broker.newest()?.published.map((text) => JSON.parse(text).sequence),
    [2, 3],
  )
  t.ok(device.isResumed, 'with the TLS session of the link before')
})

t.test('an outbox that is full makes no more messages', async (t) => {
  const device = fakes(t).open()
  while (device.publish());
  t.equal(device.outbox.last, 32)
  t.equal(device.outbox.unacknowledged.length, 32)
})

t.test('a rotation loses no message and leaves one pair', async (t) => {
  const { open, broker, directory, pair } = fakes(t)
  const device = open()
  await device.enroll('token')
  await device.connect(SOON())
  broker.newest()?.close()
  await once(broker.events, 'opened')
  t.ok(broker.newest()?.session, 'a session is offered with the certificate that it was made with')
  await device.connect(SOON())
  const before = pair().serial
  broker.state.acknowledges = false
  device.publish()
  broker.state.acknowledges = true
  const lost = () => t.fail('the change of links is no loss')
  device.events.on('lost', lost)
  await device.rotate(SOON())
  await device.outbox.drained()
  t.not(pair().serial, before)
  t.equal(pair().fault, null)
  t.strictSame(readdirSync(join(directory, 'pairs')), ['2'])
  t.equal(
    broker.newest()?.session,
    undefined,
    'a session of the old certificate is not offered with the new one',
  )
  device.events.off('lost', lost)
})

t.test(
  'a device fetches the trust bundle when a renewal names a newer one, and believes it from then on',
  async (t) => {
    const { open, broker, enrollment, directory } = fakes(t)
    const device = open()
    await device.enroll('token')
    await device.connect(SOON())
    const { renew } = enrollment.client
    enrollment.client.renew = async (request) => ({ ...(await renew(request)), trustVersion: 2 })
    await device.rotate(SOON())
    t.equal(broker.newest()?.ca, authority.rootPem, 'it could not be fetched: the old one stays')
    const roots = [authority.rootPem, 'another root']
    enrollment.client.bundle = async () => ({
      trustDomain: '',
      version: 2,
      root: '',
      roots,
      certificates: [],
    })
    await device.rotate(SOON())
    t.equal(broker.newest()?.ca, roots.join(''))
    enrollment.client.bundle = () => t.fail('it has this one') as never // never called
    await device.rotate(SOON())
    await device.stop()
    const restarted = open()
    await restarted.connect(SOON())
    t.equal(broker.newest()?.ca, roots.join(''), 'also after a restart')
    t.strictSame(readdirSync(directory).toSorted(), ['current', 'pairs', 'trust.json'])
  },
)

t.test('a device whose new pair is refused goes back to the old one', async (t) => {
  const { open, broker, pair, directory } = fakes(t)
  const device = open()
  await device.enroll('token')
  await device.connect(SOON())
  const before = pair().serial
  const old = broker.newest()?.certificate
  broker.state.refuses = ({ certificate }) => (certificate === old ? 0 : 5)
  await t.rejects(device.rotate(SOON()), { code: 'forbidden' })
  t.equal(pair().serial, before)
  t.ok(device.isConnected)
  t.strictSame(readdirSync(join(directory, 'pairs')), ['1'])
  t.match(device.refusals, [{ returnCode: 5 }])
})

t.test('a device that is refused keeps trying, for a hold may be lifted', async (t) => {
  const { open, broker } = fakes(t)
  const device = open()
  await device.enroll('token')
  broker.state.refuses = () => 5
  const connected = device.connect(SOON())
  await once(device.events, 'refused')
  await once(device.events, 'refused')
  broker.state.refuses = () => 0
  await connected
  t.ok(device.isConnected)
})

t.test('a device that loses its link while it switches over, and cannot, comes back by itself', async (t) => {
  const { open, broker } = fakes(t)
  const device = open()
  await device.enroll('token')
  await device.connect(SOON())
  const old = broker.newest()
  const gaveUp = new AbortController()
  broker.state.refuses = async () => {
    gaveUp.abort()
    old?.close()
    await new Promise(setImmediate) // the device has seen the close
    broker.state.refuses = () => 0
    throw new MusterError('unreachable', 'the new link fails')
  }
  await t.rejects(device.rotate(gaveUp.signal), { code: 'unreachable' })
  await once(broker.events, 'opened')
  await device.connect(SOON())
  t.equal(device.credentials.candidate(), null, 'with the new pair in the end: it is tried first')
})

for (const step of ['rotate.1', 'rotate.2', 'rotate.3', 'rotate.4', 'rotate.5', 'rotate.6']) {
  t.test(`a device that is cut at ${step} has a pair that works, and finishes the rotation`, async (t) => {
    const { open, pair, directory, enrollment } = fakes(t)
    const first = open((reached) => {
      if (reached === step) throw new Error('cut')
    })
    await first.enroll('token')
    await first.connect(SOON())
    await t.rejects(first.rotate(SOON()), { message: 'cut' })
    await first.stop()
    t.equal(pair().fault, null, 'right after the cut')
    const second = open()
    await second.connect(SOON())
    if (second.credentials.candidate()) await second.rotate(SOON())
    t.equal(pair().fault, null)
    t.strictSame(readdirSync(join(directory, 'pairs')), ['2'])
    t.equal(enrollment.issued.size, 2, 'the same key was asked for, so nothing is issued twice')
  })
}

t.test('what a crash leaves behind is removed or taken up, whatever it is', async (t) => {
  const { open, directory, pair } = fakes(t)
  await open().enroll('token')
  mkdirSync(join(directory, 'pairs', '2.new'))
  mkdirSync(join(directory, 'pairs', '3'))
  writeFileSync(
    join(directory, 'pairs', '3', 'certificate.pem'),
    'a pair that lost its key while it was removed',
  )
  symlinkSync('pairs/9', join(directory, 'current.new'))
  const credentials = Credentials.open(directory)
  t.strictSame(readdirSync(join(directory, 'pairs')), ['1'])
  t.equal(credentials.candidate(), null)
  const device = open()
  await device.rotate(SOON())
  t.equal(pair().fault, null)
  t.strictSame(readdirSync(join(directory, 'pairs')), ['2'])
})
