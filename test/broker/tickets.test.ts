import t from 'tap'
import { enrollDevice, startEnrollment } from '../support/enrollment.ts'
import { startMuster } from '../support/muster.ts'
import { invitedBroker } from '../support/running-broker.ts'
import { visit } from '../support/tickets.ts'

const service = await startEnrollment(t)
const lamp = await enrollDevice(service, { id: 'lamp' })
const args = await invitedBroker(service, 'broker-1')

/** `muster broker` as somebody starts it: no parent that it could tell anything. */
async function start(environment: Record<string, string> = {}) {
  const broker = startMuster(t, ['broker', ...args], { environment })
  await broker.says(/"event":"ready"|"msg":"ready"/)
  const port = Number(/mqtts:\/\/localhost:(\d+)/.exec(broker.stderr())?.[1])
  const device = {
    port,
    ca: service.root,
    key: lamp.key,
    cert: lamp.certificate + service.deps.authority.device.pem,
  }
  const stop = async () => {
    broker.child.kill('SIGTERM')
    return (await broker.ended).status
  }
  return { device, stop, stderr: broker.stderr }
}

t.test('a broker that somebody starts gives one ticket with a full handshake', async (t) => {
  const { device, stop, stderr } = await start()
  const first = await visit('lamp', device)
  t.match(first, { isResumed: false, answer: 0 })
  t.equal(first.tickets.length, 1)
  const [session] = first.tickets
  for (const nth of ['second', 'third']) {
    const again = await visit('lamp', { ...device, session })
    t.match(again, { isResumed: true, answer: 0 }, `the ${nth} connection resumes`)
    t.equal(again.tickets.length, 0, 'Node keeps the ticket as it is')
  }
  const older = await visit('lamp', { ...device, maxVersion: 'TLSv1.2' })
  t.match(older, { isResumed: false, answer: 0 })
  const resumed = await visit('lamp', { ...device, maxVersion: 'TLSv1.2', session: older.tickets[0] })
  t.match(resumed, { isResumed: true, answer: 0 }, 'TLS 1.2 resumes as before')
  t.equal(await stop(), 0, 'it is the process that was started, and ends as one')
  t.notMatch(stderr(), 'ExperimentalWarning')
})

t.test("with a configuration of the operator's own a broker keeps to it", async (t) => {
  const { device, stop } = await start({ OPENSSL_CONF: '/dev/null' })
  t.equal((await visit('lamp', device)).tickets.length, 2, 'as many as OpenSSL gives by itself')
  t.equal(await stop(), 0)
})
